"""How sure the network is of each pixel of a mask: the logits inside, outside and along the outline."""

from __future__ import annotations

from math import nan
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..frame import Frame
from .base import Signal

OFFSET = 1.0
"""Logits nearer to 0 than this are undecided; segment_anything's `stability_score_offset`."""
SURE = 3.0
"""A logit above this is sure: a probability of .95."""
SIDE = 128
"""Pieces and holes are counted at every n-th cell of a larger grid: bounds the cost."""


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """(..., h, w) bool and the same -> (...) intersection over union; NaN where both are empty."""
    return (a & b).flatten(-2).sum(-1) / (a | b).flatten(-2).sum(-1)


class MaskQuality(Signal):
    """Statistics of each mask's logits, on the grid that the network makes; cells beyond the image do not count.

    Inside means a logit above 0, the outline all pairs of neighbouring cells (4-neighbourhood) of which one is inside.

    Columns (N,): `stability` IoU of the masks cut at +1 and at -1, the stability score of segment_anything (Kirillov
    et al. 2023, section 5); `undecided` log(1 + cells with |logit| < 1 / cells inside); `inside` mean logit inside;
    `sure` share of the cells inside with a logit above 3; `soft_iou` IoU of the mask with its own probabilities, sum p
    inside / (cells inside + sum p outside): what one expects where they are right; `sharpness` mean step of the logit
    across the outline; `pieces` log of the number of pieces (4-connected); `fragmented` share of the mask outside its
    largest piece; `holes` log(1 + holes); `share` share of the image that it covers.

    Undefined, hence NaN: the whole row where the logits are not known; all but `stability`, `holes` and `share` of an
    empty mask; `stability` where no logit is above -1; `sharpness` without an outline.
    """

    name = "mask_quality"
    requires = ("mask_logits",)
    columns: ClassVar = {
        "mask_quality/stability": ("mask changes with its threshold", "mask is stable under its threshold"),
        "mask_quality/undecided": ("pixels are decided", "many undecided pixels"),
        "mask_quality/inside": ("pixels inside are unsure", "pixels inside are sure"),
        "mask_quality/sure": ("few pixels inside are sure", "most pixels inside are sure"),
        "mask_quality/soft_iou": ("pixel probabilities spread beyond the mask", "pixel probabilities fit the mask"),
        "mask_quality/sharpness": ("soft outline", "sharp outline"),
        "mask_quality/pieces": ("mask in one piece", "mask in many pieces"),
        "mask_quality/fragmented": ("hardly anything outside the main piece", "mask falls apart"),
        "mask_quality/holes": ("mask without holes", "mask with holes"),
        "mask_quality/share": ("mask covers little of the image", "mask covers much of the image"),
    }

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if frame.mask_logits is None:
            raise ValueError("the frame has no mask logits: skip this signal")
        logits = frame.mask_logits().float()
        unknown = logits.isnan().flatten(1).any(1)
        logits = torch.where(logits.isnan(), -torch.inf, logits)
        inside, shown = logits > 0, logits > -torch.inf
        area = inside.flatten(1).sum(1).float()
        some = torch.where(area > 0, area, nan)
        undecided = (logits.abs() < OFFSET).flatten(1).sum(1)
        p = logits.sigmoid()
        pieces, largest, holes = _pieces(inside)
        values = torch.stack([
            overlap(logits > OFFSET, logits > -OFFSET),
            (undecided / some).log1p(),
            torch.where(inside, logits, 0.0).flatten(1).sum(1) / some,
            (logits > SURE).flatten(1).sum(1) / some,
            (p * inside).flatten(1).sum(1) / (some + (p * ~inside).flatten(1).sum(1)),
            _sharpness(logits, inside, shown),
            torch.where(pieces > 0, pieces, nan).log(),
            1 - largest,
            holes.float().log1p(),
            area / shown.flatten(1).sum(1),
        ])  # fmt: skip
        return dict(zip(self.columns, values.masked_fill(unknown, nan), strict=True))


def _sharpness(logits: Tensor, inside: Tensor, shown: Tensor) -> Tensor:
    """(N,) mean difference of the logits of neighbours on either side of the outline."""
    total, count = logits.new_zeros(len(logits)), logits.new_zeros(len(logits))
    for a, b in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        # one inside and one outside, both in the image; each pair is met once in either direction
        for first, second in (((..., a, slice(None)), (..., b, slice(None))), ((..., a), (..., b))):
            edge = inside[first] & ~inside[second] & shown[second]
            total += torch.where(edge, logits[first] - logits[second], 0.0).flatten(1).sum(1)
            count += edge.flatten(1).sum(1)
    return total / count


def _pieces(inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) number of pieces, cells of the largest one, and number of holes."""
    step = max(1, -(-max(inside.shape[1:]) // SIDE))
    mask = inside[:, ::step, ::step].cpu()
    sizes, owner = _components(mask, diagonal=False)
    number = torch.bincount(owner, minlength=len(mask))
    largest = torch.zeros(len(mask)).scatter_reduce(0, owner, sizes, "amax") / mask.flatten(1).sum(1)
    # what lies around hangs together beyond the grid: the one piece of it that is no hole
    _, around = _components(pad(~mask, (1, 1, 1, 1), value=True), diagonal=True)
    holes = torch.bincount(around, minlength=len(mask)) - 1
    return number.to(inside.device), largest.to(inside.device), holes.to(inside.device)


def _components(masks: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Cells in each of the L connected components of (N, h, w) masks, and the mask that it belongs to, both (L,)."""
    from scipy.ndimage import generate_binary_structure, label

    plane = generate_binary_structure(2, 2 if diagonal else 1)
    structure = np.stack([np.zeros_like(plane), plane, np.zeros_like(plane)])  # no mask touches the next one
    found, count = label(masks.numpy(), structure)
    labels = torch.from_numpy(found).long().flatten(1)
    owner = torch.zeros(count + 1, dtype=torch.int64)
    owner[labels.flatten()] = torch.arange(len(masks)).repeat_interleave(labels.shape[1])
    return torch.bincount(labels.flatten(), minlength=count + 1)[1:].float(), owner[1:]
