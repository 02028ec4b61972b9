"""The raw rows of a DETR-like model: queries with a box or a mask each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..instances import Head
from .last_layer import of_linear
from .queries import Pass
from .rows import RawRows

HEADS: Mapping[str, Head] = {
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deformable_detr", "conditional_detr"), "sigmoid"),
    **dict.fromkeys(("detr", "mask2former", "maskformer"), "softmax+background"),
}
"""`config.model_type` -> how its logits become scores; the background ("no object") is the last column."""
MASK_GRID = {"mask2former": (384, 384)}
"""To what the processor resizes mask logits before it cuts them at 0; others are cut as they are."""


def raw_rows(
    seen: Pass, i: int, size: tuple[int, int], dtype: torch.dtype = torch.float32, grid: Tensor | None = None
) -> RawRows:
    """A row is a query, with one box; its scores are the processor's.

    Args:
        seen: The pass.
        i: Index in the batch.
        size: (height, width) to which boxes are scaled.
        dtype: In which the processor scales them.
        grid: `mask_logits` of the image, where they are known already.
    """
    from torchvision.ops import box_convert

    logits, head = seen.logits[i], HEADS[seen.kind]
    scores = logits.sigmoid() if head == "sigmoid" else without_background(logits.softmax(-1))
    boxes = seen.boxes
    decode: Callable[[Tensor, Tensor], Tensor]
    if boxes is not None:
        corners: Tensor = box_convert(boxes[i], "cxcywh", "xyxy")
        scale = torch.tensor([size[1], size[0]] * 2, dtype=dtype, device=logits.device)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return corners[rows] * scale
    else:
        grid = mask_logits(seen, i) if grid is None else grid
        scores = scores * certainty(grid)[:, None]
        around = boxes_of(grid > 0, size)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return around[rows]

    hidden = seen.hidden
    return RawRows(
        scores=scores, logits=logits, decode=decode, head=head,
        background=None if head == "sigmoid" else logits.shape[1] - 1,
        features=None if hidden is None else lambda rows, _: hidden[i][rows],
        classifier=_classifier(seen, i),
    )


def _classifier(seen: Pass, i: int) -> Any:
    """The layer whose output the logits are; D-FINE's, which adds a quality to it, is none."""
    for layer, given, returned in reversed(seen.layers):
        if returned.shape == seen.logits.shape and torch.equal(returned, seen.logits):
            background = -1 if HEADS[seen.kind] == "sigmoid" else layer.out_features - 1
            return lambda rows: of_linear(layer, given[i][rows], background)
    return None


def without_background(scores: Tensor) -> Tensor:
    """Scores with 0 in the last column, which can never be detected."""
    return torch.cat([scores[..., :-1], torch.zeros_like(scores[..., -1:])], -1)


def mask_logits(seen: Pass, i: int) -> Tensor:
    """(Q, h, w) as the processor cuts them at 0; they are stretched over the whole image, as the processor does."""
    assert seen.masks is not None
    grid = MASK_GRID.get(seen.kind)
    if grid is None:
        return seen.masks[i]
    return interpolate(seen.masks[i][None], size=grid, mode="bilinear", align_corners=False)[0]


def certainty(logits: Tensor) -> Tensor:
    """(Q,) mean probability inside of each mask (Q, h, w), by which the processor multiplies the class score."""
    inside = (logits > 0).float().flatten(1)
    return (logits.sigmoid().flatten(1) * inside).sum(1) / (inside.sum(1) + 1e-6)


def boxes_of(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 4) float32 xyxy around masks (N, h, w) bool that are stretched over (height, width); 0 for an empty one."""
    ends = []
    for seen, length in ((masks.any(1), size[1]), (masks.any(2), size[0])):
        n = seen.shape[1]
        at = torch.arange(n, device=masks.device)
        first = torch.where(seen, at, n).amin(1)
        last = torch.where(seen, at + 1, 0).amax(1)
        ends.append((torch.minimum(first, last) * (length / n), last * (length / n)))
    return torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], 1).float()
