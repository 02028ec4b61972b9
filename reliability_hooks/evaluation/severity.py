"""Does a score grow with the intensity of a perturbation?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .checks import Floats, column


@dataclass(frozen=True, eq=False)
class SeverityCorrelation:
    """How a score follows the severity.

    Attributes:
        of_means: Spearman's correlation of the levels with the mean score at each; what Xu-Darme et al. report.
        of_rows: Spearman's correlation over all rows.
        levels: (K,) the severities, ascending.
        means: (K,) mean score at each, of the same items.
        items: number of items that count.
        dropped: number of items left out: absent from a level, or of a NaN score.
    """

    of_means: float
    of_rows: float
    levels: Floats
    means: Floats
    items: int
    dropped: int

    def __float__(self) -> float:
        return self.of_means


def severity_correlation(
    score: ArrayLike, severity: ArrayLike, item: ArrayLike, weight: ArrayLike | None = None
) -> SeverityCorrelation:
    """Spearman's rank correlation of perturbation intensity and score (as for PARTICUL, Xu-Darme et al. 2022).

    Their confidence falls with the intensity; this score, of the opposite sense, should rise. Only items that are there
    at every level count, so that the means are of the same items.

    Args:
        score: (N,) higher is more out-of-distribution.
        severity: (N,) intensity, 0 for the unperturbed.
        item: (N,) object, or image: what is the same at all levels.
        weight: (N,) whole multiplicities, the same within an item.

    Returns:
        See `SeverityCorrelation`; correlations in [-1, 1], NaN where the levels or what is correlated do not vary.

    Raises:
        ValueError: lengths differ, a severity is NaN, or a weight is no whole number >= 0.
    """
    value = np.asarray(score, np.float64)
    level = column("severity", severity, len(value)).astype(np.float64)
    _, owner = np.unique(column("item", item, len(value)), return_inverse=True)
    w = np.ones(len(value)) if weight is None else column("weight", weight, len(value)).astype(np.float64)
    if np.isnan(level).any():
        raise ValueError("severity must not hold NaN")
    if not (np.isfinite(w) & (w >= 0) & (w == np.floor(w))).all():
        raise ValueError("weights must be whole numbers >= 0: rows are repeated, as ranks know no fractions")
    levels, at = np.unique(level, return_inverse=True)
    present = np.zeros((owner.max(initial=-1) + 1, len(levels)), bool)
    present[owner, at] = True
    present[owner[np.isnan(value)]] = False
    complete = np.asarray(present.all(1))
    rows = np.repeat(np.arange(len(value)), np.where(complete[owner], w, 0).astype(np.int64))
    count = np.bincount(at[rows], minlength=len(levels))
    means = np.divide(np.bincount(at[rows], value[rows], len(levels)), count, np.full(len(levels), np.nan),
                      where=count > 0)
    return SeverityCorrelation(_spearman(levels, means), _spearman(level[rows], value[rows]), levels, means,
                               len(np.unique(owner[rows])), int((~complete).sum()))


def _spearman(a: Floats, b: Floats) -> float:
    from scipy.stats import spearmanr

    if np.isnan(b).any() or min(len(np.unique(a)), len(np.unique(b))) < 2:  # scipy warns where one is constant
        return float("nan")
    return float(spearmanr(a, b).statistic)
