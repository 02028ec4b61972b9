"""Bins of probabilities, and the gap between what is promised and what is true in each.

Bins of equal width are [k/bins, (k+1)/bins), the last one closed: p = 1 belongs to it. Bins of equal mass hold, of N
rows in ascending order, those with floor(bins * rows below / N) = k: equal values share a bin.
"""

from __future__ import annotations

import numpy as np

from .checks import Floats, Indices

BINNINGS = ("width", "mass")


def bin_number(value: Floats, bins: int) -> Indices:
    """Which of `bins` equal parts of [0, 1]; what lies outside counts in the outermost.

    Raises:
        ValueError: `bins` < 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    return np.searchsorted(np.arange(1, bins) / bins, value, "right").astype(np.int64)


def bins_of(p: Floats, w: Floats, group: Indices, bins: int, binning: str) -> Indices:
    """The bin of each row, 0 ... bins - 1, by equal width or, within its group, by equal mass.

    Raises:
        ValueError: `bins` < 1 or an unknown binning.
    """
    if binning not in BINNINGS:
        raise ValueError(f"binning must be one of {', '.join(BINNINGS)}, got {binning!r}")
    of_width = bin_number(p, bins)
    if binning == "width" or not len(p):
        return of_width
    order = np.lexsort((p, group))
    value, member, mass = p[order], group[order], w[order]
    new_group = np.r_[True, member[1:] != member[:-1]]
    new_value = new_group | np.r_[True, value[1:] != value[:-1]]
    below = np.cumsum(mass) - mass
    # Of each row: the mass before its block of equal values, less that before its group.
    below = below[new_value][np.cumsum(new_value) - 1] - below[new_group][np.cumsum(new_group) - 1]
    total = np.bincount(group, w)[member]
    out = np.empty(len(p), np.int64)
    out[order] = np.floor(np.divide(bins * below, total, np.zeros(len(p)), where=total > 0)).clip(0, bins - 1)
    return out


def grouped_ece(
    p: Floats, target: Floats, w: Floats, group: Indices, groups: int, bins: int, binning: str
) -> tuple[Floats, Floats]:
    """Expected calibration error and weight of each group; NaN where the weight is 0."""
    cell = group * bins + bins_of(p, w, group, bins, binning)
    gap = np.abs(np.bincount(cell, w * (target - p), groups * bins)).reshape(groups, bins).sum(1)
    mass: Floats = np.bincount(group, w, groups).astype(np.float64)  # of no rows it counts, in integers
    return np.divide(gap, mass, np.full(groups, np.nan), where=mass > 0), mass
