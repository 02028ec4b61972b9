"""How well a probability p of being correct describes and ranks correctness y.

Every metric takes `p` (N,), `y` (N,) of 0 and 1 (1: correct, a true positive) and `weight` (N,), non-negative
multiplicities: a weight of 2 equals the row given twice, one of 0 its absence. Nothing to measure (N = 0, or all
weights 0) gives NaN. NaN in `p` raises ValueError: what to do with an instance without a reliability is the caller's
decision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def d_ece(p: ArrayLike, y: ArrayLike, bins: int = 10, weight: ArrayLike | None = None) -> float:
    """Detection expected calibration error (Kueppers et al. 2020): sum_b n_b/N |acc_b - conf_b|, in [0, 1].

    Protocol: `bins` bins of equal width, [k/bins, (k+1)/bins), the last one closed: p = 1 belongs to it. The score cut
    and the matching that made `y` are the caller's to state.

    Raises:
        ValueError: `bins` < 1, or arrays as in `brier`.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    p, y, w = _probabilities(p, y, weight)
    bin_of = np.searchsorted(np.arange(1, bins) / bins, p, "right")
    return _ratio(np.abs(np.bincount(bin_of, w * (y - p), bins)).sum(), w.sum())


def brier(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Brier score, mean of (p - y)^2, in [0, 1].

    Raises:
        ValueError: shapes differ, p has NaN or leaves [0, 1], y is not of 0 and 1, or a weight is negative or NaN.
    """
    p, y, w = _probabilities(p, y, weight)
    return _ratio((w * (p - y) ** 2).sum(), w.sum())


def nll(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Negative log-likelihood, -mean of y ln p + (1 - y) ln(1 - p) in nats; probabilities below 1e-12 count as 1e-12.

    Raises:
        ValueError: as `brier`.
    """
    p, y, w = _probabilities(p, y, weight)
    return _ratio(-(w * np.log(np.where(y > 0, p, 1 - p).clip(min=1e-12))).sum(), w.sum())


def auroc(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve: P(p of a correct one > p of a wrong one), ties counted half.

    Any real score may serve as `p`. NaN where all are correct or all are wrong.

    Raises:
        ValueError: as `brier`, but for the range of p.
    """
    right, wrong = _tied_masses(*_arrays(p, y, weight))
    wrong_below = np.cumsum(wrong) - wrong / 2
    return _ratio((right * wrong_below).sum(), right.sum() * wrong.sum())


def augrc(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024), in [0, 1/2]; lower is better.

    At coverage c the most confident share c is kept and the risk is errors kept / N. Instances of equal p enter
    together; the area is the trapezoid's. Any real score may serve as `p`.

    Raises:
        ValueError: as `auroc`.
    """
    right, wrong = _tied_masses(*_arrays(p, y, weight))
    total = right.sum() + wrong.sum()
    errors_above = wrong.sum() - np.cumsum(wrong)
    return _ratio(((right + wrong) * (errors_above + wrong / 2)).sum(), total**2)


def excess_augrc(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """AUGRC minus its optimum e^2/2, e the error rate: 0 where every error ranks below every success.

    Raises:
        ValueError: as `auroc`.
    """
    return augrc(p, y, weight) - error_rate(p, y, weight) ** 2 / 2


def error_rate(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Share of wrong instances, in [0, 1]; `p` only lends its shape and is checked as in `auroc`.

    Raises:
        ValueError: as `auroc`.
    """
    _, y, w = _arrays(p, y, weight)
    return _ratio((w * (1 - y)).sum(), w.sum())


CALIBRATION_METRICS: dict[str, Callable[..., float]] = {
    "d_ece": d_ece,
    "brier": brier,
    "nll": nll,
    "auroc": auroc,
    "augrc": augrc,
    "excess_augrc": excess_augrc,
}


def _arrays(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    w = np.ones(p.shape) if weight is None else np.asarray(weight, np.float64)
    if p.ndim != 1 or not p.shape == y.shape == w.shape:
        raise ValueError(f"p, y and weight must be vectors of one length, got {p.shape}, {y.shape}, {w.shape}")
    bad = np.flatnonzero(np.isnan(p))
    if len(bad):
        rows = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"p is NaN in {len(bad)} of {len(p)} rows ({rows}): drop them or give them a value first")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("y must hold only 0 and 1 (or False and True)")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    return p, y, w


def _probabilities(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    p, y, w = _arrays(p, y, weight)
    outside = np.flatnonzero((p < 0) | (p > 1))
    if len(outside):
        raise ValueError(f"p must lie in [0, 1]; row {outside[0]} holds {p[outside[0]]:g}")
    return p, y, w


def _tied_masses(p: Floats, y: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Weight of the correct and of the wrong instances at each distinct value of p, ascending."""
    if not len(p):
        return np.zeros(0), np.zeros(0)
    order = np.argsort(p)
    starts = np.flatnonzero(np.r_[True, p[order][1:] != p[order][:-1]])
    return np.add.reduceat((w * y)[order], starts), np.add.reduceat((w * (1 - y))[order], starts)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")
