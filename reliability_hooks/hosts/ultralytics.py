"""Ultralytics YOLO: detection and segmentation, with NMS or end-to-end; predict, stream and track.

Two moments of `predict()` are used. When a batch is post-processed (before a tracker reorders it) each result is
given its evidence; when the batch ends, and rows have track ids, the monitor is applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ..instances import Instances
from .base import Hook, Host, ListEntry, Process, Removable
from .info import HostInfo
from .ultralytics_tap import HeadTap


class UltralyticsHost(Host):
    """Hooks on an `ultralytics.YOLO`. Each result becomes a `Results` with `instances` and `reliability` beside it."""

    name: ClassVar[str] = "ultralytics"
    info: ClassVar[HostInfo] = HostInfo(
        models="YOLOv8, YOLO11, YOLO26 (NMS and end-to-end), `-seg`, YOLO-World, YOLOE, RT-DETR; `predict`, `stream`, "
        "`track`; exported models with image signals alone",
        beside="`result.instances`, `result.reliability`, `to_df()`", licence="AGPL-3.0",
        tested="ultralytics>=8.4,<8.5", tracks=True,
        gradients="yes (RT-DETR: partly)",
    )  # fmt: skip

    _begins: ClassVar[str] = "on_predict_start"

    @classmethod
    def load(cls, spec: str, **options: Any) -> Any:
        """`YOLO(spec)`, weights or an export; it has to be there, as a missing one is looked for on the network."""
        if options:
            raise ValueError(f"unknown options for an ultralytics model: {sorted(options)}")
        if not Path(spec).exists():
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
        exported = Path(str(self.model.model))  # no weights to read: it is known by its bytes
        digest = hashlib.sha256()
        for file in sorted(exported.rglob("*")) if exported.is_dir() else [exported]:
            digest.update(file.read_bytes() if file.is_file() else str(file).encode())  # a server's address
        return {"host": self.name, "architecture": exported.suffix, "weights": digest.hexdigest()[:32]}

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        from .ultralytics_results import ReliableResults

        tap = self._tap(report, needs)

        def collect(predictor: Any) -> None:
            for i, result in enumerate(predictor.results):
                if result.boxes is not None:  # classification, semantic and oriented results have no such rows
                    predictor.results[i] = ReliableResults.of(
                        result, tap.evidence(i, result, predictor), self.class_free
                    )

        def finish(predictor: Any) -> None:
            for result in predictor.results:
                if isinstance(result, ReliableResults):
                    result.finish(process)
            tap.drop()

        callbacks = self.model.callbacks
        return [
            ListEntry(callbacks[self._begins], Hook(tap.install, report)),
            ListEntry(callbacks["on_predict_postprocess_end"], Hook(collect, report), first=True),
            ListEntry(callbacks["on_predict_batch_end"], Hook(finish, report), first=True),
            tap,
        ]

    def _tap(self, report: Callable[[Exception], None], needs: Collection[str]) -> Any:
        """What listens to the network: `install(predictor)`, `evidence(i, result, predictor)`, `drop()`, `remove()`."""
        return HeadTap(report, needs)

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """As `YOLO.predict`, images RGB, `verbose=False` unless asked otherwise."""
        from .ultralytics_results import ReliableResults

        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        out = self.model.predict(bgr, **{"verbose": False, **options}) if bgr else []
        if not all(isinstance(result, ReliableResults) for result in out):
            raise RuntimeError("these results carry no instances: attach a monitor first; only detection and "
                               "segmentation models have instances")
        return [result.instances for result in out]
