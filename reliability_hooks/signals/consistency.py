"""Does the detector still see it when the image is mirrored, shrunk or brightened?"""

from __future__ import annotations

from math import nan
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..frame import Candidates, Frame, View
from .base import Signal
from .geometry import ious

SHRINK = 0.75
GAMMA = 0.6
GREY = 114 / 255
"""What ultralytics pads with: no edge that the detector has not seen in training."""
MATCH_IOU = 0.45


class Consistency(Signal):
    """Agreement with the detections under three changes of the pixels; one forward pass of a batch of three.

    The views are mirrored left to right, shrunk to 3/4 (the rest grey), and brightened (gamma 0.6). In each view the
    partner of a detection is the strongest raw box of its class that overlaps it, moved back, with IoU >= 0.45: an
    object that the detector knows keeps its score.

    Columns (N,): for each view `..._score` and `..._iou` of the partner (0 without one); `mean_score`, `worst_score`;
    `drop` log-odds of the own score minus their mean over the views; `other_class` the strongest raw box of another
    class at the same place in any view. NaN where the box or the score is not finite.
    """

    name = "consistency"
    requires = ("image", "model")
    columns: ClassVar = {
        "consistency/mirrored_score": ("unsure when mirrored", "sure when mirrored"),
        "consistency/mirrored_iou": ("another box when mirrored", "the same box when mirrored"),
        "consistency/shrunk_score": ("unsure when shrunk", "sure when shrunk"),
        "consistency/shrunk_iou": ("another box when shrunk", "the same box when shrunk"),
        "consistency/brightened_score": ("unsure when brightened", "sure when brightened"),
        "consistency/brightened_iou": ("another box when brightened", "the same box when brightened"),
        "consistency/mean_score": ("lost in changed views", "found again in changed views"),
        "consistency/worst_score": ("lost in one of the changed views", "found again in every changed view"),
        "consistency/drop": ("gains in changed views", "its score drops in changed views"),
        "consistency/other_class": ("one class in all views", "another class in a changed view"),
    }

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        view, kept = frame.view, frame.instances
        if view is None or frame.rerun is None:
            raise ValueError("the frame has no view or cannot be run again: skip this signal")
        n = len(kept)
        if n == 0:
            return {name: kept.boxes.new_zeros(0, dtype=torch.float32) for name in self.columns}
        boxes, scores = view.to_view(kept.boxes.float()), kept.scores.float()
        broken = ~(boxes.isfinite().all(1) & scores.isfinite())
        boxes = boxes.nan_to_num(-1e6, -1e6, -1e6)
        found = [
            _partners(boxes, kept.labels, Candidates(restore(c.boxes.float()), c.scores.float(), c.labels))
            for c, restore in zip(frame.rerun(changed(view)), _restorers(view), strict=True)
        ]
        score, iou, other = (torch.stack(values, 1) for values in zip(*found, strict=True))
        table = torch.stack([
            *torch.stack([score, iou], 2).flatten(1).T,
            score.mean(1), score.amin(1),
            scores.logit(1e-3) - score.logit(1e-3).mean(1),
            other.amax(1),
        ])  # fmt: skip
        return dict(zip(self.columns, table.masked_fill(broken, nan), strict=True))


def changed(view: View) -> Tensor:
    """(3, 3, h, w) pixels as the view's: mirrored, shrunk, brightened."""
    pixels = view.pixels.float()
    mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (view.mean, view.std))
    small = interpolate(pixels[None], scale_factor=SHRINK, mode="bilinear", antialias=True)[0]
    shrunk = ((GREY - mean) / std).expand_as(pixels).clone()
    shrunk[:, : small.shape[1], : small.shape[2]] = small
    bright = (view.rgb() ** GAMMA - mean) / std
    return torch.stack([pixels.flip(2), shrunk, bright]).to(view.pixels.dtype)


def _restorers(view: View) -> tuple[_Affine, ...]:
    height, width = view.pixels.shape[1:]
    small = (int(width * SHRINK) / width, int(height * SHRINK) / height)
    return _Affine(mirror=width), _Affine(scale=small), _Affine()


class _Affine:
    """Boxes found in a changed view -> where they lie in the view."""

    def __init__(self, mirror: int | None = None, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        self.mirror, self.scale = mirror, scale

    def __call__(self, boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = (boxes / boxes.new_tensor(self.scale * 2)).unbind(1)
        if self.mirror is not None:
            x1, x2 = self.mirror - x2, self.mirror - x1
        return torch.stack([x1, y1, x2, y2], 1)


def _partners(boxes: Tensor, labels: Tensor, raw: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) score and IoU of the strongest overlapping raw box of the same class, and score of that of another."""
    if len(raw) == 0:
        zero = boxes.new_zeros(len(boxes))
        return zero, zero, zero
    iou = ious(boxes, raw.boxes)
    near, same = iou >= MATCH_IOU, labels[:, None] == raw.labels
    score, partner = (raw.scores * (near & same)).max(1)
    overlap = iou.gather(1, partner[:, None])[:, 0] * (score > 0)
    return score, overlap, (raw.scores * (near & ~same)).amax(1)
