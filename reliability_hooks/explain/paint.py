"""Random masks over the surroundings of each object, painted into one picture, and what is changed where they are 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..evaluation.fills import fill_of
from .masks import BLOCK, GridMasks, steps
from .places import centres

CONTEXT = 1.5
"""Side of what the masks of an object cover, in boxes."""
SMALLEST = 16
"""Of it in pixels, where the image has as many."""
LATTICE = 4
"""Places of a map in a cell of the grid."""

#: masks (B, H, W) -> (1 or B, 3, H, W) what stands in the place of the picture where they are 1.
Brush = Callable[[Tensor], Tensor]


def windows_of(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 4) int64 xyxy, each box (N, 4) with its surroundings, within an image of (height, width), not empty."""
    most = boxes.new_tensor([size[1], size[0]])
    boxes = boxes.nan_to_num(0.0, 0.0, 0.0)
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).clamp(min=0).minimum(most)
    half = ((boxes[:, 2:] - boxes[:, :2]) * CONTEXT).clamp(min=SMALLEST) / 2
    low = (middle - half).floor().clamp(min=0).minimum(most - 1)
    return torch.cat([low, (middle + half).ceil().minimum(most).maximum(low + 1)], 1).long()


def falling(windows: Tensor) -> list[int]:
    """Rows from the largest to the smallest: the order of painting, so that the smaller one lies on top."""
    order: list[int] = (windows[:, 2:] - windows[:, :2]).prod(1).argsort(descending=True, stable=True).tolist()
    return order


def painted(
    windows: Tensor, size: tuple[int, int], grid: int, p: float, count: int, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of masks (b, H, W) in [0, 1] over the image, and (b, N, L, L) what of them lies at each map's places.

    Where windows overlap, the smaller one's mask counts, and every map is told what was really painted.

    Args:
        windows: (N, 4) int64 xyxy.
        size: (height, width) of the image.
        grid: Cells across and down a window.
        p: Probability that a cell is 1.
        count: Masks.
        batch: Of them at once.
        seed: The same masks come in whatever batches.
    """
    g = torch.Generator().manual_seed(seed)
    order, edges = falling(windows), windows.tolist()
    at = torch.stack([_pixels(windows[:, k], windows[:, k + 2], grid * LATTICE) for k in (1, 0)])
    for start, stop in steps(count, batch):
        if start % BLOCK == 0:
            block = [GridMasks.draw(BLOCK, (y2 - y1, x2 - x1), (grid, grid), p, g) for x1, y1, x2, y2 in edges]
        masks = torch.zeros(stop - start, *size)
        for k in order:
            x1, y1, x2, y2 = edges[k]
            part = block[k].part(start % BLOCK, stop - start)
            masks[:, y1:y2, x1:x2] = part.at(centres(y2 - y1, y2 - y1), centres(x2 - x1, x2 - x1))
        yield masks, masks[:, at[0][:, :, None], at[1][:, None]]


def mosaic(image: np.ndarray, versions: Sequence[np.ndarray], windows: Tensor) -> np.ndarray:
    """The image, each object's window as in its own version (H, W, 3); where they overlap, the smaller one's."""
    out: np.ndarray = image.copy()
    for k in falling(windows):
        x1, y1, x2, y2 = windows[k].tolist()
        out[y1:y2, x1:x2] = versions[k][y1:y2, x1:x2]
    return out


def mended(version: np.ndarray) -> Brush:
    """Another version (H, W, 3) of the picture."""
    pixels = as_pixels(version)[None]
    return lambda masks: pixels


def hidden(image: np.ndarray, fill: str) -> Brush:
    """A fill of `evaluation.fills` where a mask is above one half."""
    colours = fill_of(fill)[1](as_pixels(image))
    return lambda masks: colours(masks > 0.5)


def blend(image: np.ndarray, masks: Tensor, brush: Brush) -> list[np.ndarray]:
    """(H, W, 3) uint8 pictures, `brush` to the degree of masks (B, H, W)."""
    pixels = as_pixels(image)
    mixed = pixels + (brush(masks) - pixels) * masks[:, None]
    return list((mixed * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy())


def as_pixels(image: np.ndarray) -> Tensor:
    """(3, H, W) float32 in [0, 1] of (H, W, 3) uint8."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


def _pixels(low: Tensor, high: Tensor, count: int) -> Tensor:
    """(N, count) int64, the pixels in the middle of equal cells of each [low, high)."""
    return (low[:, None] + centres(count, 1.0) * (high - low)[:, None]).long().minimum(high[:, None] - 1)
