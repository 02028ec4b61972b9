"""Mean average precision by pycocotools, from arrays."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .checks import Floats, column
from .pairs import as_boxes, image_codes


@dataclass(frozen=True)
class MeanAveragePrecision:
    """COCO's figures, in [0, 1]; NaN where there is no object of a known class.

    Attributes:
        ap: mean over IoU 0.50:0.05:0.95 and over the classes that have an object.
        ap50: the same at IoU 0.5.
        max_detections: per image and class, the highest scores first.
    """

    ap: float
    ap50: float
    max_detections: int

    def __float__(self) -> float:
        return self.ap


def mean_average_precision(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    image_ids: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_image_ids: ArrayLike,
    gt_crowd: ArrayLike | None = None,
    max_detections: int = 100,
) -> MeanAveragePrecision:
    """COCO average precision (101 recall points, all areas) by `pycocotools.cocoeval.COCOeval`.

    Args:
        boxes: (N, 4) xyxy pixels; a box that is not finite is a false positive.
        scores: (N,) confidence.
        labels: (N,) integers; rows of a negative label are left out.
        image_ids: (N,) integers or strings.
        gt_boxes: (G, 4) xyxy pixels.
        gt_labels: (G,) integers; a negative label, as of an unknown object, is left out.
        gt_image_ids: (G,) of the same kind as `image_ids`.
        gt_crowd: (G,) bool; None means no crowds.
        max_detections: per image and class; COCO's table uses 100.

    Raises:
        ValueError: a shape or the kinds of the two arrays of image ids do not fit, a score is NaN, or a ground truth
            is not finite.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    corners, truths = as_boxes("boxes", boxes), as_boxes("gt_boxes", gt_boxes)
    n, g = len(corners), len(truths)
    score, label = column("scores", scores, n).astype(np.float64), column("labels", labels, n).astype(np.int64)
    gt_label = column("gt_labels", gt_labels, g).astype(np.int64)
    image, gt_image = image_codes(column("image_ids", image_ids, n), column("gt_image_ids", gt_image_ids, g))
    crowd = np.zeros(g, bool) if gt_crowd is None else column("gt_crowd", gt_crowd, g).astype(bool)
    if np.isnan(score).any():
        raise ValueError("scores must not hold NaN: drop the rows or give them a value first")
    if not np.isfinite(truths).all():
        raise ValueError("gt_boxes must be finite")
    corners = np.where(np.isfinite(corners).all(1, keepdims=True), corners, 0.0)  # NaN would match in pycocotools
    keep, gt_keep = label >= 0, gt_label >= 0
    if not (gt_keep & ~crowd).any():
        return MeanAveragePrecision(float("nan"), float("nan"), max_detections)
    truth, result = COCO(), COCO()
    about = {
        "images": [{"id": k} for k in range(1 + max(image.max(initial=0), gt_image.max(initial=0)))],
        "categories": [{"id": k} for k in np.unique(gt_label[gt_keep]).tolist()],
    }
    objects = {"iscrowd": crowd[gt_keep].astype(int)}
    truth.dataset = {
        **about, "annotations": _rows(truths[gt_keep], gt_label[gt_keep], gt_image[gt_keep], objects)
    }
    result.dataset = {**about, "annotations": _rows(corners[keep], label[keep], image[keep], {"score": score[keep]})}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        result.createIndex()
        run = COCOeval(truth, result, "bbox")
        run.params.maxDets = [max_detections]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    precision: Floats = run.eval["precision"][..., 0, 0]  # (IoU, recall, class); -1 where a class has no object
    there = (precision > -1).all((0, 1))
    return MeanAveragePrecision(
        float(precision[:, :, there].mean()), float(precision[0][:, there].mean()), max_detections
    )


def _rows(boxes: Floats, label: Any, image: Any, extra: dict[str, Any]) -> list[dict[str, Any]]:
    size = boxes[:, 2:] - boxes[:, :2]
    columns = {
        "bbox": np.c_[boxes[:, :2], size].tolist(),
        "area": size.prod(1).tolist(),
        "category_id": label.tolist(),
        "image_id": image.tolist(),
        **{name: value.tolist() for name, value in extra.items()},
    }
    return [
        dict(zip(columns, row, strict=True)) | {"id": k + 1}
        for k, row in enumerate(zip(*columns.values(), strict=True))
    ]
