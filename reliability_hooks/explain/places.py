"""Small maps, each on a rectangle of the view, brought to the pixels of the image: bilinear, by two products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..frame import View

FAR = 1e-12
"""Weight of a Gaussian below which it is 0."""


def hat(places: Tensor, count: int) -> Tensor:
    """(..., P, count) weights of linear interpolation at (..., P) places between samples at 0 .. count - 1."""
    steps = torch.arange(count, device=places.device, dtype=places.dtype)
    return (1 - (places.clamp(0, count - 1)[..., None] - steps).abs()).clamp(min=0)


def bell(side: int, length: float, like: Tensor) -> Tensor:
    """(side, side) exp(-d^2 / 2 l^2) of cells d apart, l a share of the side; of the kind of `like`.

    Exactly 0 far away, as denormal numbers make products several times as slow.
    """
    at = torch.arange(side, dtype=like.dtype, device=like.device) / side
    near = (-0.5 * ((at[:, None] - at) / length) ** 2).exp()
    return near * (near > FAR)


def centres(count: int, length: float, device: torch.device | None = None) -> Tensor:
    """(count,) the middles of equal cells of [0, length]."""
    return (torch.arange(count, device=device) + 0.5) * (length / count)


def resample(
    values: Tensor, boxes: Tensor, view: View, image_size: tuple[int, int], size: tuple[int, int] | None = None
) -> Tensor:
    """(N, height, width) float32 over the original image; 0 outside of the boxes.

    Args:
        values: (N, h, w).
        boxes: (N, 4) or (1, 4) xyxy in view pixels, what each map covers.
        view: Where the image lies in it.
        image_size: (height, width) of the original image.
        size: (height, width) of the result; that of the image without it.
    """
    n, h, w = values.shape
    x1, y1, x2, y2 = view.to_image(boxes.float()).expand(n, 4)[:, :, None].unbind(1)

    def weights(axis: int, low: Tensor, high: Tensor, cells: int) -> Tensor:
        places = centres((size or image_size)[axis], image_size[axis], values.device)
        relative = (places - low) / (high - low).clamp(min=1e-6)
        inside = (relative >= 0) & (relative <= 1)  # false where a box is not finite
        return hat(relative.nan_to_num() * cells - 0.5, cells) * inside[:, :, None]

    return weights(0, y1, y2, h) @ values.float() @ weights(1, x1, x2, w).transpose(1, 2)


def pooled(
    values: Tensor, boxes: Tensor, view: View, image_size: tuple[int, int], lattice: tuple[int, int]
) -> Tensor:
    """(N, *lattice) as `resample`, each place the mean over its area."""
    fine = resample(values, boxes, view, image_size, (4 * lattice[0], 4 * lattice[1]))
    return interpolate(fine[:, None], lattice, mode="area")[:, 0]


def softened(maps: Tensor, reach: float) -> Tensor:
    """(..., h, w) under a Gaussian whose standard deviation is a share of a side, with what leaves kept inside."""
    down, across = (bell(side, reach, maps) for side in maps.shape[-2:])
    return (down / down.sum(1, keepdim=True)) @ maps @ (across / across.sum(1, keepdim=True)).mT


def smoothed(values: Tensor, boxes: Tensor, reach: Tensor) -> Tensor:
    """(N, h, w) under a Gaussian for each map, with what leaves at an edge kept inside.

    Args:
        values: (N, h, w).
        boxes: (N, 4) or (1, 4) xyxy in view pixels, what each map covers.
        reach: (N, 2) standard deviations across and down, in view pixels.
    """
    h, w = values.shape[1:]
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    across, down = (
        (-(steps[:, None] - steps).square() / (2 * deviation.clamp(min=1e-3).square())[:, None, None]).exp()
        for steps, deviation in (
            (torch.arange(count, device=values.device), reach[:, axis] * count / sides[:, axis])
            for axis, count in enumerate((w, h))
        )
    )
    return down @ values @ across.transpose(1, 2) / (down.sum(2)[:, :, None] * across.sum(2)[:, None])
