"""Where boxes lie when objects of unknown classes are about: the rows of which open-set metrics are made.

Ground truth of a label >= 0 is a known object, of a negative label (as `datasets` gives to classes the detector lacks)
an unknown one. A true positive (COCO greedy, same class) lies on its object; any other box lies on the object, known or
unknown, that it overlaps most with IoU > 0.5, whatever the class; a box on none is on background, unless a crowd region
covers more than half of it: then it is ignored. One set of rows serves all metrics, so that images can be resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .checks import Floats, Indices, column
from .matching import match
from .pairs import Bools, as_boxes, box_iou, overlapping_pairs

#: Outcomes of a box: matched with a known object of its class; on a known object but another's class or a duplicate;
#: on an unknown object; on no object. Then the objects: known; unknown with a box on it; unknown without.
TRUE_KNOWN, FALSE_KNOWN, ON_UNKNOWN, ON_BACKGROUND, KNOWN, UNKNOWN, MISSED_UNKNOWN = range(7)


@dataclass(frozen=True, eq=False)
class OpenSetRows:
    """Boxes and objects that count.

    Attributes:
        outcome: (E,) one of the outcomes above.
        scores: (E,) confidence; -inf for objects.
        ood: (E,) OOD score, higher is more out-of-distribution; -inf for objects.
        finds: (E,) bool, the box takes an unknown object for itself (greedy by OOD score); each object is taken once.
        image_ids: (E,) image.
        ignored: number of boxes in crowd regions, which are not among the rows.
        rule: what lying on an object means here.
    """

    outcome: Indices
    scores: Floats
    ood: Floats
    finds: Bools
    image_ids: Indices
    ignored: int
    rule: str


def open_set_rows(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    image_ids: ArrayLike,
    ood: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_image_ids: ArrayLike,
    gt_crowd: ArrayLike | None = None,
    iou_threshold: float = 0.5,
) -> OpenSetRows:
    """Says of each box where it lies and of each unknown object whether a box lies on it.

    Args:
        boxes: (N, 4) xyxy pixels; a box that is not finite lies on background.
        scores: (N,) confidence.
        labels: (N,) known classes, >= 0.
        image_ids: (N,) integers or strings.
        ood: (N,) OOD score, higher is more out-of-distribution.
        gt_boxes: (G, 4) xyxy pixels.
        gt_labels: (G,) class >= 0 of a known object, negative for an unknown one.
        gt_image_ids: (G,) of the same kind as `image_ids`.
        gt_crowd: (G,) bool; None means no crowds.
        iou_threshold: in [0, 1); the IoU must exceed it.

    Raises:
        ValueError: a shape, the threshold or the kinds of the image ids do not fit, a label is negative, or a score is
            NaN.
    """
    corners, truths = as_boxes("boxes", boxes), as_boxes("gt_boxes", gt_boxes)
    n, g = len(corners), len(truths)
    score, value = (column(name, x, n).astype(np.float64) for name, x in (("scores", scores), ("ood", ood)))
    label, gt_label = column("labels", labels, n).astype(np.int64), column("gt_labels", gt_labels, g).astype(np.int64)
    image, gt_image = column("image_ids", image_ids, n), column("gt_image_ids", gt_image_ids, g)
    crowd = np.zeros(g, bool) if gt_crowd is None else column("gt_crowd", gt_crowd, g).astype(bool)
    if np.isnan(score).any() or np.isnan(value).any():
        raise ValueError("scores and ood must not hold NaN: give ood a value (-inf is never called unknown)")
    if (label < 0).any():
        raise ValueError("labels must be >= 0: a box that is called unknown is one of a known class and a high ood")
    if not 0 <= iou_threshold < 1:
        raise ValueError(f"iou_threshold must lie in [0, 1), got {iou_threshold}")
    above = float(np.nextafter(iou_threshold, 1))  # `match` and the pairs take equality for enough

    known, unknown = ~crowd & (gt_label >= 0), ~crowd & (gt_label < 0)
    true = match(corners, score, label, image, truths[known], gt_label[known], gt_image[known], iou_threshold=above).tp
    det, gt, iou = overlapping_pairs(corners, image, truths, gt_image, above)
    of_known, of_unknown = np.zeros(n), np.zeros(n)
    np.maximum.at(of_known, det[known[gt]], iou[known[gt]])
    np.maximum.at(of_unknown, det[unknown[gt]], iou[unknown[gt]])
    on_unknown = ~true & (of_unknown > of_known)
    covered = np.zeros(n, bool)
    region = truths[crowd]
    share = box_iou(corners, region, np.ones(len(region), bool))  # of a crowd: intersection / area of the box
    covered[overlapping_pairs(corners, image, region, gt_image[crowd], above, share)[0]] = True
    nowhere = ~true & (of_known == 0) & (of_unknown == 0)
    outcome = np.select([true, on_unknown, nowhere], [TRUE_KNOWN, ON_UNKNOWN, ON_BACKGROUND], FALSE_KNOWN)
    finds = np.zeros(n, bool)
    some = np.flatnonzero(on_unknown)
    finds[some] = match(corners[some], value[some], np.zeros(len(some), int), image[some], truths[unknown],
                        np.zeros(unknown.sum(), int), gt_image[unknown], iou_threshold=above).tp
    seen = np.zeros(g, bool)
    seen[gt[on_unknown[det]]] = True
    kind = np.where(known, KNOWN, np.where(seen, UNKNOWN, MISSED_UNKNOWN))[~crowd]

    keep = ~(nowhere & covered)
    objects = np.full(len(kind), -np.inf)
    ids = [part for part in (image[keep], gt_image[~crowd]) if len(part)]
    return OpenSetRows(
        np.r_[outcome[keep], kind].astype(np.int64),
        np.r_[score[keep], objects],
        np.r_[value[keep], objects],
        np.r_[finds[keep], np.zeros(len(kind), bool)],
        np.concatenate(ids or [image[keep]]),
        int((~keep).sum()),
        f"IoU > {iou_threshold:g}, the object overlapped most, crowd ignored",
    )
