"""Distance to the nearest class, measured in the spread of the features within the classes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Info, Rows, Score, column

CHUNK = 32768
REGULAR = 1e-10
"""A covariance is regular where its smallest eigenvalue is more than this share of its largest."""


class ClassMoments:
    """Streaming mean of each class, covariance within the classes and covariance of all rows, in float64.

    A class with a single row counts among all rows and nowhere else: one row is no evidence of where its class lies or
    how it spreads. Where no class has two, all rows together are the one class. Class -1 is a class like any other.
    """

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.sums = self.scatter = self.shift = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, rows: Tensor, classes: Tensor) -> None:
        """Take in finite (n, D) rows and their (n,) int64 classes."""
        if len(rows) == 0:
            return
        rows = rows.detach().double().cpu()
        d = rows.shape[1]
        if not self.slots:
            self.shift = rows.mean(0)  # near the mean, so that little is lost where the means are taken off again
            self.sums, self.scatter = rows.new_zeros(0, d), rows.new_zeros(d, d)
        rows = rows - self.shift
        ids, inverse = torch.unique(classes.cpu(), return_inverse=True)
        at = torch.tensor([self.slots.setdefault(i, len(self.slots)) for i in ids.tolist()])[inverse]
        if new := len(self.slots) - len(self.counts):
            self.counts = torch.cat([self.counts, rows.new_zeros(new)])
            self.sums = torch.cat([self.sums, rows.new_zeros(new, d)])
        self.counts.index_add_(0, at, rows.new_ones(len(rows)))
        self.sums.index_add_(0, at, rows)
        self.scatter.addmm_(rows.T, rows)

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Class means (C, D), covariance within (D, D), mean (D,), covariance of all (D, D), rows.

        Covariances are divided by the number of rows, as both papers do.

        Raises:
            ValueError: No row was taken in.
        """
        if not self.slots:
            raise ValueError("no detections to learn class means from; show more images")
        n, own = self.counts.sum(), self.counts >= 2
        mean = self.sums.sum(0) / n
        total = self.scatter / n - torch.outer(mean, mean)
        if not bool(own.any()):
            return (self.shift + mean)[None], total, self.shift + mean, total, int(n)
        means = self.sums / self.counts[:, None]
        inside = (self.scatter - means.T @ self.sums) / self.counts[own].sum()  # a single row leaves nothing here
        return self.shift + means[own], inside, self.shift + mean, total, int(n)


def whitening(covariance: Tensor, n: int) -> Tensor:
    """(D, D) float64 W with |W' (x - y)|^2 the squared Mahalanobis distance.

    Exact where the covariance is regular. Where it is singular (constant features, fewer rows than features) it is
    first shrunk to a multiple of the identity as far as its `n` rows ask for, so that what never varied on known data
    counts when it does (oracle approximating shrinkage, Chen et al. 2010, eq. 23 without the terms 2 / D, as
    scikit-learn has it). All zero stands for the identity.

    Args:
        covariance: (D, D) float64, of n rows.
        n: At least 1.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    d, trace, squares = len(values), values.sum(), values.square().sum()
    if not bool(trace > 0):
        values = torch.ones_like(values)
    elif not bool(values[0] > REGULAR * values[-1]):
        spread = (n + 1) * (squares - trace.square() / d)
        share = ((squares + trace.square()) / spread).clamp(max=1) if bool(spread > 0) else torch.ones_like(trace)
        values = (1 - share) * values + share * trace / d
    whiten: Tensor = vectors / values.sqrt()
    return whiten


def mahalanobis(z: Tensor, means: Tensor, whiten: Tensor) -> Tensor:
    """(N,) squared Mahalanobis distance to the nearest class (Lee et al. 2018, eq. 2, which negates it).

    Args:
        z: (N, D) features.
        means: (C, D), C >= 1.
        whiten: (D, D) of `whitening`.
    """
    origin = means.mean(0)
    centres = (means - origin) @ whiten
    half = centres.square().sum(1) / -2
    parts = []
    for part in torch.split(z, CHUNK):
        white = (part - origin) @ whiten
        nearest = torch.addmm(half, white, centres.T).argmax(1)
        parts.append((white - centres[nearest]).square().sum(1))  # anew: the expanded square loses digits
    return torch.cat(parts) if parts else z.new_zeros(0)


def relative_mahalanobis(z: Tensor, means: Tensor, whiten: Tensor, mean: Tensor, whiten_all: Tensor) -> Tensor:
    """(N,) min_k d_k - d_0, d_0 the distance under one Gaussian of all rows (Ren et al. 2021, eq. 2).

    Args:
        z: (N, D) features.
        means: (C, D), C >= 1.
        whiten: (D, D), of the covariance within classes.
        mean: (D,), of all rows.
        whiten_all: (D, D), of the covariance of all rows.
    """
    return mahalanobis(z, means, whiten) - mahalanobis(z, mean[None], whiten_all)


class Mahalanobis(Score):
    """Squared Mahalanobis distance of the features to the nearest class mean, one covariance for all classes.

    Learnt in one pass; see `ClassMoments` for rare classes and `whitening` for singular covariances.
    """

    name = "ood/mahalanobis"
    info = Info(
        "Mahalanobis", "Lee et al. 2018, A simple unified framework for detecting out-of-distribution samples",
        "features; learns class means and a covariance", "negated",
    )
    evidence = ("features",)
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self.moments = ClassMoments()

    def learn(self, rows: Rows) -> None:
        (z,) = rows.require("features")
        self.moments.update(z, rows.classes)

    def finish(self) -> None:
        means, inside, mean, total, n = self.moments.result()
        learnt = {"means": means, "whiten": whitening(inside, n), "mean": mean, "whiten_all": whitening(total, n)}
        self.tensors = {name: t.float().contiguous() for name, t in learnt.items() if self._keeps(name)}
        self.moments = ClassMoments()

    def score(self, rows: Rows) -> Tensor:
        (z,) = rows.require("features")
        return mahalanobis(z, self.learnt("means", z), self.learnt("whiten", z))

    @staticmethod
    def _keeps(name: str) -> bool:
        return name in ("means", "whiten")


class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance to the nearest class less that to all known objects together.

    What is unusual for every object of the detector no longer counts, which helps with unknowns near the known.
    """

    name = "ood/relative_mahalanobis"
    info = Info(
        "Relative Mahalanobis",
        "Ren et al. 2021, A simple fix to Mahalanobis distance for improving near-OOD detection",
        "features; learns class means and two covariances", "negated",
    )
    columns: ClassVar = column(name)

    def score(self, rows: Rows) -> Tensor:
        (z,) = rows.require("features")
        return relative_mahalanobis(z, *(self.learnt(k, z) for k in ("means", "whiten", "mean", "whiten_all")))

    @staticmethod
    def _keeps(name: str) -> bool:
        return True
