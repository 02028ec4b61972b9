"""Calibrators without a formula: isotonic regression and histogram binning."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .scores import as_scores, is_flat, labelled_rows, smoothed_rate
from .state import State


@dataclass(frozen=True, eq=False)
class Isotonic:
    """Non-decreasing piecewise linear map (Zadrozny & Elkan 2002), constant beyond its first and last knot.

    Knots x (K,) strictly increasing and y (K,), K >= 2. All right, all wrong or one score: the smoothed
    constant.
    """

    x: Tensor = field(default_factory=lambda: torch.tensor([0.0, 1.0], dtype=torch.float64))
    y: Tensor = field(default_factory=lambda: torch.tensor([0.0, 1.0], dtype=torch.float64))

    @classmethod
    def fit(cls, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Isotonic:
        """See `Calibrator.fit`. Raises ValueError for zero labelled rows or mismatched shapes."""
        s, t, w = labelled_rows(scores, target, weight)
        if not (is_flat(s) or is_flat(t)):
            from sklearn.isotonic import IsotonicRegression

            model = IsotonicRegression(out_of_bounds="clip").fit(
                s.numpy(), t.numpy(), sample_weight=w.numpy()
            )
            if len(model.X_thresholds_) > 1:
                return cls(
                    torch.from_numpy(model.X_thresholds_.copy()), torch.from_numpy(model.y_thresholds_.copy())
                )
        return cls(y=smoothed_rate(t, w).expand(2).clone())

    def predict(self, scores: Tensor) -> Tensor:
        """See `Calibrator.predict`."""
        return interpolate(as_scores(scores), self.x, self.y)

    def state(self) -> State:
        """See `Calibrator.state`."""
        return {"x": self.x, "y": self.y}, {"kind": "isotonic"}

    @classmethod
    def from_state(cls, state: State) -> Isotonic:
        """See `Calibrator.from_state`."""
        return cls(**state[0])


@dataclass(frozen=True, eq=False)
class Histogram:
    """The rate of right ones in each of up to `bins` bins of equal count (Zadrozny & Elkan 2001).

    Not monotone: two detections may change places. All right, all wrong or one score: the smoothed constant.

    Attributes:
        edges: (K - 1,) increasing; bin k holds edges[k - 1] <= score < edges[k].
        y: (K,) rates in [0, 1].
    """

    edges: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    y: Tensor = field(default_factory=lambda: torch.full((1,), 0.5, dtype=torch.float64))

    @classmethod
    def fit(cls, scores: Tensor, target: Tensor, weight: Tensor | None = None, bins: int = 10) -> Histogram:
        """See `Calibrator.fit`. Raises ValueError for zero labelled rows, mismatched shapes or bins < 1."""
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        s, t, w = labelled_rows(scores, target, weight)
        if is_flat(s) or is_flat(t):
            return cls(y=smoothed_rate(t, w)[None])
        first = torch.arange(1, bins) * len(s) // bins  # edges are scores, so that no bin is empty
        edges = torch.unique(s.sort().values[first])
        edges = edges[edges > s.min()]
        place = torch.searchsorted(edges, s, right=True)
        right, rows = (torch.zeros(len(edges) + 1, dtype=torch.float64).index_add_(0, place, v) for v in (w * t, w))
        return cls(edges, right / rows)

    def predict(self, scores: Tensor) -> Tensor:
        """See `Calibrator.predict`."""
        s = as_scores(scores)
        value = self.y[torch.searchsorted(self.edges, s, right=True)]
        return value.masked_fill(s.isnan(), torch.nan)

    def state(self) -> State:
        """See `Calibrator.state`."""
        return {"edges": self.edges, "y": self.y}, {"kind": "histogram"}

    @classmethod
    def from_state(cls, state: State) -> Histogram:
        """See `Calibrator.from_state`."""
        return cls(**state[0])


def interpolate(s: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The piecewise linear map with knots x (K,), y (K,), K >= 2, at s (N,); constant beyond the ends, NaN for NaN."""
    right = torch.searchsorted(x, s).clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x[right - 1], x[right], y[right - 1], y[right]
    share = ((s - x0) / (x1 - x0)).clamp(0.0, 1.0)
    return y0 + share * (y1 - y0)
