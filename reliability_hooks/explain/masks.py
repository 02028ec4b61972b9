"""Random masks over an image, evaluated where they are wanted and never kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from .places import hat

BLOCK = 64
"""Masks that are drawn at once: the same ones come in whatever batches, and more of them begin with the fewer."""


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


def steps(count: int, batch: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of batches of [0, count), none of which spans two blocks."""
    for block in range(0, count, BLOCK):
        end = min(block + BLOCK, count)
        yield from ((start, min(start + batch, end)) for start in range(block, end, batch))
