"""Ultralytics YOLO: detection and segmentation, with NMS or end-to-end; predict, stream and track.

Two moments of `predict()` are used. When a batch is post-processed (before a tracker reorders it) each result is
given its evidence; when the batch ends, and rows have track ids, the monitor is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..frame import Frame, View
from ..instances import Instances
from .base import Hook, Host, ListEntry, Process, Removable
from .rows import RawRows, candidates, pool_features, with_evidence


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

    def install(self, process: Process, report: Callable[[Exception], None]) -> list[Removable]:
        tap = _HeadTap(report)
        results = _results_class()

        def collect(predictor: Any) -> None:
            for i, result in enumerate(predictor.results):
                if result.boxes is not None:  # classification, semantic and oriented results have no such rows
                    predictor.results[i] = results.of(result, tap.evidence(i, result, predictor))

        def finish(predictor: Any) -> None:
            for result in predictor.results:
                if isinstance(result, results):
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
        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        out = self.model.predict(bgr, **{"verbose": False, **options}) if bgr else []
        if not all(isinstance(result, _results_class()) for result in out):
            raise RuntimeError("these results carry no instances: attach a monitor first; only detection and "
                               "segmentation models have instances")
        return [result.instances for result in out]


class _HeadTap:
    """Listens to the network inside the predictor, which is a fused copy that `predict()` may replace."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self.report = report
        self.handles: list[Any] = []
        self.drop()

    def install(self, predictor: Any) -> None:
        """Fires at every `predict()`."""
        self.remove()
        net = predictor.model.model if predictor.model.format == "pt" else predictor.model
        if not isinstance(net, nn.Module):
            return
        self.handles = [net.register_forward_pre_hook(Hook(self._on_input, self.report))]
        from ultralytics.nn.modules.head import OBB, Detect

        layers = getattr(net, "model", None)
        head = layers[-1] if isinstance(layers, nn.Sequential) else None
        if isinstance(head, Detect) and not isinstance(head, OBB):
            self.handles.append(head.register_forward_hook(Hook(self._on_head, self.report)))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.drop()

    def drop(self) -> None:
        """Forget the batch."""
        self.image: Tensor | None = None
        self.head: nn.Module | None = None
        self.output: Any = None

    def _on_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.image = args[0]

    def _on_head(self, module: nn.Module, args: Any, output: Any) -> None:
        self.head, self.output = module, output

    def evidence(self, i: int, result: Any, predictor: Any) -> Callable[[Instances], Frame]:
        """How image i's frame is built once its kept rows are known. Holds this batch's tensors until then."""
        image, head, output = self.image, self.head, self.output

        def build(kept: Instances) -> Frame:
            if image is None:
                return Frame(kept)
            view = _view(image[i], result.orig_shape)
            if head is None or predictor.args.augment:  # augmented passes mix several scales: no one raw row
                return Frame(kept, view)
            raw = _raw_rows(head, output, i, tuple(image.shape[2:]), result.orig_shape)
            return Frame(with_evidence(kept, raw), view, candidates(raw))

        return build


def _raw_rows(head: Any, output: Any, i: int, size: tuple[int, ...], image_size: tuple[int, int]) -> RawRows:
    from ultralytics.utils import ops

    decoded, raw = output
    if isinstance(decoded, tuple):  # segmentation returns its prototypes beside the rows
        decoded = decoded[0]
    if "one2one" in raw:
        raw = raw["one2one" if head.end2end else "one2many"]
    logits = raw["scores"][i].T
    if head.end2end:  # what the head returned are the kept rows only
        boxes, scores = head._get_decode_boxes(raw)[i].T, logits.sigmoid()
    else:
        boxes, scores = decoded[i, :4].T, decoded[i, 4 : 4 + head.nc].T
    xyxy = head.end2end or head.xyxy

    def decode(rows: Tensor, labels: Tensor) -> Tensor:
        chosen = boxes[rows]
        chosen = chosen.clone() if xyxy else ops.xywh2xyxy(chosen)
        scaled: Tensor = ops.scale_boxes(size, chosen, image_size)
        return scaled

    def features(rows: Tensor, kept: Tensor) -> Tensor:
        in_input = _letterbox(size, image_size).to_view(kept.float())
        return pool_features([level[i] for level in raw["feats"]], in_input, (size[0], size[1]))

    return RawRows(scores=scores, logits=logits, decode=decode, head="sigmoid", features=features)


def _letterbox(size: tuple[int, ...], image_size: tuple[int, int], pixels: Tensor | None = None) -> View:
    """Where the image lies in the padded input; the same arithmetic as `ultralytics.utils.ops.scale_boxes`."""
    gain = min(size[0] / image_size[0], size[1] / image_size[1])
    h, w = (max(round(x * gain), 1) for x in image_size)
    return View(
        pixels=torch.empty(3, 0, 0) if pixels is None else pixels,
        scale=(w / image_size[1], h / image_size[0]),
        offset=(round((size[1] - w) / 2 - 0.1), round((size[0] - h) / 2 - 0.1)),
    )


def _view(pixels: Tensor, image_size: tuple[int, int]) -> View | None:
    return _letterbox(tuple(pixels.shape[1:]), image_size, pixels) if len(pixels) == 3 else None


def _masks(result: Any) -> Tensor | None:
    """(N, h, w) bool without the letterbox padding."""
    if result.masks is None:
        return None
    masks: Tensor = result.masks.data
    if tuple(masks.shape[1:]) != tuple(result.orig_shape):
        view = _letterbox(tuple(masks.shape[1:]), result.orig_shape)
        left, top = int(view.offset[0]), int(view.offset[1])
        height, width = round(result.orig_shape[0] * view.scale[1]), round(result.orig_shape[1] * view.scale[0])
        masks = masks[:, top : top + height, left : left + width]
    return masks.bool()


@lru_cache(maxsize=1)
def _results_class() -> Any:
    from ultralytics.engine.results import Results

    class ReliableResults(Results):  # type: ignore[misc]
        """`Results` whose rows carry `instances` through indexing, devices, tracking and `to_df()`."""

        instances: Instances
        _build: Callable[[Instances], Frame] | None = None

        @classmethod
        def of(cls, result: Results, build: Callable[[Instances], Frame]) -> ReliableResults:
            new = object.__new__(cls)
            new.__dict__.update(result.__dict__)
            new.instances = Instances(
                boxes=result.boxes.xyxy.float(),
                scores=result.boxes.conf.float(),
                labels=result.boxes.cls.long(),
                masks=_masks(result),
                image_size=tuple(result.orig_shape),
            )
            new._build = build
            new._keys = (*result._keys, "instances")
            return new

        def finish(self, process: Process) -> None:
            """Apply the monitor to the rows that are left; boxes and scores stay the detector's, not a tracker's."""
            ids = self.boxes.id
            kept = self.instances
            if ids is not None:
                kept = kept.replace(track_ids=torch.as_tensor(ids, device=kept.device).long())
            build, self._build = self._build, None
            self.instances = process(lambda: build(kept) if build else Frame(kept), lambda: kept)

        @property
        def reliability(self) -> Any:
            """(N,) P(this detection is right), NaN where unknown; an array where the boxes are arrays."""
            values = self.instances.reliability
            return values.numpy() if isinstance(self.boxes.data, np.ndarray) else values

        def new(self) -> ReliableResults:
            empty = super().new()
            copy = object.__new__(type(self))
            copy.__dict__.update(empty.__dict__)
            copy._keys, copy._build, copy.instances = self._keys, self._build, self.instances
            return copy

        def summary(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = super().summary(*args, **kwargs)
            for row, value in zip(rows, self.instances.reliability.tolist(), strict=True):
                row["reliability"] = value
            return rows

    return ReliableResults
