"""How far a probability p is from what it promises: D-ECE, conditional D-ECE, Brier score, log-likelihood.

Every metric takes `p` (N,) in [0, 1], `y` (N,) of 0 and 1 (1: correct, a true positive) and `weight` (N,), non-negative
multiplicities: a weight of 2 equals the row given twice, one of 0 its absence. Nothing to measure (N = 0, or all
weights 0) gives NaN. NaN in `p` raises ValueError: what to do with an instance without a reliability is the caller's
decision. The matching and the score cut that made `y` are the caller's to state (`image_bootstrap(..., protocol=...)`).
For the edges of bins see `binning`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .binning import bin_number, grouped_ece
from .checks import Floats, probabilities, ratio


def d_ece(
    p: ArrayLike, y: ArrayLike, bins: int = 10, binning: str = "width", weight: ArrayLike | None = None
) -> float:
    """Detection expected calibration error (Kueppers et al. 2020): sum_b n_b/N |acc_b - conf_b|, in [0, 1].

    Args:
        p: (N,) probabilities of being correct.
        y: (N,) 1 for a true positive, else 0.
        bins: number of bins.
        binning: "width" (equal width) or "mass" (equal number of rows: the adaptive ECE of Nguyen & O'Connor 2015).
        weight: (N,) multiplicities.

    Raises:
        ValueError: `bins` < 1, an unknown binning, or arrays as in `brier`.
    """
    p, y, w = probabilities(p, y, weight)
    error, mass = grouped_ece(p, y, w, np.zeros(len(p), np.int64), 1, bins, binning)
    return ratio(error[0] * mass[0], mass[0])


def conditional_d_ece(
    p: ArrayLike, y: ArrayLike, x: ArrayLike, bins: int = 10, x_bins: int = 5, weight: ArrayLike | None = None
) -> float:
    """Position- or size-conditional D-ECE (Kueppers et al. 2020): the bins are cells of confidence and x, in [0, 1].

    Args:
        p: (N,) probabilities of being correct.
        y: (N,) 1 for a true positive, else 0.
        x: (N, k) conditions on a scale of [0, 1], such as columns of `box_conditions`; what lies outside counts in the
            outermost bin, as a box does that leaves its image.
        bins: bins of equal width of p.
        x_bins: bins of equal width of each column of x.
        weight: (N,) multiplicities.

    Raises:
        ValueError: as `d_ece`, or x has another shape or NaN.
    """
    p, y, w = probabilities(p, y, weight)
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) != len(p):
        raise ValueError(f"x must have shape ({len(p)}, number of conditions), got {x.shape}")
    if np.isnan(x).any():
        raise ValueError("x must not hold NaN: drop the rows without a condition first")
    places = x_bins ** np.arange(x.shape[1])
    cell = (bin_number(x, x_bins) * places).sum(1)
    error, mass = grouped_ece(p, y, w, cell, x_bins ** x.shape[1], bins, "width")
    return ratio((np.nan_to_num(error) * mass).sum(), mass.sum())


def box_conditions(boxes: ArrayLike, image_sizes: ArrayLike) -> Floats:
    """Position and size of boxes relative to their images, for `conditional_d_ece`.

    Args:
        boxes: (N, 4) xyxy pixels.
        image_sizes: (N, 2) height and width of each box's image, pixels.

    Returns:
        (N, 4): centre x, centre y, width, height, in shares of the image. Columns :2 are the position, 2: the size.

    Raises:
        ValueError: a shape does not fit or a side is not positive.
    """
    corners, sizes = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(image_sizes, np.float64).reshape(-1, 2)
    if len(corners) != len(sizes) or not (sizes > 0).all():
        raise ValueError(f"each box needs a positive (height, width): {len(corners)} boxes, {len(sizes)} sizes")
    low, high, side = corners[:, :2], corners[:, 2:], sizes[:, ::-1]
    return np.concatenate([(low + high) / 2 / side, (high - low) / side], 1)


def brier(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Brier score, mean of (p - y)^2, in [0, 1].

    Raises:
        ValueError: shapes differ, p has NaN or leaves [0, 1], y is not of 0 and 1, or a weight is negative or NaN.
    """
    p, y, w = probabilities(p, y, weight)
    return ratio((w * (p - y) ** 2).sum(), w.sum())


def nll(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Negative log-likelihood, -mean of y ln p + (1 - y) ln(1 - p) in nats; probabilities below 1e-12 count as 1e-12.

    Raises:
        ValueError: as `brier`.
    """
    p, y, w = probabilities(p, y, weight)
    return ratio(-(w * np.log(np.where(y > 0, p, 1 - p).clip(min=1e-12))).sum(), w.sum())
