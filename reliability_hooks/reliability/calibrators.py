"""Monotone calibrators of the confidence alone: the baselines that every other evidence has to beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .state import State

EPS = 1e-4
"""Scores and probabilities enter logarithms no closer to 0 and 1 than this."""


def as_scores(scores: Tensor) -> Tensor:
    """Scores (N,) as float64 on the CPU, NaN kept. Raises ValueError for a wrong shape or range."""
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape (N,), got {tuple(scores.shape)}")
    s = scores.detach().cpu().to(torch.float64)
    if bool(((s < -EPS) | (s > 1 + EPS)).any()):
        raise ValueError("scores must lie in [0, 1]: give probabilities, not logits")
    return s.clamp(0.0, 1.0)


def logit(p: Tensor) -> Tensor:
    """log(p / (1 - p)) with p clipped to [EPS, 1 - EPS]; NaN stays NaN."""
    p = p.clamp(EPS, 1 - EPS)
    return p.log() - (-p).log1p()


class Calibrator(Protocol):
    """A map from scores to probabilities: fitted by scikit-learn, applied in torch."""

    @classmethod
    def fit(cls, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Calibrator:
        """Fit on scores (N,) in [0, 1] and target (N,): bool, or float in [0, 1] such as an IoU."""

    def predict(self, scores: Tensor) -> Tensor:
        """Scores (N,) to float64 (N,) in [0, 1], on the CPU; NaN gives NaN."""

    def state(self) -> State:
        """Tensors and meta for `from_state`."""

    @classmethod
    def from_state(cls, state: State) -> Calibrator:
        """Rebuild from `state()`."""


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
        s, t, w = _labelled(scores, target, weight)
        constant = cls(_scalar(0.0), logit(_smoothed_rate(t, w)))
        x = logit(s)
        if _is_flat(x) or _is_flat(t):
            return constant
        if x[t > 0].min() >= x[t < 1].max():  # separable: the likelihood has no finite maximum
            n_right, n_wrong = (w * t).sum(), (w * (1 - t)).sum()
            t = t * (n_right + 1) / (n_right + 2) + (1 - t) / (n_wrong + 2)
        elif x[t > 0].max() <= x[t < 1].min():
            return constant
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
        s, t, w = _labelled(scores, target, weight)
        if not (_is_flat(s) or _is_flat(t)):
            from sklearn.isotonic import IsotonicRegression

            model = IsotonicRegression(out_of_bounds="clip").fit(
                s.numpy(), t.numpy(), sample_weight=w.numpy()
            )
            if len(model.X_thresholds_) > 1:
                return cls(
                    torch.from_numpy(model.X_thresholds_.copy()), torch.from_numpy(model.y_thresholds_.copy())
                )
        return cls(y=_smoothed_rate(t, w).expand(2).clone())

    def predict(self, scores: Tensor) -> Tensor:
        """See `Calibrator.predict`."""
        s = as_scores(scores)
        right = torch.searchsorted(self.x, s).clamp(1, len(self.x) - 1)
        x0, x1, y0, y1 = self.x[right - 1], self.x[right], self.y[right - 1], self.y[right]
        share = ((s - x0) / (x1 - x0)).clamp(0.0, 1.0)
        return y0 + share * (y1 - y0)

    def state(self) -> State:
        """See `Calibrator.state`."""
        return {"x": self.x, "y": self.y}, {"kind": "isotonic"}

    @classmethod
    def from_state(cls, state: State) -> Isotonic:
        """See `Calibrator.from_state`."""
        return cls(**state[0])


CALIBRATORS: dict[str, type[Platt] | type[Isotonic]] = {"platt": Platt, "isotonic": Isotonic}
"""Name to class, in order of complexity."""


def recalibration(logits: Tensor, target: Tensor, strength: float = 10.0) -> tuple[float, float]:
    """Slope and intercept that calibrate given logits, shrunk towards the identity (1, 0).

    The penalised likelihood sum log loss + strength / 2 * ((slope - 1)^2 + intercept^2): a few rows leave
    the logits as they are, many rows give Platt's fit. The slope is at least 0.

    Args:
        logits: (N,), cross-fitted: in-sample logits would show no need.
        target: (N,) bool or in [0, 1].
        strength: weight of the identity, of the order of the number of rows that it is worth.
    """
    from scipy.optimize import minimize

    design = torch.stack([logits, torch.ones_like(logits)], 1).to(torch.float64)
    t, identity = target.to(torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)

    def objective(parameters: object) -> tuple[float, object]:
        theta = torch.as_tensor(parameters, dtype=torch.float64)
        z = design @ theta
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, t, reduction="sum")
        loss = loss + strength / 2 * (theta - identity).square().sum()
        return float(loss), (design.T @ (z.sigmoid() - t) + strength * (theta - identity)).numpy()

    found = minimize(
        objective, identity.numpy(), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]
    )
    return float(found.x[0]), float(found.x[1])


def _labelled(scores: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with a known score and positive weight, as float64 on the CPU."""
    s = as_scores(scores)
    t = target.detach().cpu().to(torch.float64)
    w = torch.ones_like(s) if weight is None else weight.detach().cpu().to(torch.float64)
    if t.shape != s.shape or w.shape != s.shape:
        raise ValueError(
            f"scores {tuple(s.shape)}, target {tuple(t.shape)} and weight {tuple(w.shape)} must be (N,) alike"
        )
    if bool((~((t >= 0) & (t <= 1))).any()) or bool((~((w >= 0) & w.isfinite())).any()):
        raise ValueError("target must lie in [0, 1] and weight must be finite and not negative")
    rows = ~s.isnan() & (w > 0)
    if not bool(rows.any()):
        raise ValueError(
            "a calibrator needs at least 1 labelled detection (about 100 to be of use), got 0: label images"
        )
    return s[rows], t[rows], w[rows]


def _smoothed_rate(target: Tensor, weight: Tensor) -> Tensor:
    """Laplace's rule of succession: one right and one wrong row are added."""
    return ((weight * target).sum() + 1) / (weight.sum() + 2)


def _is_flat(values: Tensor) -> bool:
    return bool(values.min() == values.max())
