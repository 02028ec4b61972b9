"""Pairs of a detection and a ground truth, and their IoU: never all at once, never in a Python loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import Floats, Indices, column

Bools = NDArray[np.bool_]
#: (pair_det (P,), pair_gt (P,)) -> IoU (P,), rows of the detections and ground truths given to `match`.
PairIoU = Callable[[Indices, Indices], Floats]

_CHUNK = 1 << 19  # pairs whose IoU is computed at once: bounds the memory to some tens of megabytes


def same_group(group: Indices, gt_group: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yields all (detection, ground truth) pairs of equal group, both arrays sorted, some detections at a time."""
    first = np.searchsorted(gt_group, group, "left")
    count = np.searchsorted(gt_group, group, "right") - first
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(_CHUNK, total[-1] if len(total) else 0, _CHUNK), "right")
    for start, stop in zip(np.r_[0, cuts], np.r_[cuts, len(group)], strict=True):
        some = count[start:stop]
        offset = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
        yield np.repeat(np.arange(start, stop), some), np.repeat(first[start:stop], some) + offset


def overlapping_pairs(
    boxes: ArrayLike,
    image_ids: ArrayLike,
    gt_boxes: ArrayLike,
    gt_image_ids: ArrayLike,
    iou_threshold: float,
    pair_iou: PairIoU | None = None,
) -> tuple[Indices, Indices, Floats]:
    """All pairs of one image with IoU >= min(threshold, 1 - 1e-10) and above 0, of whatever class.

    Args:
        boxes: (N, 4) xyxy pixels.
        image_ids: (N,) integers or strings.
        gt_boxes: (G, 4) xyxy pixels.
        gt_image_ids: (G,) of the same kind as `image_ids`.
        iou_threshold: in [0, 1].
        pair_iou: other IoU than that of the boxes; the boxes then only serve for their NaN, which overlaps nothing.

    Returns:
        (P,) detection, (P,) ground truth and (P,) IoU of each pair.

    Raises:
        ValueError: a shape or the kinds of the two arrays of image ids do not fit.
    """
    det_boxes, truth_boxes = as_boxes("boxes", boxes), as_boxes("gt_boxes", gt_boxes)
    image, truth_image = image_codes(
        column("image_ids", image_ids, len(det_boxes)), column("gt_image_ids", gt_image_ids, len(truth_boxes))
    )
    det_row, gt_row = np.argsort(image, kind="stable"), np.argsort(truth_image, kind="stable")
    det_row = det_row[np.isfinite(det_boxes[det_row]).all(1)]
    gt_row = gt_row[np.isfinite(truth_boxes[gt_row]).all(1)]
    row_iou = pair_iou or box_iou(det_boxes, truth_boxes, np.zeros(len(truth_boxes), bool))
    found = []
    for det, gt in same_group(image[det_row], truth_image[gt_row]):
        value = np.asarray(row_iou(det_row[det], gt_row[gt]), np.float64)
        good = (value >= min(iou_threshold, 1 - 1e-10)) & (value > 0)
        found.append((det_row[det[good]], gt_row[gt[good]], value[good]))
    det, gt, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return det, gt, value


def box_iou(boxes: Floats, gt_boxes: Floats, crowd: Bools) -> PairIoU:
    """IoU of pairs of boxes, in float64 as in pycocotools' `bbIou`; against a crowd, intersection / detection area."""
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    gt_left, gt_top, gt_right, gt_bottom = np.ascontiguousarray(gt_boxes.T)
    with np.errstate(invalid="ignore"):  # rows that are not finite are never paired
        area, gt_area = (right - left) * (bottom - top), (gt_right - gt_left) * (gt_bottom - gt_top)

    def iou(det: Indices, gt: Indices) -> Floats:
        width = np.minimum(right[det], gt_right[gt]) - np.maximum(left[det], gt_left[gt])
        height = np.minimum(bottom[det], gt_bottom[gt]) - np.maximum(top[det], gt_top[gt])
        inter: Floats = width.clip(min=0) * height.clip(min=0)
        union = np.where(crowd[gt], area[det], area[det] + gt_area[gt] - inter)
        value: Floats = np.divide(inter, union, out=np.zeros_like(inter), where=(inter > 0) & (union > 0))
        return value

    return iou


def as_boxes(name: str, value: ArrayLike) -> Floats:
    """(rows, 4) float64, of shape (0, 4) where there is nothing.

    Raises:
        ValueError: another shape.
    """
    array = np.asarray(value, np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{name} must have shape (rows, 4) as x1, y1, x2, y2; got {array.shape}")
    return array


def image_codes(ids: NDArray[Any], gt_ids: NDArray[Any]) -> tuple[Indices, Indices]:
    """Numbers the images 0, 1, ... over both arrays.

    Raises:
        ValueError: one holds numbers and the other strings.
    """
    is_text = [array.dtype.kind in "US" for array in (ids, gt_ids) if len(array)]
    if len(set(is_text)) > 1:
        raise ValueError("image_ids and gt_image_ids mix numbers with strings: convert one of them")
    _, code = np.unique(np.concatenate([array for array in (ids, gt_ids) if len(array)] or [ids]), return_inverse=True)
    return code[: len(ids)].astype(np.int64), code[len(ids) :].astype(np.int64)
