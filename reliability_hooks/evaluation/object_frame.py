"""Maps in the frame of an object: what lies on and about it in cells that grow with its box."""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 3.0
"""Sides of the frame, in sides of the box, which lies in its middle."""


def in_frame(maps: Tensor, boxes: Tensor, image_size: tuple[int, int], cells: int, reach: float = REACH) -> Tensor:
    """Sums of maps over the cells of each object's frame, exact for maps that are constant within their pixels.

    Args:
        maps: (N, h, w) float over the whole image, at any resolution.
        boxes: (N, 4) xyxy in pixels of the image.
        image_size: (height, width) of the image.
        cells: On each side of the frame.
        reach: Sides of the frame in sides of the box.

    Returns:
        (N, cells, cells) sums over the map's pixels, each counted by its share in the cell; nothing outside the image.
    """
    h, w = maps.shape[1:]
    down = _shares(boxes[:, 1], boxes[:, 3], cells, reach, h, image_size[0])
    across = _shares(boxes[:, 0], boxes[:, 2], cells, reach, w, image_size[1])
    return down @ maps.float() @ across.transpose(1, 2)


def cover(boxes: Tensor, image_size: tuple[int, int], cells: int, reach: float = REACH) -> Tensor:
    """(N, cells, cells) in [0, 1]: the share of each cell that lies in the image."""
    parts = []
    for low, high, length in ((1, 3, image_size[0]), (0, 2, image_size[1])):
        edges = _edges(boxes[:, low], boxes[:, high], cells, reach)
        inside = edges.clamp(0, length).diff(dim=1) / edges.diff(dim=1).clamp(min=1e-6)
        parts.append(inside.clamp(0, 1))
    return parts[0][:, :, None] * parts[1][:, None]


def to_image(rect: tuple[float, float, float, float], boxes: Tensor) -> Tensor:
    """(N, 4) xyxy pixels of a rectangle given in units of the box, whose corners are (0, 0) and (1, 1)."""
    start, sides = boxes[:, :2].repeat(1, 2), (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return start + sides * boxes.new_tensor(rect)


def window(box: tuple[float, float, float, float], reach: float = REACH) -> tuple[float, float, float, float]:
    """The whole frame of a box, xyxy pixels."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half, tall = (box[2] - box[0]) / 2 * reach, (box[3] - box[1]) / 2 * reach
    return x - half, y - tall, x + half, y + tall


def _edges(low: Tensor, high: Tensor, cells: int, reach: float) -> Tensor:
    steps = torch.linspace(-reach / 2, reach / 2, cells + 1, device=low.device)
    return ((low + high) / 2)[:, None] + (high - low).clamp(min=1e-3)[:, None] * steps


def _shares(low: Tensor, high: Tensor, cells: int, reach: float, count: int, length: int) -> Tensor:
    """(N, cells, count): the share of each of `count` pixels of a map in each cell, along one axis of `length`."""
    edges = _edges(low.float(), high.float(), cells, reach) * (count / length)
    pixel = torch.arange(count, device=low.device, dtype=edges.dtype)
    start, end = edges[:, :-1, None], edges[:, 1:, None]
    return (torch.minimum(end, pixel + 1) - torch.maximum(start, pixel)).clamp(0, 1)
