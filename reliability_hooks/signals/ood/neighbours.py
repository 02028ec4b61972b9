"""Exact search of the k-th nearest unit vector: of the whole bank, or of the clusters that can hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

CELLS = 1 << 25
"""Similarities held at once: 128 MB."""
GROUP = 32
CLUSTERS = 64
PROBE = 1_024
"""Rows near a query that tell how near its k-th neighbour is at least; also what a cluster must have on average."""
SAMPLE, STEPS = 20_000, 3
"""Rows and steps of the k-means that finds the clusters."""
TRIED = 256
"""Rows of the sample that tell how much of the bank a partition would skip."""
SLACK = 4e-3
"""Radians: more than rounding takes from the difference of two angles; that of nearly equal vectors is ill-conditioned
(an error of 1e-6 in the cosine is 1.4e-3)."""


def knn_distance(
    z: Tensor, bank: Tensor, k: int, chunk: int | None = None, spans: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """(N,) Euclidean distance of each row to its k-th nearest row of the bank (Sun et al. 2022, eq. 3).

    Exhaustive. The k-th nearest is found by matrix products, their rounding kept out of the distance itself.

    Args:
        z: (N, D).
        bank: (M, D) of unit length, M >= 1.
        k: Rank of the neighbour, 1 for the nearest; M where the bank has fewer.
        chunk: Rows at once; by default as many as make `CELLS` similarities.
        spans: (start, end) of the rows of the bank that are searched; all by default.

    Raises:
        ValueError: An empty bank, or k < 1.
    """
    spans = [(0, len(bank))] if spans is None else spans
    m = sum(end - start for start, end in spans)
    if m == 0 or k < 1:
        raise ValueError(f"needs k >= 1 and a bank that is not empty, not k = {k} and {m} rows")
    k = min(k, m)
    step = min(chunk or max(1, CELLS // m), len(z))
    held, out = z.new_empty(step, m), z.new_empty(len(z))  # memory that is new each time costs as much as the products
    rows = torch.cat([torch.arange(*span, device=z.device) for span in spans])
    for i in range(0, len(z), max(step, 1)):
        part = z[i : i + step]
        near, at = held[: len(part)], 0
        for start, end in spans:
            torch.mm(part, bank[start:end].T, out=near[:, at : at + end - start])
            at += end - start
        torch.linalg.vector_norm(part - bank[rows[_kth_largest(near, k)]], dim=1, out=out[i : i + step])
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


@dataclass(frozen=True, eq=False)
class Partition:
    """A bank in clusters of like directions, for an exact search that skips those which cannot hold a neighbour.

    The angle between a query and any row of a cluster is at least that to its centre less the cluster's radius.
    Features of well-parted classes are searched in the own class alone. Where little can be skipped, as among features
    without such classes, there is one cluster and the search is exhaustive.

    Attributes:
        bank: (M, D) rows of unit length (or 0), cluster after cluster.
        centres: (C, D) of unit length (or 0).
        radii: (C,) largest angle between the centre and a row of its cluster, in radians.
        starts: (C + 1,) int64: the rows of cluster c are `starts[c]` to `starts[c + 1]`.
    """

    bank: Tensor
    centres: Tensor
    radii: Tensor
    starts: Tensor

    @classmethod
    def of(cls, bank: Tensor, k: int, clusters: int = CLUSTERS) -> Partition:
        """For the k-th neighbour: spherical k-means on a sample (Dhillon & Modha 2001), kept where it helps the sample.

        Raises:
            ValueError: An empty bank, or k < 1.
        """
        if len(bank) == 0 or k < 1:
            raise ValueError(f"needs k >= 1 and a bank that is not empty, not k = {k} and {len(bank)} rows")
        draw = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        sample = bank[draw.to(bank.device)]
        centres = sample[: max(1, min(clusters, len(bank) // PROBE if k <= PROBE else 1))]
        for _ in range(STEPS):
            own = (sample @ centres.T).argmax(1)
            centres = normalize(torch.zeros_like(centres).index_add_(0, own, sample), dim=1)
        cosine, own = (bank @ centres.T).max(1)
        radii = cosine.new_zeros(len(centres)).scatter_reduce_(0, own, _angle(cosine), "amax")
        ends = own.bincount(minlength=len(centres)).cumsum(0)
        made = cls(bank[own.argsort(stable=True)], centres, radii, torch.cat([ends.new_zeros(1), ends]))
        if len(centres) == 1:
            return made
        tried = sample[:TRIED]
        searched = sum(len(rows) * (end - start) for rows, spans in made.plan(tried, k) for start, end in spans)
        return made if searched < len(tried) * len(bank) / 2 else cls.of(bank, k, 1)

    def distance(self, z: Tensor, k: int) -> Tensor:
        """(N,) as `knn_distance` of the whole bank; rows of z are of unit length (or 0)."""
        few = len(z) < len(self.centres)  # to plan for them costs what it saves
        if few or len(self.centres) == 1 or not 1 <= k <= PROBE:
            return knn_distance(z, self.bank, k)
        out = z.new_empty(len(z))
        for rows, spans in self.plan(z, k):
            out[rows] = knn_distance(z[rows], self.bank, k, spans=spans)
        return out

    def plan(self, z: Tensor, k: int) -> list[tuple[Tensor, list[tuple[int, int]]]]:
        """Which rows of z have to be compared with which rows of the bank: (indices, spans) of each group.

        Some rows of the bank near a query tell how near its k-th neighbour is at least, and so which clusters it needs.
        Queries of the same nearest cluster need much the same; those that need most of the bank get all of it.
        """
        starts, sizes = self.starts.tolist(), self.starts.diff().to(z.dtype)
        angles = _angle(z @ self.centres.T)
        own = angles.argmin(1)
        least = angles.sub_(self.radii + SLACK)
        groups: dict[tuple[bool, ...], list[Tensor]] = {}
        counts = own.bincount(minlength=len(sizes)).tolist()
        for c, members in enumerate(torch.split(own.argsort(), counts)):
            begin = min(starts[c], len(self.bank) - PROBE)
            for rows in torch.split(members, CELLS // PROBE) if len(members) else ():
                kth = (z[rows] @ self.bank[begin : begin + PROBE].T).topk(k).values[:, -1:]
                needs = ~(least[rows] > _angle(kth))  # NaN needs all
                most = needs.to(z.dtype) @ sizes > len(self.bank) / 2
                for some, needed in ((rows[~most], needs[~most].any(0)), (rows[most], sizes >= 0)):
                    if len(some):
                        groups.setdefault(tuple(needed.tolist()), []).append(some)
        return [(torch.cat(rows), self._spans(needed)) for needed, rows in groups.items()]

    def _spans(self, needed: tuple[bool, ...]) -> list[tuple[int, int]]:
        """(start, end) of each run of needed clusters."""
        turns = torch.tensor([False, *needed, False]).int().diff()
        starts = self.starts.cpu()
        return list(zip(starts[turns == 1].tolist(), starts[turns == -1].tolist(), strict=True))


def _angle(cosine: Tensor) -> Tensor:
    return cosine.clamp(-1, 1).acos()
