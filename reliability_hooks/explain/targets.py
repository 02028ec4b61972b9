"""What is to be explained: small objects that turn what the detector sees into one number for each instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, max_pool2d

from ..frame import Candidates, Frame, Glance
from ..signals.geometry import ious

RIM = 2
"""Mask cells on either side of an edge that belong to it."""
SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class Reference:
    """The instances as they were in the untouched image.

    Attributes:
        frame: The whole frame.
        rows: (N,) the frame's rows that are explained.
        labels: (N,).
        boxes: (N, 4) xyxy in view pixels.
        masks: (N, h, w) float in {0, 1}, on the network's own mask grid; None without masks or without `Frame.look`.
        inside: (N, h, w) float in {0, 1}, the cells of that grid whose middle lies in the box.
    """

    frame: Frame
    rows: Tensor
    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    inside: Tensor | None = None

    @classmethod
    def of(cls, frame: Frame, rows: Tensor, glance: Glance | None) -> Reference:
        """Of the rows of a frame, and of a glance at them in the untouched pixels."""
        if frame.view is None:
            raise ValueError("the detector gives no pixels (Frame.view is None), so that nothing can be explained")
        kept = frame.instances
        boxes, labels = frame.view.to_view(kept.boxes[rows].float()), kept.labels[rows].clone()
        if glance is None or glance.masks is None or glance.mask_boxes is None:
            return cls(frame, rows, labels, boxes)
        h, w = glance.masks.shape[2:]
        x1, y1, x2, y2 = glance.mask_boxes.detach()[:, :, None].unbind(1)
        x = x1 + (torch.arange(w, device=x1.device) + 0.5) / w * (x2 - x1)
        y = y1 + (torch.arange(h, device=x1.device) + 0.5) / h * (y2 - y1)
        across = (x >= boxes[:, 0:1]) & (x <= boxes[:, 2:3])
        down = (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:4])
        inside = (down[:, :, None] & across[:, None]).float()
        return cls(frame, rows, labels, boxes, (glance.masks[0].detach() > 0).float() * inside, inside)


class Target:
    """One number in [0, 1] for each instance: 1 where it is as sure as can be, or as it was.

    Override `seen` (the detector's `look`: the same raw rows) and, where it makes sense without, `matched` (its
    `rerun`: any raw box may take over). A target of something else altogether overrides `measure`.

    Attributes:
        name: Key in `TARGETS`.
        parts: What of a `Glance` it reads.
        raw: Whether it reads the detector's raw output at all, and so has a gradient.
    """

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ()
    raw: ClassVar[bool] = True

    def measure(
        self, pixels: Tensor, glance: Glance | None, found: Sequence[Candidates] | None, reference: Reference
    ) -> Tensor:
        """(B, N) in B changed versions (B, 3, h, w) of the view's pixels, by what there is: a glance or candidates."""
        if glance is not None:
            return self.seen(glance, reference)
        if found is None:
            raise ValueError("this detector can neither look at other pixels nor be run again on them")
        none = reference.boxes.new_zeros(len(found), len(reference.boxes))
        for i, raw in enumerate(found):
            if len(raw):
                same = reference.labels[:, None] == raw.labels
                overlap = ious(reference.boxes.nan_to_num(), raw.boxes.float())
                none[i] = self.matched(raw.scores.float() * same, overlap * same)
        return none

    def seen(self, glance: Glance, reference: Reference) -> Tensor:
        """(B, N) in [0, 1]."""
        raise NotImplementedError

    def scalar(self, glance: Glance, reference: Reference) -> Tensor:
        """(B, N) that gradients are taken of: log `seen`, unless overridden."""
        if not self.raw:
            raise ValueError(f"target {self.name!r} has no gradient; choose a perturbation method (drise), or 'auto'")
        return self.seen(glance, reference).clamp(min=SMALL).log()

    def matched(self, scores: Tensor, overlaps: Tensor) -> Tensor:
        """(N,) in [0, 1] from raw boxes (N, M): scores of the instance's class, and IoU, 0 for those of another."""
        raise ValueError(f"target {self.name!r} needs a detector that can look at its masks in other pixels")


class ClassTarget(Target):
    """The probability p of the instance's class."""

    name = "class"

    def seen(self, glance: Glance, reference: Reference) -> Tensor:
        return self.scalar(glance, reference).exp()

    def scalar(self, glance: Glance, reference: Reference) -> Tensor:
        head = reference.frame.instances.head
        logs = logsigmoid(glance.logits) if head == "sigmoid" else glance.logits.log_softmax(-1)
        at = reference.labels[None, :, None].expand(len(logs), -1, 1)
        return logs.gather(2, at)[..., 0]

    def matched(self, scores: Tensor, overlaps: Tensor) -> Tensor:
        """The best score at the same place, IoU >= .5."""
        return (scores * (overlaps >= 0.5)).amax(1)


class BoxTarget(Target):
    """IoU of the box with itself in the untouched image.

    There the IoU is at its maximum and has no gradient; that of the log extent, (log w + log h) / 2, takes its place:
    what keeps the box as large as it is.
    """

    name = "box"
    parts = ("boxes",)

    def seen(self, glance: Glance, reference: Reference) -> Tensor:
        boxes, own = _given(glance.boxes, self.name, "boxes"), reference.boxes
        common = (torch.minimum(boxes[..., 2:], own[:, 2:]) - torch.maximum(boxes[..., :2], own[:, :2])).clamp(min=0)
        area, first = ((b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (boxes, own))
        inter = common.prod(-1)
        return inter / (area + first - inter).clamp(min=SMALL)

    def scalar(self, glance: Glance, reference: Reference) -> Tensor:
        boxes = _given(glance.boxes, self.name, "boxes")
        return (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3).log().mean(-1)

    def matched(self, scores: Tensor, overlaps: Tensor) -> Tensor:
        """The best overlap of a raw box of the same class."""
        return overlaps.amax(1)


class MaskTarget(Target):
    """Soft IoU of the mask, probabilities within the box, with the mask in the untouched image."""

    name = "mask"
    parts = ("masks",)

    def seen(self, glance: Glance, reference: Reference) -> Tensor:
        return _soft_iou(glance, reference, _given(reference.inside, self.name, "masks"), self.name)


class BoundaryTarget(Target):
    """Soft IoU of the masks within `RIM` cells of the edge, on both sides (after Cheng et al. 2021, Boundary IoU)."""

    name = "boundary"
    parts = ("masks",)

    def seen(self, glance: Glance, reference: Reference) -> Tensor:
        mask, side = _given(reference.masks, self.name, "masks")[:, None], 2 * RIM + 1
        grown = max_pool2d(mask, side, 1, RIM)
        shrunk = 1 - max_pool2d(1 - mask, side, 1, RIM)
        band = (grown - shrunk)[:, 0] * _given(reference.inside, self.name, "masks")
        return _soft_iou(glance, reference, band, self.name)


class JointTarget(Target):
    """The probability of the class times the soft IoU of the mask, or the IoU of the box where there is no mask.

    Its log is the scalar S = log softIoU + log p. With candidates: max_j IoU(b, b_j) p_j over the raw boxes j of the
    same class, the similarity of D-RISE (Petsiuk et al. 2021) for one-hot class probabilities.
    """

    name = "joint"
    parts = ("boxes", "masks")

    def seen(self, glance: Glance, reference: Reference) -> Tensor:
        return ClassTarget().seen(glance, reference) * self._place(reference).seen(glance, reference)

    def scalar(self, glance: Glance, reference: Reference) -> Tensor:
        return ClassTarget().scalar(glance, reference) + self._place(reference).scalar(glance, reference)

    def matched(self, scores: Tensor, overlaps: Tensor) -> Tensor:
        return (scores * overlaps).amax(1)

    def _place(self, reference: Reference) -> Target:
        return BoxTarget() if reference.masks is None else MaskTarget()


class MaskEvidence(Target):
    """Mask logits summed over the mask of the untouched image: what Seg-Grad-CAM (Vinogradova et al. 2020) explains."""

    name = "mask_logits"
    parts = ("masks",)

    def scalar(self, glance: Glance, reference: Reference) -> Tensor:
        return (_given(glance.masks, self.name, "masks") * _given(reference.masks, self.name, "masks")).sum((2, 3))


def _soft_iou(glance: Glance, reference: Reference, where: Tensor, name: str) -> Tensor:
    first = _given(reference.masks, name, "masks") * where
    now = _given(glance.masks, name, "masks").sigmoid() * where
    common, area = (now * first).sum((2, 3)), now.sum((2, 3))
    return common / (area + first.sum((1, 2)) - common).clamp(min=SMALL)


def _given(values: Tensor | None, name: str, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"target {name!r} needs {what} in other pixels, which this detector does not give")
    return values


TARGETS: Mapping[str, Target] = {
    t.name: t for t in (ClassTarget(), BoxTarget(), MaskTarget(), BoundaryTarget(), JointTarget())
}
"""The one line to add for a new target."""

HOOKED = ("reliability", "ood")
"""Names of those of `hooked`, which `explain` makes: they ask the monitor, so that they need the handle."""


def target_of(given: str | Target) -> Target:
    """A target by name.

    Raises:
        ValueError: There is none, the message names the nearest; or it needs the handle (`hooked.bound`).
    """
    if isinstance(given, Target):
        return given
    if given in HOOKED:
        raise ValueError(f"target {given!r} is the monitor's answer and needs the handle: explain(handle, image, ...)")
    if given not in TARGETS:
        near = get_close_matches(given, [*TARGETS, *HOOKED], 1, 0)[0]
        raise ValueError(f"unknown target {given!r}, did you mean {near!r}? There are: "
                         f"{', '.join([*TARGETS, *HOOKED])}")
    return TARGETS[given]
