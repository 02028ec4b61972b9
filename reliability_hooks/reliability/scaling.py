"""Calibrators with a formula: temperature, Platt and beta scaling, and recalibration shrunk to the identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .scores import EPS, as_scores, is_flat, labelled_rows, logit, smoothed_rate
from .state import State


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Platt:
    """sigmoid(slope * logit(score) + intercept), the unpenalised maximum-likelihood fit (Platt 1999).

    A target in [0, 1] is fitted as a fractional logistic regression (Papke & Wooldridge 1996). Where the
    sample has no finite optimum (all right, all wrong, one score) or would turn the ranking round, the
    answer is the constant (positives + 1) / (rows + 2); where the scores separate right from wrong, Platt's
    smoothed targets are used.
    """

    slope: Tensor = field(default_factory=lambda: _scalar(1.0))
    intercept: Tensor = field(default_factory=lambda: _scalar(0.0))

    @classmethod
    def fit(cls, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Platt:
        """See `Calibrator.fit`. Raises ValueError for zero labelled rows or mismatched shapes."""
        s, t, w = labelled_rows(scores, target, weight)
        constant = cls(_scalar(0.0), logit(smoothed_rate(t, w)))
        x = logit(s)
        if is_flat(x) or is_flat(t) or _falls(x, t):
            return constant
        if _separates(x, t):  # the likelihood has no finite maximum
            t = _softened(t, w)
        from sklearn.linear_model import LogisticRegression

        y = torch.cat([torch.ones_like(t), torch.zeros_like(t)])
        mass = torch.cat([w * t, w * (1 - t)])
        rows = mass > 0
        model = LogisticRegression(C=float("inf"), solver="newton-cholesky", tol=1e-10, max_iter=200)
        model.fit(torch.cat([x, x])[rows, None].numpy(), y[rows].numpy(), mass[rows].numpy())
        slope = float(model.coef_[0, 0])
        return cls(_scalar(slope), _scalar(float(model.intercept_[0]))) if slope > 0 else constant

    def predict(self, scores: Tensor) -> Tensor:
        """See `Calibrator.predict`."""
        return torch.sigmoid(self.slope * logit(as_scores(scores)) + self.intercept)

    def state(self) -> State:
        """See `Calibrator.state`."""
        return {"slope": self.slope, "intercept": self.intercept}, {"kind": "platt"}

    @classmethod
    def from_state(cls, state: State) -> Platt:
        """See `Calibrator.from_state`."""
        return cls(**state[0])


@dataclass(frozen=True, eq=False)
class Temperature(Platt):
    """sigmoid(logit(score) / T) (Guo et al. 2017): `slope` is 1 / T, the intercept 0.

    The constant of `Platt`, the only case with an intercept, where the sample has no finite optimum or the
    best slope is 0; Platt's smoothed targets where a threshold of 0.5 separates right from wrong.
    """

    @classmethod
    def fit(cls, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Temperature:
        """See `Calibrator.fit`. Raises ValueError for zero labelled rows or mismatched shapes."""
        s, t, w = labelled_rows(scores, target, weight)
        constant = cls(_scalar(0.0), logit(smoothed_rate(t, w)))
        x = logit(s)
        if is_flat(x) or is_flat(t):
            return constant
        if _separates(x, t, at=0.0):
            t = _softened(t, w)
        (slope,) = _maximum_likelihood(x[:, None], t, w, [1.0], [(0, None)]).tolist()
        return cls(_scalar(slope), _scalar(0.0)) if slope > 0 else constant

    def state(self) -> State:
        """See `Calibrator.state`."""
        return super().state()[0], {"kind": "temperature"}


@dataclass(frozen=True, eq=False)
class Beta:
    """sigmoid(a ln s - b ln(1 - s) + c), a and b >= 0 (Kull, Silva Filho & Flach 2017, equation 6).

    Unlike Platt's it can bend the two ends differently. Degenerate samples as in `Platt`.
    """

    a: Tensor = field(default_factory=lambda: _scalar(1.0))
    b: Tensor = field(default_factory=lambda: _scalar(1.0))
    c: Tensor = field(default_factory=lambda: _scalar(0.0))

    @classmethod
    def fit(cls, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Beta:
        """See `Calibrator.fit`. Raises ValueError for zero labelled rows or mismatched shapes."""
        s, t, w = labelled_rows(scores, target, weight)
        constant = cls(_scalar(0.0), _scalar(0.0), logit(smoothed_rate(t, w)))
        x = logit(s)
        if is_flat(x) or is_flat(t) or _falls(x, t):
            return constant
        if _separates(x, t):
            t = _softened(t, w)
        design = torch.cat([_ends(s), torch.ones_like(s)[:, None]], 1)
        a, b, c = _maximum_likelihood(
            design, t, w, [1.0, 1.0, 0.0], [(0, None), (0, None), (None, None)]
        ).tolist()
        return cls(_scalar(a), _scalar(b), _scalar(c)) if a > 0 or b > 0 else constant

    def predict(self, scores: Tensor) -> Tensor:
        """See `Calibrator.predict`."""
        rise, fall = _ends(as_scores(scores)).unbind(1)
        return torch.sigmoid(self.a * rise + self.b * fall + self.c)

    def state(self) -> State:
        """See `Calibrator.state`."""
        return {"a": self.a, "b": self.b, "c": self.c}, {"kind": "beta"}

    @classmethod
    def from_state(cls, state: State) -> Beta:
        """See `Calibrator.from_state`."""
        return cls(**state[0])


def recalibration(logits: Tensor, target: Tensor, strength: float = 10.0) -> tuple[float, float]:
    """Slope and intercept that calibrate given logits, shrunk towards the identity (1, 0).

    The penalised likelihood sum log loss + strength / 2 * ((slope - 1)^2 + intercept^2): a few rows leave
    the logits as they are, many rows give Platt's fit. The slope is at least 0.

    Args:
        logits: (N,), cross-fitted: in-sample logits would show no need.
        target: (N,) bool or in [0, 1].
        strength: weight of the identity, of the order of the number of rows that it is worth.
    """
    if len(logits) == 0:
        return 1.0, 0.0
    design = torch.stack([logits, torch.ones_like(logits)], 1).detach().cpu().to(torch.float64)
    t = target.detach().cpu().to(torch.float64)
    slope, intercept = _maximum_likelihood(
        design, t, torch.ones_like(t), [1.0, 0.0], [(0, None), (None, None)], strength
    ).tolist()
    return slope, intercept


def _maximum_likelihood(
    design: Tensor,
    target: Tensor,
    weight: Tensor,
    start: Sequence[float],
    bounds: Sequence[Any],
    strength: float = 0.0,
) -> Tensor:
    """(F,) coefficients of the bounded logistic regression, penalised by strength / 2 * |theta - start|^2."""
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    x, t, w, origin = design.numpy(), target.numpy(), weight.numpy(), np.array(start)
    total = w.sum()

    def objective(theta: Any) -> tuple[Any, Any]:
        z, away = x @ theta, theta - origin
        loss = (w * (np.logaddexp(0, z) - t * z)).sum() + strength / 2 * (away**2).sum()
        return loss / total, (x.T @ (w * (expit(z) - t)) + strength * away) / total

    tight = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    found = minimize(objective, origin, jac=True, method="L-BFGS-B", bounds=bounds, options=tight)
    return torch.as_tensor(found.x, dtype=torch.float64)


def _ends(s: Tensor) -> Tensor:
    """Scores (N,) to (N, 2): ln s and -ln(1 - s), with s clipped to [EPS, 1 - EPS]."""
    s = s.clamp(EPS, 1 - EPS)
    return torch.stack([s.log(), -(-s).log1p()], 1)


def _separates(x: Tensor, t: Tensor, at: float | None = None) -> bool:
    """Whether some threshold (or the given one) has all right rows above and all wrong ones below."""
    low, high = x[t > 0].min(), x[t < 1].max()
    return bool(low >= high) if at is None else bool(low >= at >= high)


def _falls(x: Tensor, t: Tensor) -> bool:
    """Whether all right rows lie below all wrong ones."""
    return bool(x[t > 0].max() <= x[t < 1].min())


def _softened(t: Tensor, w: Tensor) -> Tensor:
    """Platt's targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2) in place of 1 and 0."""
    n_right, n_wrong = (w * t).sum(), (w * (1 - t)).sum()
    return t * (n_right + 1) / (n_right + 2) + (1 - t) / (n_wrong + 2)
