"""Ultralytics YOLO: detection and segmentation, with NMS or end-to-end; predict, stream and track.

Two moments of `predict()` are used. When a batch is post-processed (before a tracker reorders it) each result is
given its evidence; when the batch ends, and rows have track ids, the monitor is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from ..frame import MAPS, Candidates, Frame
from ..instances import Instances
from .base import Hook, Host, ListEntry, Process, Removable, dropouts, dropping
from .rows import candidates, with_evidence
from .ultralytics_rows import raw_rows, stages, view


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

        tap = _HeadTap(report, with_maps="maps" in needs)

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


class _HeadTap:
    """Listens to the network inside the predictor, which is a fused copy that `predict()` may replace."""

    def __init__(self, report: Callable[[Exception], None], with_maps: bool) -> None:
        self.report, self.with_maps = report, with_maps
        self.net: nn.Module | None = None
        self.handles: list[Any] = []
        self.paused = False
        self.dropout = False
        self.drop()

    def install(self, predictor: Any) -> None:
        """Fires at every `predict()`."""
        net = predictor.model.model if predictor.model.format == "pt" else predictor.model
        if net is self.net:
            return
        self.remove()
        if not isinstance(net, nn.Module):
            return
        self.net = net
        self.dropout = bool(dropouts(net))
        self.handles = [net.register_forward_pre_hook(Hook(self._on_input, self.report))]
        from ultralytics.nn.modules.head import OBB, Detect

        layers = getattr(net, "model", None)
        head = layers[-1] if isinstance(layers, nn.Sequential) else None
        if isinstance(layers, nn.Sequential) and isinstance(head, Detect) and not isinstance(head, OBB):
            self.handles.append(head.register_forward_hook(Hook(self._on_head, self.report)))
            for name, i in stages(layers).items() if self.with_maps else ():
                self.handles.append(layers[i].register_forward_hook(Hook(partial(self._on_stage, name), self.report)))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.net = None
        self.drop()

    def drop(self) -> None:
        """Forget the batch."""
        self.image: Tensor | None = None
        self.head: nn.Module | None = None
        self.output: Any = None
        self.maps: dict[str, Tensor] = {}

    def _on_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.paused:
            self.image = args[0]

    def _on_head(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.paused:
            self.head, self.output = module, output

    def _on_stage(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if not self.paused:
            self.maps[name] = output

    def rerun(self, net: nn.Module, pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        """The candidates in other pixels of the same size; what is known of the batch stays."""
        self.paused = True
        try:
            with dropping(net) if dropout else nullcontext():
                output = net(pixels)
        finally:
            self.paused = False
        size = (int(pixels.shape[2]), int(pixels.shape[3]))
        return [candidates(raw_rows(self.head, output, i, size, None)) for i in range(len(pixels))]

    def evidence(self, i: int, result: Any, predictor: Any) -> Callable[[Instances], Frame]:
        """How image i's frame is built once its kept rows are known. Holds this batch's tensors until then."""
        image, head, output, maps = self.image, self.head, self.output, self.maps
        net, dropout = predictor.model.model, self.dropout

        def build(kept: Instances) -> Frame:
            if image is None:
                return Frame(kept)
            seen = view(image[i], result.orig_shape)
            if head is None or predictor.args.augment:  # augmented passes mix several scales: no one raw row
                return Frame(kept, seen)
            raw = raw_rows(head, output, i, tuple(image.shape[2:]), result.orig_shape)
            return Frame(
                instances=with_evidence(kept, raw),
                view=seen,
                candidates=candidates(raw),
                maps={name: levels[i] for name, levels in maps.items()} if len(maps) == len(MAPS) else None,
                rerun=partial(self.rerun, net) if seen else None,
                dropout=dropout,
            )

        return build
