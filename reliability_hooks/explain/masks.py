"""Random masks over an image, evaluated where they are wanted and never kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Protocol

import torch
from torch import Tensor

from .places import hat

BLOCK = 32
"""Masks that are drawn at once: the same ones come in whatever batches, and more of them begin with the fewer."""


class Masks(Protocol):
    """B random masks."""

    def part(self, start: int, count: int) -> Masks:
        """Some of them."""

    def at(self, y: Tensor, x: Tensor) -> Tensor:
        """(B, len(y), len(x)) in [0, 1] at places in pixels of the image, each rising; 1 where it is kept."""


@dataclass(frozen=True, eq=False)
class GridMasks:
    """Random masks in [0, 1] over an image, 1 where it is kept (Petsiuk et al. 2018, RISE).

    A grid of Bernoulli(p), enlarged bilinearly to one cell more than the image on each axis, shifted at random by up
    to a cell.

    Attributes:
        size: (height, width) of the image.
        grids: (B, gh, gw) in {0, 1}.
        shifts: (B, 2) int64, y and x in pixels.
    """

    size: tuple[int, int]
    grids: Tensor
    shifts: Tensor

    @classmethod
    def draw(cls, count: int, size: tuple[int, int], grid: tuple[int, int], p: float, g: torch.Generator) -> GridMasks:
        """`count` masks; the generator is that of the CPU, so that every device sees the same ones."""
        grids = (torch.rand(count, *grid, generator=g) < p).float()
        cells = [ceil(side / n) for side, n in zip(size, grid, strict=True)]
        return cls(size, grids, torch.stack([torch.randint(cell, (count,), generator=g) for cell in cells], 1))

    def part(self, start: int, count: int) -> GridMasks:
        """Some of them."""
        return replace(self, grids=self.grids[start : start + count], shifts=self.shifts[start : start + count])

    def at(self, y: Tensor, x: Tensor) -> Tensor:
        """(B, len(y), len(x)) at places in pixels of the image, where a pixel k has its middle at k + .5."""
        device = y.device
        down, across = (
            hat((places + self.shifts[:, axis : axis + 1].to(device)) * (cells / enlarged) - 0.5, cells)
            for axis, (places, cells, side) in enumerate(zip((y, x), self.grids.shape[1:], self.size, strict=True))
            for enlarged in [(cells + 1) * ceil(side / cells)]
        )
        return down @ self.grids.to(device) @ across.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class NestedMasks:
    """Masks with finer cells about some objects: each rectangle has a grid of its own, a smaller one above a larger.

    Attributes:
        ground: Over the image.
        corners: (x1, y1) of each rectangle in pixels.
        above: Their masks, the larger first.
    """

    ground: GridMasks
    corners: Sequence[tuple[int, int]]
    above: Sequence[GridMasks]

    @classmethod
    def draw(
        cls, count: int, size: tuple[int, int], cells: tuple[int, int], p: float, boxes: Tensor, g: torch.Generator
    ) -> NestedMasks:
        """`count` masks with as many cells over the image as over each of the rectangles (n, 4) xyxy."""
        high, wide = size
        limits = boxes.new_tensor([wide, high, wide, high])
        inner = boxes.clamp(min=0).minimum(limits).nan_to_num().round().long().tolist()
        inner = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in inner if x2 > x1 and y2 > y1]
        inner.sort(key=lambda r: -r[2] * r[3])
        return cls(
            GridMasks.draw(count, size, cells, p, g), [r[:2] for r in inner],
            [GridMasks.draw(count, (h, w), cells, p, g) for _, _, w, h in inner],
        )  # fmt: skip

    def part(self, start: int, count: int) -> NestedMasks:
        """Some of them."""
        return NestedMasks(self.ground.part(start, count), self.corners, [m.part(start, count) for m in self.above])

    def at(self, y: Tensor, x: Tensor) -> Tensor:
        """See `Masks`."""
        out = self.ground.at(y, x)
        for (left, top), masks in zip(self.corners, self.above, strict=True):
            high, wide = masks.size
            rows, columns = (
                slice(*torch.searchsorted(places, places.new_tensor([low, low + side])).tolist())
                for places, low, side in ((y, top, high), (x, left, wide))
            )
            out[:, rows, columns] = masks.at(y[rows] - top, x[columns] - left)
        return out


def steps(count: int, batch: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of batches of [0, count), none of which spans two blocks."""
    for block in range(0, count, BLOCK):
        end = min(block + BLOCK, count)
        yield from ((start, min(start + batch, end)) for start in range(block, end, batch))
