"""Venn-ABERS: two isotonic fits, one as if the new detection were wrong, one as if it were right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scores import as_scores, image_codes, labelled_rows
from .state import State


@dataclass(frozen=True, eq=False)
class Steps:
    """The two step functions of one inductive predictor.

    Attributes:
        x0: (K0,) increasing; p0 (K0 + 1,) is the lower probability, p0[k] from x0[k - 1] on.
        x1: (K1,) increasing; p1 (K1 + 1,) is the upper probability, p1[k] up to and including x1[k].
    """

    x0: Tensor
    p0: Tensor
    x1: Tensor
    p1: Tensor

    @classmethod
    def fit(cls, s: Tensor, t: Tensor, w: Tensor) -> Steps:
        """From scores, targets and weights (N,), N >= 1, in O(N log N)."""
        x, place = torch.unique(s, return_inverse=True)
        total, right = (torch.zeros(len(x), dtype=torch.float64).index_add_(0, place, v) for v in (w, w * t))
        p1 = _with_one_more(total, right)
        # A wrong one more is a right one more, with right and wrong, and low and high, exchanged.
        p0 = 1 - _with_one_more(total.flip(0), (total - right).flip(0)).flip(0)
        new0, new1 = p0.diff() != 0, p1.diff() != 0
        return cls(x[new0], torch.cat([p0[:1], p0[1:][new0]]), x[new1], torch.cat([p1[:-1][new1], p1[-1:]]))

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N,) to lower and upper probability (N,)."""
        return self.p0[torch.searchsorted(self.x0, s, right=True)], self.p1[torch.searchsorted(self.x1, s)]


@dataclass(frozen=True, eq=False)
class VennAbers:
    """Inductive and cross Venn-ABERS predictors (Vovk, Petej & Fedorova 2015, algorithms 1 to 6).

    For every score an interval (p0, p1): isotonic regression on the calibration rows and the new one, taken
    as wrong and as right. One of the two is perfectly calibrated if the *detections* are exchangeable; where
    those of an image depend on each other that does not hold, and the width says how far one more detection
    moves the answer, not how uncertain it is (for that: `interval.Interval`). Targets in [0, 1] are allowed,
    the two extremes then being 0 and 1. Only the order of the scores matters.

    Attributes:
        folds: the step functions of each fold; one for the inductive predictor.
    """

    folds: tuple[Steps, ...]

    @classmethod
    def fit(
        cls, scores: Tensor, target: Tensor, weight: Tensor | None = None, fold: Tensor | None = None
    ) -> VennAbers:
        """Precompute the step functions.

        Args:
            scores: (N,) in [0, 1], out of fold: on rows that the model was trained on they would be too good.
            target: (N,) bool, or float in [0, 1].
            weight: (N,); a new detection has weight 1.
            fold: (N,) integers: the cross predictor, one inductive one for each fold; None: a single one.

        Raises:
            ValueError: zero labelled rows or mismatched shapes.
        """
        s, t, w = labelled_rows(scores, target, weight)
        if fold is None:
            return cls((Steps.fit(s, t, w),))
        code = image_codes(fold, len(scores), "fold")
        known = ~as_scores(scores).isnan()
        code = code[known if weight is None else known & (weight.detach().cpu() > 0)]
        return cls(tuple(Steps.fit(s[code == k], t[code == k], w[code == k]) for k in torch.unique(code)))

    def predict_interval(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N,) to p0 and p1, float64 (N,) in [0, 1], p0 <= p1; NaN for NaN.

        Of several folds the geometric means, of p1 and of 1 - p0 (equation 6).
        """
        s = as_scores(scores)
        pairs = [steps(s) for steps in self.folds]
        if len(pairs) == 1:
            low, high = pairs[0]
        else:
            low = 1 - torch.stack([(-p0).log1p() for p0, _ in pairs]).mean(0).exp()
            high = torch.stack([p1.log() for _, p1 in pairs]).mean(0).exp()
        return low.masked_fill(s.isnan(), torch.nan), high.masked_fill(s.isnan(), torch.nan)

    def predict(self, scores: Tensor) -> Tensor:
        """Scores (N,) to the merged p1 / (1 - p0 + p1), the minimax of the log loss; NaN for NaN."""
        p0, p1 = self.predict_interval(scores)
        return p1 / (1 - p0 + p1)

    def state(self) -> State:
        """See `Calibrator.state`."""
        tensors = {f"{k}.{name}": v for k, steps in enumerate(self.folds) for name, v in vars(steps).items()}
        return tensors, {"kind": "venn_abers", "folds": len(self.folds)}

    @classmethod
    def from_state(cls, state: State) -> VennAbers:
        """See `Calibrator.from_state`."""
        tensors, meta = state
        names = ("x0", "p0", "x1", "p1")
        return cls(tuple(Steps(*(tensors[f"{k}.{n}"] for n in names)) for k in range(meta["folds"])))


def _with_one_more(total: Tensor, right: Tensor) -> Tensor:
    """(K + 1,): the isotonic value of one more right row, put before each of K blocks and after the last.

    The isotonic values are the slopes of the greatest convex minorant of the cumulative sums (rows, right).
    The extra step (1, 1) starts before all blocks and changes places with one after another; `hull` holds the
    minorant's corners, the one where the extra step's edge begins on top (algorithms 1 and 2).
    """
    rows = torch.cat([torch.zeros(1, dtype=torch.float64), total.cumsum(0)]).tolist()
    hits = torch.cat([torch.zeros(1, dtype=torch.float64), right.cumsum(0)]).tolist()
    hull: list[tuple[float, float]] = []
    for x, y in zip([*rows[::-1], -1.0], [*hits[::-1], -1.0], strict=True):
        _push(hull, x, y)
    values = []
    for i in range(len(rows)):
        (x0, y0), (x1, y1) = hull[-1], hull[-2]
        slope = (y1 - y0) / (x1 - x0)
        values.append(slope)
        if i + 1 < len(rows):
            x, y = rows[i + 1] - 1, hits[i + 1] - 1
            if y < y0 + slope * (x - x0):
                hull.pop()
                _push(hull, x, y)
    return torch.tensor(values, dtype=torch.float64).clamp(0.0, 1.0)


def _push(hull: list[tuple[float, float]], x: float, y: float) -> None:
    """Add a point to the left of a lower hull, dropping the corners that it hides."""
    while len(hull) > 1:
        (x0, y0), (x1, y1) = hull[-1], hull[-2]
        if (y0 - y) * (x1 - x) < (y1 - y) * (x0 - x):
            break
        hull.pop()
    hull.append((x, y))
