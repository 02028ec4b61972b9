"""Boxes -> square pictures of what is in them, all in one batch, on the image's device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .frame import View

SMALLEST = 24
"""An object whose visible box is less than this many view pixels across is too small to judge by its picture."""
GREY = (0.5, 0.5, 0.5)


def content(view: View, image_size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) of the image within the view, without padding; at least one pixel.

    Args:
        view: The pixels.
        image_size: (height, width) of the original; without it the whole view counts.
    """
    sides = []
    for axis, length in ((0, view.pixels.shape[2]), (1, view.pixels.shape[1])):
        start, stop = 0, length
        if image_size is not None:
            start = min(max(round(view.offset[axis]), 0), length - 1)
            stop = min(round(view.offset[axis] + image_size[1 - axis] * view.scale[axis]), length)
        sides.append((start, max(stop, start + 1)))
    (x1, x2), (y1, y2) = sides
    return x1, y1, x2, y2


def visible(
    view: View, boxes: Tensor, image_size: tuple[int, int] | None = None, ratio: float = 1.0
) -> Tensor:
    """(N, 4) xyxy in view pixels: what the image shows of each box; no size where the box is not finite or outside.

    Args:
        view: The pixels.
        boxes: (N, 4) xyxy in original pixels.
        image_size: As for `content`.
        ratio: The box is enlarged by this factor about its centre before it is clipped.
    """
    x1, y1, x2, y2 = content(view, image_size)
    boxes = boxes.to(view.pixels.device, torch.float32)
    inside = view.to_view(boxes)
    if ratio != 1:  # the way over the centre rounds
        center, half = (inside[:, :2] + inside[:, 2:]) / 2, (inside[:, 2:] - inside[:, :2]) * (ratio / 2)
        inside = torch.cat([center - half, center + half], 1)
    least, most = inside.new_tensor([x1, y1] * 2), inside.new_tensor([x2, y2] * 2)
    inside = torch.where(boxes.isfinite().all(1, keepdim=True), inside, least).clamp(least, most)
    return torch.cat([inside[:, :2], inside[:, :2].maximum(inside[:, 2:])], 1)


def too_small(view: View, boxes: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
    """(N,) bool: fewer than `SMALLEST` view pixels across, not finite, or outside the image."""
    seen = visible(view, boxes, image_size)
    return (seen[:, 2:] - seen[:, :2] < SMALLEST).any(1)


def crop(
    view: View,
    boxes: Tensor,
    size: int,
    *,
    ratio: float = 1.0,
    masks: Tensor | None = None,
    fill: tuple[float, ...] = GREY,
    image_size: tuple[int, int] | None = None,
    square: Literal["squash", "pad"] = "squash",
) -> Tensor:
    """(N, 3, size, size) float32 RGB in [0, 1] on the view's device, differentiable in the view's pixels.

    RoIAlign (He et al. 2017) over the pixels: each of the output is the mean of bilinear samples spread over its bin,
    at least one for a pixel there. That antialiases where the box is larger than `size` and interpolates where it is
    smaller. A box without visible size gives black.

    Args:
        view: The pixels.
        boxes: (N, 4) xyxy in original pixels.
        size: Side of the output.
        ratio: The box is enlarged by this factor about its centre, then clipped to the image.
        masks: (N, h, w) bool over the whole image; what lies outside an object's mask is filled.
        fill: RGB in [0, 1] of what is filled.
        image_size: (height, width) of the original, to tell it from padding; masks in another resolution need it.
        square: `squash` changes the aspect ratio of a box, `pad` fills beside its shorter side.

    Raises:
        ValueError: `masks` or `square` do not fit.
    """
    from torchvision.ops import roi_align

    if masks is not None and (masks.ndim != 3 or len(masks) != len(boxes)):
        raise ValueError(f"masks must be ({len(boxes)}, h, w) for {len(boxes)} boxes, not {tuple(masks.shape)}")
    if square not in ("squash", "pad"):
        raise ValueError(f"square must be 'squash' or 'pad', not {square!r}")
    x1, y1, x2, y2 = content(view, image_size)
    pixels = view.rgb(view.pixels[:, y1:y2, x1:x2])  # cut out, so that no sample reaches into the padding
    seen = visible(view, boxes, image_size, ratio)
    regions = _squares(seen) if square == "pad" else seen
    if square == "pad":
        pixels = torch.cat([pixels, torch.ones_like(pixels[:1])])  # how much of a bin lies in the image
    here = regions - regions.new_tensor([x1, y1] * 2)
    crops: Tensor = roi_align(pixels[None], [here], size, sampling_ratio=-1, aligned=True)

    filled = crops.new_tensor(fill).view(3, 1, 1)
    x, y = _centers(regions, size)
    if square == "pad":
        crops = crops[:, :3] / crops[:, 3:].clamp(min=1e-6)
        across, down = ((p >= seen[:, i, None]) & (p <= seen[:, i + 2, None]) for i, p in enumerate((x, y)))
        crops = torch.where((down[:, :, None] & across[:, None, :])[:, None], crops, filled)
    if masks is not None:
        on_mask = [
            ((points - view.offset[axis]) / view.scale[axis] * (length / image_size[1 - axis] if image_size else 1))
            .long().clamp(0, length - 1)
            for axis, points, length in ((0, x, masks.shape[2]), (1, y, masks.shape[1]))
        ]  # fmt: skip
        each = torch.arange(len(masks), device=crops.device)[:, None, None]
        inside = masks.to(crops.device)[each, on_mask[1][:, :, None], on_mask[0][:, None, :]]
        crops = torch.where(inside[:, None], crops, filled)
    return crops


def _squares(boxes: Tensor) -> Tensor:
    """(N, 4) the smallest squares about the boxes."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([center - half, center + half], 1)


def _centers(boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, size) x and (N, size) y of the centres of the bins."""
    steps = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    x, y = (boxes[:, i, None] + steps * (boxes[:, i + 2] - boxes[:, i])[:, None] for i in (0, 1))
    return x, y
