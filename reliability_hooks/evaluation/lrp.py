"""Localisation-recall-precision error (Oksuz et al., ECCV 2018; TPAMI 2022) and the score threshold that minimises it.

LRP = (sum over TP of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN), in [0, 1], lower is better; tau is the IoU
threshold of the matching. As a COCO greedy matching at score >= s is the part of the whole one with score >= s, one
matching gives every threshold. Rows are detections and, as `MISSED`, the ground truths that no detection took.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .checks import Floats, Indices, column, ratio, unit_interval
from .matching import Matches

TRUE_POSITIVE, FALSE_POSITIVE, MISSED = 1, 0, -1


@dataclass(frozen=True, eq=False)
class Events:
    """Detections that count and ground truths that were missed: the rows from which LRP is made.

    Attributes:
        scores: (E,) score; -inf for a missed ground truth, which no threshold finds.
        iou: (E,) IoU with the matched ground truth; 0 for the others.
        outcome: (E,) `TRUE_POSITIVE`, `FALSE_POSITIVE` or `MISSED`.
        labels: (E,) class >= 0.
        image_ids: (E,) image.
    """

    scores: Floats
    iou: Floats
    outcome: Indices
    labels: Indices
    image_ids: Indices


def events(
    matches: Matches,
    scores: ArrayLike,
    labels: ArrayLike,
    image_ids: ArrayLike,
    gt_labels: ArrayLike,
    gt_image_ids: ArrayLike,
    gt_crowd: ArrayLike | None = None,
) -> Events:
    """The rows of a matching: neither detections to ignore, nor crowds, nor rows of a negative label count.

    Args:
        matches: of these detections and ground truths.
        scores: (N,) in the order of the matching, as are `labels`, `image_ids`.
        labels: see `scores`.
        image_ids: see `scores`.
        gt_labels: (G,) in the order of the matching, as are `gt_image_ids`, `gt_crowd`.
        gt_image_ids: see `gt_labels`.
        gt_crowd: see `gt_labels`; None means no crowds.

    Raises:
        ValueError: a length does not fit the matching.
    """
    n, g = len(matches.tp), len(matches.gt_matched)
    label, gt_label = column("labels", labels, n), column("gt_labels", gt_labels, g)
    crowd = np.zeros(g, bool) if gt_crowd is None else column("gt_crowd", gt_crowd, g).astype(bool)
    counts = ~matches.ignore & (label >= 0)
    missed = ~matches.gt_matched & ~crowd & (gt_label >= 0)
    ids = column("image_ids", image_ids, n), column("gt_image_ids", gt_image_ids, g)
    return Events(
        np.r_[column("scores", scores, n)[counts], np.full(missed.sum(), -np.inf)].astype(np.float64),
        np.r_[matches.iou[counts], np.zeros(missed.sum())],
        np.r_[matches.tp[counts].astype(np.int64), np.full(missed.sum(), MISSED)],
        np.r_[label[counts], gt_label[missed]].astype(np.int64),
        np.concatenate([part for part in (ids[0][counts], ids[1][missed]) if len(part)] or [ids[0][counts]]),
    )


@dataclass(frozen=True, eq=False)
class OptimalLRP:
    """The least LRP of each class over all score thresholds.

    Attributes:
        value: mean over the classes that have a ground truth; NaN if none has.
        values: (C,) optimal LRP; NaN where there is no ground truth.
        thresholds: (C,) keep score >= this, the highest where several are best; inf: nothing is worth keeping;
            NaN where there is no ground truth.
        counts: (C,) weight of the ground truths.
    """

    value: float
    values: Floats
    thresholds: Floats
    counts: Floats

    @property
    def dropped(self) -> int:
        """Number of classes without ground truth, which are left out of the mean."""
        return int((self.counts == 0).sum())

    def __float__(self) -> float:
        return self.value


def lrp(
    scores: ArrayLike,
    iou: ArrayLike,
    outcome: ArrayLike,
    iou_threshold: float = 0.5,
    score_cut: float = -np.inf,
    weight: ArrayLike | None = None,
) -> float:
    """LRP of what scores at least `score_cut`, all classes pooled; give one class's `Events` for the LRP of a class.

    Args:
        scores: (E,) as in `Events`, as are `iou` and `outcome`.
        iou: see `scores`.
        outcome: see `scores`.
        iou_threshold: tau of the matching, in [0, 1).
        score_cut: detections below it are not made.
        weight: (E,) multiplicities.

    Returns:
        In [0, 1]; NaN where there is neither detection nor ground truth.

    Raises:
        ValueError: lengths differ, a score is NaN, an IoU lies outside [0, 1], or tau outside [0, 1).
    """
    score, overlap, kind, w = _rows(scores, iou, outcome, iou_threshold, weight)
    made = (score >= score_cut) & (kind != MISSED)
    hit = made & (kind == TRUE_POSITIVE)
    truths, wrong = w[kind != FALSE_POSITIVE].sum(), w[made & (kind == FALSE_POSITIVE)].sum()
    localisation = (w * (1 - overlap))[hit].sum() / (1 - iou_threshold)
    return ratio(localisation + wrong + truths - w[hit].sum(), truths + wrong)


def lrp_optimal(
    scores: ArrayLike,
    iou: ArrayLike,
    outcome: ArrayLike,
    labels: ArrayLike,
    iou_threshold: float = 0.5,
    n_classes: int | None = None,
    weight: ArrayLike | None = None,
) -> OptimalLRP:
    """The threshold of each class at which its LRP is least; the thresholds are the scores that occur, and none.

    Args:
        scores: as in `lrp`, as are `iou`, `outcome`, `iou_threshold`, `weight`.
        iou: see `scores`.
        outcome: see `scores`.
        labels: (E,) class >= 0.
        iou_threshold: see `scores`.
        n_classes: number of classes, so that those without ground truth are counted; None: the largest label + 1.
        weight: see `scores`.

    Raises:
        ValueError: as `lrp`, or a label is negative or not below `n_classes`.
    """
    score, overlap, kind, w = _rows(scores, iou, outcome, iou_threshold, weight)
    label = column("labels", labels, len(score)).astype(np.int64)
    classes = int(label.max(initial=-1)) + 1 if n_classes is None else n_classes
    if (label < 0).any() or (label >= classes).any():
        raise ValueError(f"labels must lie in 0 ... {classes - 1}, got {label.min()} ... {label.max()}")
    counts: Floats = np.bincount(label, w * (kind != FALSE_POSITIVE), classes).astype(np.float64)
    best, threshold = np.where(counts > 0, 1.0, np.nan), np.where(counts > 0, np.inf, np.nan)  # with nothing kept

    order = np.lexsort((-score, label))
    order = order[(kind[order] != MISSED) & (w[order] > 0)]
    member, value, mass, hit = label[order], score[order], w[order], kind[order] == TRUE_POSITIVE
    first = np.searchsorted(member, member)  # start of each row's class
    # Error saved by a true positive: it was a miss before, and is a localisation error now.
    saved = mass * hit * (1 - (1 - overlap[order]) / (1 - iou_threshold))
    saved_so_far, wrong = (np.cumsum(x) - (np.cumsum(x) - x)[first] for x in (saved, mass * ~hit))
    truths = counts[member]
    error = np.divide(truths - saved_so_far + wrong, truths + wrong, np.full(len(order), np.inf), where=truths > 0)
    first_of_tie = (np.diff(member, prepend=-1) != 0) | (value != np.r_[np.nan, value[:-1]])
    last_of_tie = np.roll(first_of_tie, -1)
    rank = np.lexsort((-value, error, member))  # of each class the best first; of equals the highest threshold
    rank = rank[last_of_tie[rank]]
    rank = rank[np.diff(member[rank], prepend=-1) != 0]
    rank = rank[error[rank] < best[member[rank]]]
    best[member[rank]], threshold[member[rank]] = error[rank], value[rank]
    known = counts > 0
    return OptimalLRP(ratio(best[known].sum(), known.sum()), best, threshold, counts)


def _rows(
    scores: ArrayLike, iou: ArrayLike, outcome: ArrayLike, iou_threshold: float, weight: ArrayLike | None
) -> tuple[Floats, Floats, Indices, Floats]:
    score = np.asarray(scores, np.float64)
    overlap = column("iou", iou, len(score)).astype(np.float64)
    kind = column("outcome", outcome, len(score)).astype(np.int64)
    w = np.ones(len(score)) if weight is None else column("weight", weight, len(score)).astype(np.float64)
    if np.isnan(score).any():
        raise ValueError("scores must not hold NaN: drop the rows or give them a value first")
    unit_interval("iou", overlap)
    if not np.isin(kind, (TRUE_POSITIVE, FALSE_POSITIVE, MISSED)).all():
        raise ValueError("outcome must hold only 1 (true positive), 0 (false positive) and -1 (missed)")
    if not 0 <= iou_threshold < 1:
        raise ValueError(f"iou_threshold must lie in [0, 1), got {iou_threshold}")
    return score, overlap, kind, w
