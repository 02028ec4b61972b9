"""Distance to the k-th nearest known object."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Info, Rows, Score, column
from .reservoir import Reservoir

K = 50
CAPACITY = 50_000
CELLS = 1 << 25
"""Similarities held at once: 128 MB."""
GROUP = 32


def knn_distance(z: Tensor, bank: Tensor, k: int = K, chunk: int | None = None) -> Tensor:
    """(N,) Euclidean distance of each row to its k-th nearest row of the bank (Sun et al. 2022, eq. 3).

    Exhaustive. The k-th nearest is found by matrix products, their rounding kept out of the distance itself.

    Args:
        z: (N, D).
        bank: (M, D) of unit length, M >= 1.
        k: Rank of the neighbour, 1 for the nearest; M where the bank has fewer.
        chunk: Rows at once; by default as many as make `CELLS` similarities.

    Raises:
        ValueError: An empty bank, or k < 1.
    """
    m = len(bank)
    if m == 0 or k < 1:
        raise ValueError(f"needs k >= 1 and a bank that is not empty, not k = {k} and {m} rows")
    k = min(k, m)
    step = min(chunk or max(1, CELLS // m), len(z))
    held, out = z.new_empty(step, m), z.new_empty(len(z))  # memory that is new each time costs as much as the products
    for i in range(0, len(z), max(step, 1)):
        part = z[i : i + step]
        near = torch.mm(part, bank.T, out=held[: len(part)])
        torch.linalg.vector_norm(part - bank[_kth_largest(near, k)], dim=1, out=out[i : i + step])
    return out


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """(n,) column of the k-th largest of each row.

    The k largest lie in the k groups of columns with the largest maxima, which a row of 100,000 tells far sooner than
    it can be sorted in part.
    """
    n, m = values.shape
    groups = m // GROUP
    if groups < 2 * k:
        return values.topk(k).indices[:, -1]
    end = groups * GROUP
    best = values[:, :end].view(n, GROUP, groups).amax(1).topk(k, sorted=False).indices
    steps = torch.arange(0, end, groups, device=values.device)
    rest = torch.arange(end, m, device=values.device).expand(n, -1)
    at = torch.cat([(best[:, None] + steps[:, None]).flatten(1), rest], 1)
    return at.gather(1, values.gather(1, at).topk(k).indices[:, -1:]).squeeze(1)


class KNearest(Score):
    """Distance of the unit-length features to the 50th nearest of a sample of known objects; to the last of fewer.

    Learnt: a uniform sample of at most 50,000 known objects.
    """

    name = "ood/knn"
    info = Info(
        "KNN", "Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors",
        "features; learns a sample of them", "negated",
    )
    evidence = ("features",)
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self.sample = Reservoir(CAPACITY)

    def learn(self, rows: Rows) -> None:
        (z,) = rows.require("features")
        self.sample.update(normalize(z, dim=1))

    def finish(self) -> None:
        bank = self.sample.rows
        if len(bank) == 0:
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        self.tensors, self.sample = {"bank": bank}, Reservoir(CAPACITY)

    def score(self, rows: Rows) -> Tensor:
        (z,) = rows.require("features")
        return knn_distance(normalize(z, dim=1), self.learnt("bank", z))
