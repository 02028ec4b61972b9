"""Boundary IoU: whether the outline of a mask is right, however large its interior is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

WIDTH = 0.02
"""Width of the boundary, as a share of the picture's diagonal: that of the paper."""


def boundary_iou(masks: Tensor, others: Tensor, width: float = WIDTH) -> Tensor:
    """IoU of the inner boundaries of pairs of masks (Cheng et al., CVPR 2021, equation 1).

    The inner boundary of a mask is what lies within `width` x diagonal pixels (at least one) of its outline, inside of
    it; the border of the picture is an outline, as in the authors' code. Of a small object it is the whole mask.

    Args:
        masks: (N, H, W) bool.
        others: (N, H, W) bool, in the same order.
        width: In (0, 1).

    Returns:
        (N,) float32 in [0, 1]; 0 where one mask is empty.

    Raises:
        ValueError: The shapes differ.
    """
    if masks.shape != others.shape or masks.ndim != 3:
        raise ValueError(f"masks must be pairs (N, H, W), got {tuple(masks.shape)} and {tuple(others.shape)}")
    height, width_px = masks.shape[1:]
    distance = max(1, round(width * float(height**2 + width_px**2) ** 0.5))
    first, second = (inner_boundary(m, distance) for m in (masks, others))
    union = (first | second).sum((1, 2))
    return (first & second).sum((1, 2)) / union.clamp(min=1)


def inner_boundary(masks: Tensor, distance: int) -> Tensor:
    """(N, H, W) bool: pixels of each mask within `distance` pixels (chessboard) of what is not the mask."""
    side = 2 * distance + 1
    outside = torch.nn.functional.pad((~masks).float()[:, None], [distance] * 4, value=1.0)
    near = max_pool2d(max_pool2d(outside, (side, 1), 1), (1, side), 1)[:, 0] > 0  # a square, one axis at a time
    return masks & near
