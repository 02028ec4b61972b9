"""COCO greedy matching of detections to ground truth, vectorised over a whole data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import Floats, Indices, column
from .pairs import Bools, PairIoU, as_boxes, box_iou, image_codes, same_group


@dataclass(frozen=True, eq=False)
class Matches:
    """What became of N detections and G ground truths.

    Attributes:
        tp: (N,) bool, matched to a ground truth that is no crowd.
        iou: (N,) float64 in [0, 1], IoU with the matched ground truth (crowd: intersection / detection area);
            0 where unmatched.
        best_iou: (N,) float64 in [0, 1], best IoU with any eligible non-crowd ground truth, taken or not; 0 if none.
        gt_index: (N,) int64, row of the matched ground truth, crowds included; -1 where unmatched.
        ignore: (N,) bool, absorbed by a crowd region: neither true nor false positive.
        gt_matched: (G,) bool, taken by a detection (a crowd: by at least one).
        iou_threshold: the threshold used.
        rule: the matching rule in words, to be printed beside every figure made from it.
    """

    tp: Bools
    iou: Floats
    best_iou: Floats
    gt_index: Indices
    ignore: Bools
    gt_matched: Bools
    iou_threshold: float
    rule: str


def match(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    image_ids: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_image_ids: ArrayLike,
    gt_crowd: ArrayLike | None = None,
    iou_threshold: float = 0.5,
    class_agnostic: bool = False,
    pair_iou: PairIoU | None = None,
) -> Matches:
    """Matches as pycocotools' `COCOeval.evaluateImg` does for all areas and without a limit on detections.

    Within an image and class, detections choose in descending order of score (ties: input order); each takes the
    free ground truth of highest IoU >= min(threshold, 1 - 1e-10) (ties: the last). A crowd is taken only where no
    other will do, may be taken many times, and its IoU is intersection / detection area. Two cases are defined
    here and not there: a pair without overlap never matches, even at threshold 0, and neither does a detection
    with a box that is not finite or a score of NaN (it is a false positive).

    Args:
        boxes: (N, 4) xyxy pixels.
        scores: (N,) any real numbers.
        labels: (N,) integers; a negative label matches nothing.
        image_ids: (N,) integers or strings.
        gt_boxes: (G, 4) xyxy pixels.
        gt_labels: (G,) integers; a negative label, as of a class the detector lacks, matches nothing.
        gt_image_ids: (G,) of the same kind as `image_ids`.
        gt_crowd: (G,) bool; None means no crowds.
        iou_threshold: in [0, 1].
        class_agnostic: ignore the labels (ties in score or IoU are then broken by label first, as pycocotools does
            with `useCats = 0`).
        pair_iou: other IoU than that of the boxes, such as `masks.MaskIoU`; see `PairIoU`. The boxes then only serve
            for their NaN.

    Returns:
        One `Matches`, in the order of the input rows.

    Raises:
        ValueError: a shape, the threshold or the kinds of the two arrays of image ids do not fit.
    """
    det_boxes, truth_boxes = as_boxes("boxes", boxes), as_boxes("gt_boxes", gt_boxes)
    n, g = len(det_boxes), len(truth_boxes)
    score = column("scores", scores, n).astype(np.float64)
    label = column("labels", labels, n).astype(np.int64)
    truth_label = column("gt_labels", gt_labels, g).astype(np.int64)
    image, truth_image = image_codes(column("image_ids", image_ids, n), column("gt_image_ids", gt_image_ids, g))
    crowd = np.zeros(g, bool) if gt_crowd is None else column("gt_crowd", gt_crowd, g).astype(bool)
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")

    # Group = the set within which detections compete: image, or image and class.
    classes = 1 if class_agnostic else 1 + max(label.max(initial=0), truth_label.max(initial=0))
    group: Indices = image * classes + label * (not class_agnostic)
    truth_group: Indices = truth_image * classes + truth_label * (not class_agnostic)
    eligible = np.isfinite(det_boxes).all(1) & ~np.isnan(score) & (class_agnostic | (label >= 0))
    truth_eligible = np.isfinite(truth_boxes).all(1) & (class_agnostic | (truth_label >= 0))

    # Eligible rows in the order in which they are served, so that "first" and "last" are plain comparisons below.
    det_row = np.lexsort((label, -score, group))
    det_row = det_row[eligible[det_row]]
    gt_row = np.lexsort((truth_label, truth_group))
    gt_row = gt_row[truth_eligible[gt_row]]
    row_iou = pair_iou or box_iou(det_boxes, truth_boxes, crowd)

    best = np.zeros(len(det_row))
    kept: list[tuple[Indices, Indices, Floats]] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for det, gt in same_group(group[det_row], truth_group[gt_row]):
        value = np.asarray(row_iou(det_row[det], gt_row[gt]), np.float64)
        plain = ~crowd[gt_row[gt]] & (value > 0)
        np.maximum.at(best, det[plain], value[plain])
        good = (value >= min(iou_threshold, 1 - 1e-10)) & (value > 0)
        kept.append((det[good], gt[good], value[good]))
    pair_det, pair_gt, pair_value = (np.concatenate(parts) for parts in zip(*kept, strict=True))

    chosen = greedy(pair_det, pair_gt, pair_value, group[det_row], crowd[gt_row])
    winner, taken = det_row[pair_det[chosen]], gt_row[pair_gt[chosen]]
    gt_index = np.full(n, -1, np.int64)
    gt_index[winner] = taken
    iou, best_iou = np.zeros(n), np.zeros(n)
    iou[winner], best_iou[det_row] = pair_value[chosen], best
    ignore, gt_matched = np.zeros(n, bool), np.zeros(g, bool)
    ignore[winner], gt_matched[taken] = crowd[taken], True
    kind = "IoU" if pair_iou is None else getattr(pair_iou, "name", "the IoU given")
    whose = "any class" if class_agnostic else "same class"
    rule = f"COCO greedy, {whose}, {kind} >= {iou_threshold:g}, crowd ignored"
    return Matches((gt_index >= 0) & ~ignore, iou, best_iou, gt_index, ignore, gt_matched, iou_threshold, rule)


def greedy(pair_det: Indices, pair_gt: Indices, pair_iou: Floats, group: NDArray[np.int64], crowd: Bools) -> Indices:
    """Lets detections choose among admissible pairs, best score first; all groups advance in parallel.

    Args:
        pair_det: (P,) detection of each pair, numbered so that within a group a smaller number chooses earlier.
        pair_gt: (P,) ground truth of each pair, of the same group; of equal IoU the larger number is preferred.
        pair_iou: (P,) IoU of each pair, all of them admissible.
        group: (N,) group of each detection, sorted: equal groups are contiguous.
        crowd: (G,) bool, ground truths that can be taken many times and only as a second choice.

    Returns:
        (M,) the pairs that were chosen, at most one for each detection.
    """
    # Turn = rank in the group among detections that have any choice: those of one turn never compete.
    chooser, slot = np.unique(pair_det, return_inverse=True)
    first = np.searchsorted(group[chooser], group[chooser])
    turn = (np.arange(len(chooser)) - first)[slot]
    order = np.lexsort((-pair_gt, -pair_iou, crowd[pair_gt], pair_det, turn))
    ends = np.cumsum(np.bincount(turn))
    is_free = np.ones(len(crowd), bool)
    chosen = [np.empty(0, np.int64)]
    for start, end in zip(np.r_[0, ends][:-1], ends, strict=True):
        pairs = order[start:end]
        pairs = pairs[is_free[pair_gt[pairs]]]
        pairs = pairs[np.diff(pair_det[pairs], prepend=-1) != 0]  # the first, hence best, pair of each detection
        taken = pair_gt[pairs]
        is_free[taken] = crowd[taken]
        chosen.append(pairs)
    return np.concatenate(chosen)
