"""Object-level calibration error (Park, Sobolewski & Azizan, TPAMI): the Brier score of each ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .checks import Floats, Indices, column, ratio, unit_interval
from .pairs import PairIoU, overlapping_pairs

#: How detections come to ground truths, to be printed beside the figure.
RULE = "every detection of any class that overlaps a ground truth enough, averaged"


def object_brier(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    image_ids: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_image_ids: ArrayLike,
    iou_thresholds: Sequence[float] = (0.5, 0.75),
    pair_iou: PairIoU | None = None,
) -> Floats:
    """Brier score of each ground truth, averaged over the thresholds: OCE is its mean (`oce`).

    The detections of any class with IoU >= threshold are averaged into one prediction for the object, which is compared
    with its class; an object that none overlaps scores 1. Leave crowds out of the ground truth: they are no objects.

    Args:
        boxes: (N, 4) xyxy pixels.
        scores: (N, K) distributions over the classes, for which the score is sum_k (p_k - [k = class])^2; or (N,)
            confidences of `labels`, for which it is the paper's reduction to two classes: the mean confidence p for
            the most frequent label (the smallest of several), 2 (1 - p)^2 if that is the class and else 2 p^2.
        labels: (N,) predicted classes; not used with distributions.
        image_ids: (N,) integers or strings.
        gt_boxes: (G, 4) xyxy pixels.
        gt_labels: (G,) classes.
        gt_image_ids: (G,).
        iou_thresholds: each in (0, 1].
        pair_iou: as in `matching.match`.

    Returns:
        (G,) in [0, 2]; NaN for a ground truth of negative label, of which no detection can know the class.

    Raises:
        ValueError: a shape does not fit, or scores lie outside [0, 1].
    """
    score = np.asarray(scores, np.float64)
    truth = np.asarray(gt_labels).astype(np.int64)
    unit_interval("scores", score.ravel())
    label = column("labels", labels, len(score)).astype(np.int64)
    if score.ndim == 2 and truth.max(initial=-1) >= score.shape[1]:
        raise ValueError(f"gt_labels reach {truth.max()}, but scores have {score.shape[1]} classes")
    if not iou_thresholds or not all(0 < tau <= 1 for tau in iou_thresholds):
        raise ValueError(f"iou_thresholds must lie in (0, 1], got {tuple(iou_thresholds)}")
    det, gt, iou = overlapping_pairs(boxes, image_ids, gt_boxes, gt_image_ids, min(iou_thresholds), pair_iou)
    out = np.zeros(len(truth))
    for tau in iou_thresholds:
        near = iou >= min(tau, 1 - 1e-10)
        out += _brier(det[near], gt[near], score, label, truth)
    return np.where(truth >= 0, out / len(iou_thresholds), np.nan)


def oce(object_scores: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean of `object_brier` over the ground truths whose class is known; NaN where there is none.

    Raises:
        ValueError: lengths differ.
    """
    values = np.asarray(object_scores, np.float64)
    w = np.ones(len(values)) if weight is None else column("weight", weight, len(values))
    known = ~np.isnan(values)
    return ratio((w * values)[known].sum(), w[known].sum())


def _brier(det: Indices, gt: Indices, score: Floats, label: Indices, truth: Indices) -> Floats:
    count = np.bincount(gt, minlength=len(truth))
    found = np.flatnonzero(count)
    out = np.ones(len(truth))
    if score.ndim == 2:
        mean: Floats = np.zeros((len(truth), score.shape[1]))
        np.add.at(mean, gt, score[det])
        mean = mean[found] / count[found, None]
        mean[np.arange(len(found)), truth[found]] -= truth[found] >= 0
        out[found] = (mean**2).sum(1)
        return out
    p = np.bincount(gt, score[det], len(truth))[found] / count[found]
    # Votes: (object, label) pairs, counted; of each object the most frequent, of equals the smallest, comes first.
    votes, frequency = np.unique(np.stack([gt, label[det]]), axis=1, return_counts=True)
    order = np.lexsort((votes[1], -frequency, votes[0]))
    elected = votes[:, order][:, np.diff(votes[0][order], prepend=-1) != 0]
    out[found] = np.where(elected[1] == truth[found], 2 * (1 - p) ** 2, 2 * p**2)
    return out
