"""What is true of a detection: is its class right, how well does it overlap, is it a true positive at each tau."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..evaluation.matching import match
from ..evaluation.pairs import PairIoU


def targets(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    image_ids: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_image_ids: ArrayLike,
    gt_crowd: ArrayLike | None = None,
    *,
    taus: Sequence[float] = (0.5, 0.75),
    mask_iou: PairIoU | None = None,
) -> dict[str, Tensor]:
    """Separate targets for separate calibrators.

    Args:
        boxes: (N, 4) xyxy px; this and the next as in `evaluation.matching.match`.
        scores: (N,).
        labels: (N,) integers.
        image_ids: (N,).
        gt_boxes: (G, 4).
        gt_labels: (G,) integers.
        gt_image_ids: (G,).
        gt_crowd: (G,) bool, or None.
        taus: IoU thresholds in (0, 1), whole percents.
        mask_iou: IoU of pairs of masks; adds the same targets under `mask_`.

    Returns:
        Each float64 (N,), NaN where it is not defined (a detection that a crowd region absorbs):
        `class_right`: 1 if the object that the box finds at the lowest tau, of whatever class, has the predicted
        class, 0 if another; NaN also where it finds none, for then there is no class to be right about.
        `iou` and `mask_iou`: IoU with the object of its class matched at any overlap, 0 without one.
        `tp_50`, `tp_75`, `mask_tp_50`, ...: 1 for a true positive at that tau.

    Raises:
        ValueError: shapes do not fit, or a tau is no whole percent in (0, 1).
    """
    if any(not 0 < tau < 1 or abs(100 * tau - round(100 * tau)) > 1e-6 for tau in taus) or not taus:
        raise ValueError(f"taus must be whole percents in (0, 1), got {list(taus)}")

    def at(tau: float, **how: Any) -> Any:
        truth = (gt_boxes, gt_labels, gt_image_ids, gt_crowd)
        return match(boxes, scores, labels, image_ids, *truth, iou_threshold=tau, **how)

    def known(values: Any, ignore: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64).masked_fill(torch.as_tensor(ignore), torch.nan)

    any_class = at(min(taus), class_agnostic=True)
    found = torch.as_tensor(any_class.tp)
    own = torch.as_tensor(labels, dtype=torch.int64)
    theirs = torch.full_like(own, -1)
    theirs[found] = torch.as_tensor(gt_labels, dtype=torch.int64)[torch.as_tensor(any_class.gt_index)[found]]
    result = {"class_right": known(own == theirs, ~found)}
    for prefix, pair_iou in (("", None), ("mask_", mask_iou))[: 1 if mask_iou is None else 2]:
        loose = at(0.0, pair_iou=pair_iou)
        result[f"{prefix}iou"] = known(loose.iou * loose.tp, loose.ignore)
        for tau in taus:
            strict = at(tau, pair_iou=pair_iou)
            result[f"{prefix}tp_{round(100 * tau):02d}"] = known(strict.tp, strict.ignore)
    return result
