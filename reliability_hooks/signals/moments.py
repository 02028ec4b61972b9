"""Streaming statistics for signals that learn."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Streaming mean and covariance, in float64 (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.scatter = torch.zeros(0, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Take in (n, D) rows; those that are not finite are left out."""
        rows = rows[rows.isfinite().all(1)].double().cpu()
        if len(rows) == 0:
            return
        mean = rows.mean(0)
        scatter = (rows - mean).T @ (rows - mean)
        if self.count == 0:
            self.count, self.mean, self.scatter = len(rows), mean, scatter
            return
        total, delta = self.count + len(rows), mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.count * len(rows) / total)
        self.mean = self.mean + delta * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(D, D); zero for fewer than two rows."""
        return self.scatter / max(self.count - 1, 1)
