"""Why a detection is wrong: the kinds of TIDE (Bolya et al., ECCV 2020), for each detection and with its object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import Floats, Indices
from .matching import match
from .pairs import overlapping_pairs

RIGHT, IGNORED = "right", "ignored"
WRONG = ("localisation", "class", "duplicate", "background", "class and place")
CAUSES = (RIGHT, *WRONG, IGNORED)
BACKGROUND = 0.1
"""IoU below which a detection has nothing to do with an object (t_b of the paper)."""


@dataclass(frozen=True, eq=False)
class Causes:
    """Of N detections.

    Attributes:
        code: (N,) int64, index into `CAUSES`.
        partner: (N,) int64, row of the object that it is about: the matched one, of a duplicate the one that is taken,
            the best overlapping one of its class (localisation) or of another; -1 for background and crowds.
        iou: (N,) IoU with the partner, 0 without one.
    """

    code: NDArray[np.int64]
    partner: Indices
    iou: Floats


def causes(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    image_ids: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_image_ids: ArrayLike,
    gt_crowd: ArrayLike,
    iou_threshold: float = 0.5,
) -> Causes:
    """The first that holds, in the paper's order.

    right: matched (COCO greedy). ignored: absorbed by a crowd. localisation: IoU in [.1, t) with an object of its class
    and no better one. class: IoU >= t with one of another class. duplicate: IoU >= t with one of its class that is
    taken. background: IoU < .1 with all. class and place: the rest.

    Args:
        boxes: As in `matching.match`, as are all others.
        scores: See `boxes`.
        labels: See `boxes`.
        image_ids: See `boxes`.
        gt_boxes: See `boxes`.
        gt_labels: See `boxes`.
        gt_image_ids: See `boxes`.
        gt_crowd: See `boxes`.
        iou_threshold: t, in [.1, 1].
    """
    if not BACKGROUND <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [{BACKGROUND}, 1], got {iou_threshold}")
    found = match(boxes, scores, labels, image_ids, gt_boxes, gt_labels, gt_image_ids, gt_crowd, iou_threshold)
    n, label, truth = len(found.tp), np.asarray(labels), np.asarray(gt_labels)
    det, gt, iou = overlapping_pairs(boxes, image_ids, gt_boxes, gt_image_ids, BACKGROUND)
    plain = ~np.asarray(gt_crowd, bool)[gt]
    det, gt, iou = det[plain], gt[plain], iou[plain]
    same = (truth[gt] == label[det]) & (truth[gt] >= 0)
    own, own_iou = _best(det[same], gt[same], iou[same], n)
    other, other_iou = _best(det[~same], gt[~same], iou[~same], n)
    tests = {
        RIGHT: found.tp,
        IGNORED: found.ignore,
        "localisation": (own >= 0) & (own_iou < iou_threshold),
        "class": (other >= 0) & (other_iou >= iou_threshold),
        "duplicate": own >= 0,
        "background": other < 0,
        "class and place": np.ones(n, bool),
    }
    code = np.select(list(tests.values()), [CAUSES.index(name) for name in tests])
    about_own = np.isin(code, [CAUSES.index(c) for c in ("localisation", "duplicate")])
    about_other = np.isin(code, [CAUSES.index(c) for c in ("class", "class and place")])
    partner = np.select([found.tp, about_own, about_other], [found.gt_index, own, other], -1)
    value = np.select([found.tp, about_own, about_other], [found.iou, own_iou, other_iou], 0.0)
    return Causes(code.astype(np.int64), partner.astype(np.int64), value)


def _best(det: Indices, gt: Indices, iou: Floats, n: int) -> tuple[Indices, Floats]:
    """(N,) the object of highest IoU of each detection and that IoU; -1 and 0 without one."""
    order = np.lexsort((iou, det))  # the last of each detection is its best
    best, value = np.full(n, -1), np.zeros(n)
    best[det[order]], value[det[order]] = gt[order], iou[order]
    return best, value
