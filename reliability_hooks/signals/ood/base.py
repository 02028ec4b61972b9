"""What an out-of-distribution score is: one column, higher = more out-of-distribution, judged from rows of evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import nan
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...frame import Frame
from ...instances import Head
from ..base import Requirement, Signal
from ..rois import roi_maps

Layer = Literal["box", "early", "middle", "late"]
LAYERS: tuple[str, ...] = get_args(Layer)
"""Where features are read: `box` is what the detector's own head sees of the object (`Instances.features`), the others
the mean of a backbone's feature map over the box (`frame.MAPS`)."""
SURE = 0.5
"""Without ground truth, detections with at least this score are taken for in-distribution objects while learning."""


@dataclass(frozen=True)
class Info:
    """What a table of the methods is made from.

    Attributes:
        title: Its usual name.
        paper: Authors, year, title.
        needs: In words.
        sign: What was done to the published sign so that higher = more out-of-distribution.
    """

    title: str
    paper: str
    needs: str
    sign: str = "as published"


@dataclass(frozen=True, eq=False)
class Rows:
    """The evidence on N objects, possibly of many images; what a score does not ask for is None.

    Attributes:
        classes: (N,) int64, column of the predicted class in `logits` (the background's dropped); -1 where it is none.
        logits: (N, K) float32 without the background's column.
        head: How logits become probabilities; `softmax+background` logits are given without the background.
        features: (N, D) float32 of the score's layer.
        inputs: (N, D) float32, what the last layer of the classifier sees of each object.
        weight: (L, K, D): `logits = weight[which] @ inputs + bias[which]`; L is 1 but for heads of several levels.
        bias: (L, K).
        which: (N,) int64.
        scores: (N,) the detector's confidence.
        sizes: (N,) box area in square pixels of the original image.
    """

    classes: Tensor
    logits: Tensor | None = None
    head: Head | None = None
    features: Tensor | None = None
    inputs: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    which: Tensor | None = None
    scores: Tensor | None = None
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, keep: Tensor) -> Rows:
        """The chosen objects; the classifier's weights are shared by all."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        shared = ("head", "weight", "bias")
        return Rows(**{k: v if v is None or k in shared else v[keep] for k, v in given.items()})

    def finite(self) -> Tensor:
        """(N,) bool: every number that is given is finite."""
        ok = torch.ones(len(self), dtype=torch.bool, device=self.classes.device)
        for value in (self.logits, self.features, self.inputs):
            if value is not None:
                ok &= value.isfinite().all(1)
        return ok

    def require(self, *names: str) -> tuple[Tensor, ...]:
        """The named tensors.

        Raises:
            ValueError: One of them is None.
        """
        found = [getattr(self, name) for name in names]
        if missing := [n for n, value in zip(names, found, strict=True) if value is None]:
            raise ValueError(f"these rows have no {' and no '.join(missing)}: skip this score")
        return tuple(found)


class Score(Signal):
    """One out-of-distribution score.

    A subclass sets `name`, `info`, `evidence` and `columns = column(name)`, and overrides `score`; one that learns sets
    `learns` and overrides `learn` and `finish`, leaving what it learnt in `self.tensors`. Rows that are not finite
    never reach it: they are NaN.

    Args:
        layer: Where features are read; written `ood/knn@late` in a list of signals. Only for scores of features.

    Attributes:
        info: See `Info`.
        evidence: Which of `logits`, `features` and `classifier` the score reads.
        tensors: What was learnt, by name; saved and restored as it is.
    """

    info: ClassVar[Info]
    evidence: ClassVar[tuple[Literal["logits", "features", "classifier"], ...]] = ()

    def __init__(self, layer: str | None = None) -> None:
        if layer is not None and "features" not in self.evidence:
            raise ValueError(f"{type(self).name} reads no features: write it without @{layer}")
        if layer is not None and layer not in LAYERS:
            raise ValueError(f"unknown layer {layer!r} of {type(self).name}; there are: {', '.join(LAYERS)}")
        self.layer = layer or "box"
        self.tensors: dict[str, Tensor] = {}
        self._placed: dict[str, tuple[Tensor, Tensor]] = {}
        of_layer: tuple[Requirement, ...] = ("features",) if self.layer == "box" else ("maps", "image")
        own: Any = self  # each layer makes a signal of its own: what is the class's elsewhere is the instance's here
        own.requires = tuple(r for part in self.evidence for r in (of_layer if part == "features" else (part,)))
        if layer is not None:
            own.name = f"{type(self).name}@{layer}"
            own.columns = column(own.name)
        own.scores = tuple(own.columns)

    def score(self, rows: Rows) -> Tensor:
        """(N,) float; higher = more out-of-distribution. The rows are finite and may be none."""
        raise NotImplementedError

    def learn(self, rows: Rows) -> None:
        """Take in finite in-distribution rows of an image (constant memory)."""
        raise NotImplementedError(f"{self.name} has nothing to learn")

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if self.learns and not self.tensors:
            raise ValueError(f"{self.name} has not learnt yet; see Monitor.learning")
        rows = self.rows(frame)
        ok = rows.finite()
        out = torch.full((len(rows),), nan, device=frame.instances.device)
        if bool(ok.any()):
            out[ok] = self.score(rows[ok]).float()
        return {next(iter(self.columns)): out}

    def update(self, frame: Frame) -> None:
        rows = self.rows(frame)
        truth = frame.instances.columns.get("truth")
        known = frame.instances.scores >= SURE if truth is None else truth == frame.instances.labels
        keep = rows.finite() & known
        if bool(keep.any()):
            self.learn(rows[keep])

    def rows(self, frame: Frame) -> Rows:
        """What this score reads of a frame."""
        found = frame.instances
        boxes = found.boxes.float()
        given: dict[str, Any] = {
            "classes": class_columns(frame), "head": found.head, "scores": found.scores.float(),
            "sizes": (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1),
        }
        if "logits" in self.evidence and found.logits is not None:
            given["logits"] = found.without_background(found.logits.float())
        if "features" in self.evidence:
            given["features"] = layer_features(frame, self.layer)
        if "classifier" in self.evidence and frame.classifier is not None:
            c = frame.classifier
            given |= {"inputs": c.inputs.float(), "weight": c.weight.float(), "bias": c.bias.float(), "which": c.which}
        return Rows(**given)

    def learnt(self, name: str, like: Tensor) -> Tensor:
        """A learnt tensor on the device of `like`."""
        own = self.tensors[name]
        source, held = self._placed.get(name, (own, own))
        if source is not own or held.device != like.device:
            held = own.to(like.device)
            self._placed[name] = own, held
        return held

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.tensors), {}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)


def column(name: str) -> dict[str, tuple[str, str]]:
    """The one column of a score, with what a low and a high value say."""
    return {f"{name}/score": ("looks like known objects", "looks like no known object")}


def class_columns(frame: Frame) -> Tensor:
    """(N,) int64: where each predicted label stands among the logits without the background's; -1 where nowhere."""
    found = frame.instances
    labels = found.labels
    if found.logits is None:
        return labels
    k = found.logits.shape[1]
    ok = (labels >= 0) & (labels < k)
    if found.background is not None:
        b = found.background % k
        ok &= labels != b
        labels = labels - (labels > b).long()
    return torch.where(ok, labels, -1)


def layer_features(frame: Frame, layer: str) -> Tensor | None:
    """(N, D) float32 features of a layer; None where the frame has none."""
    if layer == "box":
        return None if frame.instances.features is None else frame.instances.features.float()
    if frame.maps is None or frame.view is None:
        return None
    return roi_maps(frame.maps[layer], frame.view, frame.instances.boxes, 1).flatten(1)
