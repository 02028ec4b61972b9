"""What all metrics share: checked arrays, weights as multiplicities, instances of equal score taken together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def scored(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """(p, y, weight) as float64 (N,): p any real score, y of 0 and 1.

    Raises:
        ValueError: shapes differ, p has NaN, y is not of 0 and 1, or a weight is negative or not finite.
    """
    p, y, w = _vectors(p, y, weight)
    if not np.isin(y, (0, 1)).all():
        raise ValueError("y must hold only 0 and 1 (or False and True)")
    return p, y, w


def probabilities(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """As `scored`, and p must lie in [0, 1]."""
    p, y, w = scored(p, y, weight)
    unit_interval("p", p)
    return p, y, w


def targets(p: ArrayLike, iou: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """(p, iou, weight) as float64 (N,), p and iou in [0, 1]."""
    p, iou, w = _vectors(p, iou, weight)
    unit_interval("p", p)
    unit_interval("iou", iou)
    return p, iou, w


def column(name: str, value: ArrayLike, rows: int) -> NDArray[Any]:
    """`value` as an array of shape (rows,)."""
    array: NDArray[Any] = np.asarray(value)
    if array.shape != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), one entry for each row; got {array.shape}")
    return array


def unit_interval(name: str, value: Floats) -> None:
    """Names the first row outside [0, 1]."""
    outside = np.flatnonzero(~((value >= 0) & (value <= 1)))
    if len(outside):
        raise ValueError(f"{name} must lie in [0, 1]; row {outside[0]} holds {value[outside[0]]:g}")


def ratio(numerator: float, denominator: float) -> float:
    """NaN where there is nothing to divide by."""
    return float(numerator / denominator) if denominator > 0 else float("nan")


def tied_masses(p: Floats, y: Floats, w: Floats) -> tuple[Floats, Floats, Floats]:
    """The distinct values of p, ascending, and the weight of the correct and of the wrong instances at each."""
    if not len(p):
        return np.zeros(0), np.zeros(0), np.zeros(0)
    order = np.argsort(p)
    starts = np.flatnonzero(np.r_[True, p[order][1:] != p[order][:-1]])
    right, wrong = (np.add.reduceat(mass[order], starts) for mass in (w * y, w * (1 - y)))
    return p[order][starts], right, wrong


def _vectors(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    w = np.ones(p.shape) if weight is None else np.asarray(weight, np.float64)
    if p.ndim != 1 or not p.shape == y.shape == w.shape:
        raise ValueError(f"p, y and weight must be vectors of one length, got {p.shape}, {y.shape}, {w.shape}")
    bad = np.flatnonzero(np.isnan(p))
    if len(bad):
        rows = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"p is NaN in {len(bad)} of {len(p)} rows ({rows}): drop them or give them a value first")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    return p, y, w
