"""Ultralytics YOLO: detection and segmentation, with NMS or end-to-end; predict, stream and track.

Two moments of `predict()` are used. When a batch is post-processed (before a tracker reorders it) each result is
given its evidence; when the batch ends, and rows have track ids, the monitor is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ..instances import Instances
from .base import Hook, Host, ListEntry, Process, Removable
from .ultralytics_tap import HeadTap


class UltralyticsHost(Host):
    """Hooks on an `ultralytics.YOLO`. Each result becomes a `Results` with `instances` and `reliability` beside it."""

    name: ClassVar[str] = "ultralytics"

    @classmethod
    def load(cls, spec: str, **options: Any) -> Any:
        """`YOLO(spec)`; the file has to be there, since a missing one would be looked for on the network."""
        if options:
            raise ValueError(f"unknown options for an ultralytics model: {sorted(options)}")
        if not Path(spec).is_file():
            raise FileNotFoundError(f"no weights file {spec!r}; give the path of a .pt file on this machine")
        try:
            from ultralytics import YOLO
        except ImportError as e:
            raise ImportError("this detector needs ultralytics: pip install 'reliability_hooks[ultralytics]'") from e
        return YOLO(spec)

    def class_names(self) -> dict[int, str]:
        return dict(self.model.names)

    def module(self) -> nn.Module:
        if not isinstance(self.model.model, nn.Module):
            raise TypeError(f"{self.model.model!r} is an exported model; its weights cannot be read")
        return self.model.model

    def fingerprint(self) -> dict[str, Any]:
        if isinstance(self.model.model, nn.Module):
            return super().fingerprint()
        # An export has no weights to read: it is known by its file
        return {"host": self.name, "architecture": str(Path(str(self.model.model)).suffix), "weights": "exported"}

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        from .ultralytics_results import ReliableResults

        tap = HeadTap(report, needs)

        def collect(predictor: Any) -> None:
            for i, result in enumerate(predictor.results):
                if result.boxes is not None:  # classification, semantic and oriented results have no such rows
                    predictor.results[i] = ReliableResults.of(result, tap.evidence(i, result, predictor))

        def finish(predictor: Any) -> None:
            for result in predictor.results:
                if isinstance(result, ReliableResults):
                    result.finish(process)
            tap.drop()

        callbacks = self.model.callbacks
        return [
            ListEntry(callbacks["on_predict_start"], Hook(tap.install, report)),
            ListEntry(callbacks["on_predict_postprocess_end"], Hook(collect, report), first=True),
            ListEntry(callbacks["on_predict_batch_end"], Hook(finish, report), first=True),
            tap,
        ]

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """As `YOLO.predict`, images RGB, `verbose=False` unless asked otherwise."""
        from .ultralytics_results import ReliableResults

        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        out = self.model.predict(bgr, **{"verbose": False, **options}) if bgr else []
        if not all(isinstance(result, ReliableResults) for result in out):
            raise RuntimeError("these results carry no instances: attach a monitor first; only detection and "
                               "segmentation models have instances")
        return [result.instances for result in out]
