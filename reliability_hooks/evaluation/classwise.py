"""Calibration class by class: class-wise D-ECE, LaECE and LaACE. A class without an instance is dropped and counted.

Arrays, weights, bins and NaN are as in `calibration`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .binning import grouped_ece
from .checks import Floats, Indices, column, probabilities, ratio, targets


@dataclass(frozen=True, eq=False)
class ClassWise:
    """A metric class by class.

    Attributes:
        value: mean over the classes that have an instance; NaN if none has.
        values: (C,) one for each class; NaN where it has no instance.
        counts: (C,) weight of the instances of each class.
    """

    value: float
    values: Floats
    counts: Floats

    @property
    def dropped(self) -> int:
        """Number of classes without an instance, which are left out of the mean."""
        return int((self.counts == 0).sum())

    def __float__(self) -> float:
        return self.value


def class_wise_d_ece(
    p: ArrayLike,
    y: ArrayLike,
    labels: ArrayLike,
    bins: int = 10,
    binning: str = "width",
    n_classes: int | None = None,
    weight: ArrayLike | None = None,
) -> ClassWise:
    """D-ECE of the detections of each class, and its mean over the classes that have any.

    Args:
        p: as in `d_ece`, as are `y`, `bins`, `binning`, `weight`.
        y: see `p`.
        labels: (N,) integers >= 0, the class that was predicted.
        bins: see `p`.
        binning: see `p`.
        n_classes: number of classes, so that those without a detection are counted; None: the largest label + 1.
        weight: see `p`.

    Raises:
        ValueError: as `d_ece`, or a label is negative or not below `n_classes`.
    """
    p, y, w = probabilities(p, y, weight)
    return _class_mean(p, y, w, labels, n_classes, bins, binning)


def la_ece(
    p: ArrayLike,
    iou: ArrayLike,
    labels: ArrayLike,
    bins: int = 25,
    n_classes: int | None = None,
    weight: ArrayLike | None = None,
) -> ClassWise:
    """Localisation-aware ECE (Oksuz et al., CVPR 2023): class mean of sum_b n_b/n |conf_b - precision_b * IoU_b|.

    With the IoU of a false positive as 0, precision times mean IoU of the true positives is the mean of `iou`. LaECE is
    made from a matching at IoU >= 0.1; LaECE_0 (Kuzucu et al., ECCV 2024) from one at threshold 0, in which a detection
    without overlap must not take a ground truth: `matching.match(..., iou_threshold=0)` sees to that.

    Args:
        p: (N,) expected IoU, or probability of being correct.
        iou: (N,) in [0, 1], IoU with the matched ground truth, 0 for a false positive: `Matches.iou`, without the rows
            to `ignore`.
        labels: (N,) integers >= 0.
        bins: number of bins of equal width.
        n_classes: as in `class_wise_d_ece`.
        weight: (N,) multiplicities.

    Raises:
        ValueError: as `class_wise_d_ece`.
    """
    p, iou, w = targets(p, iou, weight)
    return _class_mean(p, iou, w, labels, n_classes, bins, "width")


def la_ace(
    p: ArrayLike, iou: ArrayLike, labels: ArrayLike, n_classes: int | None = None, weight: ArrayLike | None = None
) -> ClassWise:
    """Localisation-aware adaptive calibration error (Kuzucu et al., ECCV 2024): class mean of mean |p - iou|.

    Every detection is its own bin. LaACE_0 takes the `iou` of a matching at threshold 0, as in `la_ece`.

    Raises:
        ValueError: as `class_wise_d_ece`.
    """
    p, iou, w = targets(p, iou, weight)
    label, classes = _labels(labels, len(p), n_classes)
    mass: Floats = np.bincount(label, w, classes).astype(np.float64)
    error = np.divide(np.bincount(label, w * np.abs(p - iou), classes), mass, np.full(classes, np.nan), where=mass > 0)
    return ClassWise(_mean(error), error, mass)


def _class_mean(
    p: Floats, target: Floats, w: Floats, labels: ArrayLike, n_classes: int | None, bins: int, binning: str
) -> ClassWise:
    label, classes = _labels(labels, len(p), n_classes)
    error, mass = grouped_ece(p, target, w, label, classes, bins, binning)
    return ClassWise(_mean(error), error, mass)


def _labels(labels: ArrayLike, rows: int, n_classes: int | None) -> tuple[Indices, int]:
    label = column("labels", labels, rows).astype(np.int64)
    classes = int(label.max(initial=-1)) + 1 if n_classes is None else n_classes
    if (label < 0).any() or (label >= classes).any():
        raise ValueError(f"labels must lie in 0 ... {classes - 1}, got {label.min()} ... {label.max()}")
    return label, classes


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return ratio(known.sum(), len(known))
