"""A uniform sample of a stream."""

from __future__ import annotations

import torch
from torch import Tensor


class Reservoir:
    """A uniform sample without replacement of all rows seen, in constant memory (Vitter 1985).

    Each row draws a random number and the rows with the largest are kept: the same law as Vitter's algorithm R, with a
    whole batch taken in at once. The same rows in the same order give the same sample, however they are batched.

    Args:
        capacity: Rows kept, at least 1.
        seed: Of the sample.

    Attributes:
        seen: Rows offered so far.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.seen = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._kept = torch.zeros(0, 0)

    @torch.inference_mode(False)  # a sample begun in a detector's inference mode goes on in any other
    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take in (n, D) rows.

        Raises:
            ValueError: Not (n, D), or another D than before.
        """
        if rows.ndim != 2 or (self._kept.numel() and rows.shape[1] != self._kept.shape[1]):
            raise ValueError(f"rows must be (n, {self._kept.shape[1] or 'D'}), not {tuple(rows.shape)}")
        if len(self._kept) == 0:
            self._kept = torch.empty(self.capacity, rows.shape[1])  # the memory is taken up as it fills
        self.seen += len(rows)
        keys = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)

        room = self.capacity - len(self._keys)
        if room:
            start, first = len(self._keys), rows[:room]
            self._kept[start : start + len(first)] = first.detach().to("cpu", torch.float32)
            self._keys = torch.cat([self._keys, keys[:room]])
            rows, keys = rows[room:], keys[room:]
        if len(rows) == 0:
            return
        better = (keys > self._keys.min()).nonzero().squeeze(1)
        if len(better) == 0:
            return
        both = torch.cat([self._keys, keys[better]])
        stays = torch.zeros(len(both), dtype=torch.bool)
        stays[both.topk(self.capacity).indices] = True
        free = (~stays[: self.capacity]).nonzero().squeeze(1)
        new = better[stays[self.capacity :]]
        self._keys[free] = keys[new]
        self._kept[free] = rows[new.to(rows.device)].detach().to("cpu", torch.float32)

    @property
    def rows(self) -> Tensor:
        """(min(seen, capacity), D) float32 on the CPU, a copy; in no particular order."""
        return self._kept[: len(self._keys)].clone()
