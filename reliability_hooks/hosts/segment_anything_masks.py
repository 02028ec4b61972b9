"""What an automatic mask generator returns: its masks, the prompts that they came from, and keys that are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..evaluation.masks import as_rle
from ..instances import Instances
from .segment_anything_rows import Origin, Shown
from .segment_anything_tap import Pass

NEAR = 1.0
"""Pixels of the model's input within which a point is the same one: rounding, not a neighbour on the grid."""
ADDED = ("reliability", "expected_iou")


def to_masks(segmentations: Sequence[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(N, H, W) of masks in any of the generator's output modes: arrays, or run lengths packed or not."""
    if not segmentations:
        return np.zeros((0, *size), bool)
    if isinstance(segmentations[0], np.ndarray):
        return np.stack(segmentations).astype(bool)
    from pycocotools import mask as coco_mask

    packed = coco_mask.decode([as_rle(s, *size) for s in segmentations])
    decoded: NDArray[np.bool_] = packed.astype(bool).transpose(2, 0, 1)
    return decoded


def with_answers(result: Sequence[dict[str, Any]], instances: Instances) -> None:
    """Add to each dict `reliability` and `expected_iou` (floats, NaN where unknown), the interval and the verdict."""
    columns = [instances.column(name).tolist() for name in (*ADDED, "reliability_interval", "verdict")]
    for found, reliability, iou, interval, verdict in zip(result, *columns, strict=True):
        found.update(reliability=reliability, reliability_interval=interval, verdict=int(verdict), expected_iou=iou)


def origin_of(
    result: Sequence[dict[str, Any]], passes: Sequence[Pass], side: int, stretched: bool, device: torch.device
) -> Origin:
    """The answer of the decoder that each dict is: of equal predicted IoU, to the same point.

    A dict that fits no answer, or more than one, is left without (-1).
    """
    shown = []
    for found in result:
        x, y, w, h = (round(v) for v in found["crop_box"])
        shown.append(Shown.of((h, w), side, stretched, (float(x), float(y))))
    points = torch.tensor([found["point_coords"][0] for found in result], device=device).reshape(-1, 2)
    corner, scale = (points.new_tensor(pairs).reshape(-1, 2)
                     for pairs in ([s.corner for s in shown], [s.scale for s in shown]))  # fmt: skip
    asked = (points - corner) * scale
    ious = torch.tensor([found["predicted_iou"] for found in result], dtype=torch.float64, device=device)
    which, prompt, answer, theirs, clicked = _table(passes, device)
    same = theirs.double() == ious[:, None]
    same &= (clicked - asked[:, None]).abs().amax(2) <= NEAR
    one = same.sum(1) == 1
    at = same.float().argmax(1) if same.shape[1] else torch.zeros(len(result), dtype=torch.int64, device=device)
    return Origin(passes, torch.where(one, which[at], -1), prompt[at], answer[at], shown)


def _table(passes: Sequence[Pass], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pass, prompt, answer, predicted IoU and first point of all M answers of all passes."""
    parts = []
    for i, made in enumerate(passes):
        b, c = made.ious.shape
        at = torch.arange(b * c, device=device)
        points = made.prompts.points
        clicked = made.ious.new_full((b, 2), torch.nan) if points is None else points[:, 0]
        parts.append((torch.full_like(at, i), at // c, at % c, made.ious.flatten(), clicked.repeat_interleave(c, 0)))
    which, prompt, answer, ious, clicked = (torch.cat(part) for part in zip(*parts, strict=True))
    return which, prompt, answer, ious, clicked
