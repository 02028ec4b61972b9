"""A sample of a stream in which rare classes are not lost."""

from __future__ import annotations

import torch
from torch import Tensor


class BalancedSample:
    """At most `capacity` rows of a stream, a uniform sample of each class; of frequent classes no more than needed.

    As class-balancing reservoir sampling (Chrysakis & Moens 2020), with a whole batch taken in at once: each row draws
    a random number, and those that stand highest among the rows of their class are kept. The share of a class only
    shrinks as rows come, so that no row is missed that was dropped before; the same rows in the same order give the
    same sample, however they are batched. Rows are held in float16, values out of its range at its ends.

    Args:
        capacity: Rows kept, at least 1.
        size: Bytes held at most; fewer rows than `capacity` where they are large, but always one.
        seed: Of the sample.
    """

    def __init__(self, capacity: int, size: int, seed: int = 0) -> None:
        self.capacity, self.size = capacity, size
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._classes = torch.zeros(0, dtype=torch.int64)
        self._kept = torch.zeros(0, 0, dtype=torch.float16)

    def __len__(self) -> int:
        return len(self._keys)

    def update(self, rows: Tensor, classes: Tensor) -> None:
        """Take in (n, D) rows and their (n,) int64 classes.

        Raises:
            ValueError: Another D than before.
        """
        if len(rows) == 0:
            return
        if self._kept.numel() and rows.shape[1] != self._kept.shape[1]:
            raise ValueError(f"rows must be (n, {self._kept.shape[1]}), not {tuple(rows.shape)}")
        if not self._kept.numel():
            self.capacity = max(1, min(self.capacity, self.size // (2 * rows.shape[1])))
            with torch.inference_mode(False):  # or rows of a later call, made outside of that mode, could not be put in
                self._kept = torch.empty(self.capacity, rows.shape[1], dtype=torch.float16)  # taken up as it fills
        drawn = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
        keys, all_classes = torch.cat([self._keys, drawn]), torch.cat([self._classes, classes.cpu()])
        stays, had = balanced(all_classes, keys, self.capacity), len(self._keys)
        new = stays[had:].nonzero().squeeze(1)
        free = torch.cat([(~stays[:had]).nonzero().squeeze(1), torch.arange(had, self.capacity)])[: len(new)]
        count = int(stays.sum())
        most = torch.finfo(torch.float16).max
        self._kept[free] = rows[new.to(rows.device)].detach().float().clamp(-most, most).to("cpu", torch.float16)
        self._keys = torch.cat([self._keys, drawn.new_zeros(count - had)]).index_copy(0, free, drawn[new])
        self._classes = torch.cat([self._classes, classes.new_zeros(count - had, device="cpu")])
        self._classes = self._classes.index_copy(0, free, classes.cpu()[new])

    @property
    def rows(self) -> Tensor:
        """(len, D) float16 on the CPU; a view, in no particular order."""
        return self._kept[: len(self._keys)]

    @property
    def classes(self) -> Tensor:
        """(len,) int64 of `rows`."""
        return self._classes


def balanced(classes: Tensor, keys: Tensor, capacity: int) -> Tensor:
    """(n,) bool: the `capacity` rows that stand highest by key among the rows of their own class.

    Args:
        classes: (n,) int64.
        keys: (n,), decides between rows of different classes that stand equally high.
        capacity: At least 0; all rows where there are no more.
    """
    stays = torch.ones(len(keys), dtype=torch.bool)
    if len(keys) <= capacity:
        return stays
    order = keys.argsort(descending=True)
    order = order[classes[order].argsort(stable=True)]
    _, counts = torch.unique_consecutive(classes[order], return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank = torch.empty_like(classes).index_copy_(0, order, torch.arange(len(keys)) - first)
    by_key = keys.argsort(descending=True)
    best = by_key[rank[by_key].argsort(stable=True)]
    stays[best[capacity:]] = False
    return stays
