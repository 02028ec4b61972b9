"""Data of a reliability diagram: what was promised and what came true, bin by bin, with counts and intervals."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from .binning import bins_of
from .bootstrap import image_counts
from .calibration import d_ece
from .checks import Floats, Indices, column, probabilities


@dataclass(frozen=True, eq=False)
class ReliabilityDiagram:
    """B bins; NaN in `confidence`, `accuracy`, `low`, `high` where a bin is empty.

    Attributes:
        left: (B,) lower end of the bin: its edge with equal width, the least p in it with equal mass. Likewise `right`.
        right: (B,) upper end.
        confidence: (B,) mean p.
        accuracy: (B,) share that is correct.
        low: (B,) lower end of the interval of the accuracy. Likewise `high`.
        high: (B,) upper end.
        counts: (B,) number of instances.
        d_ece: D-ECE with these bins.
        protocol: bins, binning, coverage of the intervals and how they were made. JSON-ready.
    """

    left: Floats
    right: Floats
    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    counts: Indices
    d_ece: float
    protocol: dict[str, float | str]


def reliability_diagram(
    p: ArrayLike,
    y: ArrayLike,
    bins: int = 10,
    binning: str = "width",
    image_ids: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 500,
    seed: int = 0,
) -> ReliabilityDiagram:
    """Bins probabilities and counts what came true.

    Args:
        p: (N,) in [0, 1].
        y: (N,) 1 if correct.
        bins: number of bins.
        binning: "width" or "mass", see `binning`.
        image_ids: (N,) image of each instance: the interval is then a percentile bootstrap over the images that have
            instances, the bins held fast. None: Wilson's interval (1927), which takes instances for independent.
        level: coverage of the intervals, in (0, 1).
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: as `calibration.d_ece`, or `level` or the length of `image_ids` makes no sense.
    """
    p, y, w = probabilities(p, y, None)
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    bin_of = bins_of(p, w, np.zeros(len(p), np.int64), bins, binning)
    counts = np.bincount(bin_of, minlength=bins)
    confidence, accuracy = (_share(np.bincount(bin_of, value, bins).astype(float), counts) for value in (p, y))
    if binning == "width":
        left, right = np.arange(bins) / bins, np.arange(1, bins + 1) / bins
    else:
        left, right = np.full(bins, np.inf), np.full(bins, -np.inf)
        np.minimum.at(left, bin_of, p)
        np.maximum.at(right, bin_of, p)
        left[counts == 0] = right[counts == 0] = np.nan
    if image_ids is None:
        low, high, interval = *_wilson(accuracy, counts, level), "Wilson, instances taken for independent"
    else:
        low, high = _bootstrap(bin_of, y, column("image_ids", image_ids, len(p)), bins, level, draws, seed)
        interval = f"percentiles of {draws} bootstrap draws of images, seed {seed}"
    protocol: dict[str, float | str] = {"bins": bins, "binning": binning, "level": level, "interval": interval}
    error = d_ece(p, y, bins=bins, binning=binning)
    return ReliabilityDiagram(left, right, confidence, accuracy, low, high, counts, error, protocol)


def _share(part: Floats, whole: ArrayLike) -> Floats:
    whole = np.asarray(whole, np.float64)
    out: Floats = np.divide(part, whole, np.full(part.shape, np.nan), where=whole > 0)
    return out


def _wilson(share: Floats, counts: Indices, level: float) -> tuple[Floats, Floats]:
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    n = np.where(counts > 0, counts, np.nan)
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(share * (1 - share) * z2 / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return middle - half, middle + half


def _bootstrap(
    bin_of: Indices, y: Floats, images: ArrayLike, bins: int, level: float, draws: int, seed: int
) -> tuple[Floats, Floats]:
    """Every draw is a product of how often each image was drawn and what each image holds in each bin."""
    known, image = np.unique(images, return_inverse=True)
    cell, cells = image * bins + bin_of, len(known) * bins
    held, right = (np.bincount(cell, value, cells).reshape(-1, bins) for value in (np.ones(len(y)), y))
    times = np.stack(list(image_counts(len(known), draws, seed))).astype(np.float64)
    drawn = _share(times @ right, times @ held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bin that every draw leaves empty has no interval: NaN
        low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
