"""Logistic and ridge regression on the standardised table: fitted by scikit-learn, applied in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .calibrators import logit
from .state import State

FREEDOM = 10.0
"""The free column is fitted on a scale this much larger, which divides its penalty by the square."""


@dataclass(frozen=True, eq=False)
class Linear:
    """x @ weight + bias, with weight (F,) and bias ()."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit_logistic(cls, x: Tensor, target: Tensor, c: float, free: int | None = 0) -> Linear:
        """L2-regularised logistic regression (scikit-learn's C); `raw` gives the logit.

        Args:
            x: (N, F) float64, standardised, finite.
            target: (N,) bool; where only one class occurs the result is the constant (positives + 1) / (N +
                2).
            c: inverse strength of the penalty.
            free: a column known to matter (the score), which is hardly penalised, so that a strong penalty
                against many doubtful columns does not also flatten it; None for no such column.
        """
        right = target.to(torch.bool)
        if len(right) == 0:
            raise ValueError("logistic regression needs labelled detections, got 0")
        if bool(right.all()) or not bool(right.any()):
            rate = (right.sum() + 1.0) / (len(right) + 2.0)
            return cls(torch.zeros(x.shape[1], dtype=torch.float64), logit(rate.to(torch.float64)))
        from sklearn.linear_model import LogisticRegression

        scale = _scale(x, free)
        model = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-8, max_iter=200)
        model.fit((x * scale).numpy(), right.numpy())
        return cls(
            torch.from_numpy(model.coef_[0].copy()) * scale,
            torch.tensor(float(model.intercept_[0]), dtype=torch.float64),
        )

    @classmethod
    def fit_ridge(cls, x: Tensor, target: Tensor, alpha: float, free: int | None = 0) -> Linear:
        """Ridge regression of target (N,) float on x (N, F); `raw` gives the expected target, not clipped.

        `alpha` is scikit-learn's; `free` as in `fit_logistic`. Raises ValueError for zero rows.
        """
        if len(target) == 0:
            raise ValueError("ridge regression needs labelled detections, got 0")
        from sklearn.linear_model import Ridge

        scale = _scale(x, free)
        model = Ridge(alpha=alpha, solver="cholesky").fit(
            (x * scale).numpy(), target.to(torch.float64).numpy()
        )
        return cls(
            torch.from_numpy(model.coef_.copy()) * scale,
            torch.tensor(float(model.intercept_), dtype=torch.float64),
        )

    def raw(self, x: Tensor) -> Tensor:
        """Matrix (N, F) float64 to (N,): a logit, or the expected target."""
        return x @ self.weight + self.bias

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        return {"weight": self.weight, "bias": self.bias}, {"kind": "linear"}

    @classmethod
    def from_state(cls, state: State) -> Linear:
        """Rebuild from `state()`."""
        return cls(**state[0])


def _scale(x: Tensor, free: int | None) -> Tensor:
    scale = torch.ones(x.shape[1], dtype=torch.float64)
    if free is not None:
        scale[free] = FREEDOM
    return scale
