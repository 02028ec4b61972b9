"""Does it show the parts that objects of its class show?"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...frame import Frame
from ...instances import Head
from ..rois import roi_maps
from .balanced import BalancedSample
from .base import Info, Rows, Score, class_columns, column
from .parts import calibrate, part_maps, strongest, train_parts

PARTS = 6
SIDE = 7
ENOUGH = 30
CAPACITY, BYTES = 2000, 1 << 26
CHUNK = 64


def confidence(maps: Tensor, detectors: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """(N, S) mean over the P parts of sigmoid((max correlation - location) / scale), in [0, 1].

    About 1/2 for what the detectors were calibrated on: a value of a distribution function, not P(correct).

    Args:
        maps: (N, D, h, w).
        detectors: (S, P, D), S sets of P parts.
        location: (S, P), of `parts.calibrate`.
        scale: (S, P), likewise.
    """
    best = strongest(maps, detectors.flatten(0, 1), CHUNK).view(-1, *location.shape)
    return ((best - location) / scale).sigmoid().mean(2)


def weighted(each: Tensor, own: Tensor, classes: Tensor, logits: Tensor | None, head: Head | None) -> Tensor:
    """(N,) confidence over the sets: weighted by p(c | x), normalised over the classes that have a set.

    That of the common set for objects of a class without one; without logits that of the predicted class.

    Args:
        each: (N, S) confidence, the first column being the common set's.
        own: (N,) column of the predicted class's set.
        classes: (S,) class of each set; -1 for the common one.
        logits: (N, K) without the background's.
        head: How logits become probabilities.
    """
    alone = each.gather(1, own[:, None])[:, 0]
    if logits is None or len(classes) == 1:
        return alone
    log_p = logsigmoid(logits) if head == "sigmoid" else logits
    share = log_p[:, classes[1:]].softmax(1)
    return torch.where(own > 0, (share * each[:, 1:]).sum(1), alone)


class Particul(Score):
    """One minus the confidence that the parts of the object's class are there.

    Six parts for each class that shows at least 30 sure objects, and six that are common to all objects, which stand
    in for the rarer classes. They are found without labels of parts, as what recurs at one place of the object each,
    on 7 x 7 feature maps of the boxes (`ood/particul` reads the late stage; `@early`, `@middle`). Learnt from a sample
    of at most 2000 objects (64 MB in float16), balanced over the classes.

    `part_maps` shows where the parts are: the explanation that comes with the score.

    Raises:
        ValueError: The layer is `box`, whose features are no maps.
    """

    name = "ood/particul"
    info = Info(
        "PARTICUL", "Xu-Darme et al. 2023, Contextualised out-of-distribution detection using pattern identification",
        "feature maps, logits where there are any; learns part detectors of each class", "one minus the confidence",
    )
    evidence = ("features",)
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        if layer == "box":
            raise ValueError(f"{type(self).name} reads maps, and the box's features are none; "
                             "write @early, @middle or @late")
        super().__init__(layer)
        self.layer = layer or "late"
        own: Any = self
        own.requires = ("maps", "image")
        self.sample = BalancedSample(CAPACITY, BYTES)

    def rows(self, frame: Frame) -> Rows:
        """As of every score, the features being the flattened maps (N, D * 7 * 7)."""
        if frame.maps is None or frame.view is None:
            raise ValueError("the frame has no feature maps: skip this signal")
        found = frame.instances
        maps = roi_maps(frame.maps[self.layer], frame.view, found.boxes, SIDE)
        logits = None if found.logits is None else found.without_background(found.logits.float())
        return Rows(class_columns(frame), logits, found.head, features=maps.flatten(1))

    def learn(self, rows: Rows) -> None:
        (flat,) = rows.require("features")
        self.sample.update(flat, rows.classes)

    def finish(self) -> None:
        if len(self.sample) == 0:
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        maps, classes = unflatten(self.sample.rows), self.sample.classes
        ids, counts = torch.unique(classes, return_counts=True)  # type: ignore[no-untyped-call]
        frequent = ids[(counts >= ENOUGH) & (ids >= 0)]
        members = [torch.ones_like(classes, dtype=torch.bool), *(classes == frequent[:, None])]
        detectors = [train_parts(maps[m], PARTS) for m in members]
        laws = [calibrate(strongest(maps[m], w)) for m, w in zip(members, detectors, strict=True)]
        location, scale = (torch.stack(values) for values in zip(*laws, strict=True))
        self.tensors = {
            "classes": torch.cat([frequent.new_tensor([-1]), frequent]),
            "detectors": torch.stack(detectors), "location": location, "scale": scale,
        }
        self.sample = BalancedSample(CAPACITY, BYTES)

    def score(self, rows: Rows) -> Tensor:
        (flat,) = rows.require("features")
        detectors, location, scale, classes = (
            self.learnt(name, flat) for name in ("detectors", "location", "scale", "classes")
        )
        each = confidence(unflatten(flat), detectors, location, scale)
        return 1 - weighted(each, self._set(rows.classes), classes, rows.logits, rows.head)

    def part_maps(self, frame: Frame) -> Tensor:
        """(N, 6, 7, 7) float32: where in its box each part of the predicted class is; each map sums to 1.

        Those of the set that all classes share where the class has none of its own. NaN where the box is not finite.

        Raises:
            ValueError: It has not learnt yet, or the frame has no maps.
        """
        if not self.tensors:
            raise ValueError(f"{self.name} has not learnt yet; see Monitor.learning")
        rows = self.rows(frame)
        (flat,) = rows.require("features")
        return part_maps(unflatten(flat), self.learnt("detectors", flat)[self._set(rows.classes)])

    def _set(self, classes: Tensor) -> Tensor:
        """(N,) which set is that of each class; 0, the common one, where it has none."""
        return (classes[:, None] == self.learnt("classes", classes)).long().argmax(1)


def unflatten(flat: Tensor) -> Tensor:
    """(N, D * 7 * 7) -> (N, D, 7, 7)."""
    return flat.view(len(flat), flat.shape[1] // SIDE**2, SIDE, SIDE)
