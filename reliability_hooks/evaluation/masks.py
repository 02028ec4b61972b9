"""Masks as COCO run lengths, and their IoU for `matching.match(..., pair_iou=MaskIoU(...))`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import Floats, Indices, column

if TYPE_CHECKING:
    from .datasets import DetectionDataset, GroundTruth

#: A COCO run length: {"size": [height, width], "counts": bytes or str}.
RLE = dict[str, Any]


class MaskIoU:
    """IoU of pairs of masks as in pycocotools; against a crowd, intersection / detection area.

    Args:
        masks: (N, H, W) bool, or N run lengths; masks of one image must have one size.
        gt_masks: (G, H, W) bool, or G run lengths.
        gt_crowd: (G,) bool; None means no crowds.

    Raises:
        ValueError: a shape does not fit.
    """

    name = "mask IoU"

    def __init__(
        self, masks: ArrayLike | Sequence[RLE], gt_masks: ArrayLike | Sequence[RLE], gt_crowd: ArrayLike | None = None
    ) -> None:
        self._masks, self._gt_masks = encode(masks), encode(gt_masks)
        rows = len(self._gt_masks)
        self._crowd = np.zeros(rows, bool) if gt_crowd is None else column("gt_crowd", gt_crowd, rows).astype(bool)

    def __call__(self, det: Indices, gt: Indices) -> Floats:
        """IoU (P,) in [0, 1] of the pairs (det[i], gt[i])."""
        from pycocotools import mask as coco_mask

        out = np.zeros(len(det))
        # Pairs come image by image: a run of detections that share their first ground truth is one call.
        run = np.flatnonzero(np.diff(det, prepend=-1))
        block = run[np.flatnonzero(np.diff(gt[run], prepend=-1))] if len(run) else run
        for start, stop in zip(block, np.r_[block, len(det)][1:], strict=True):
            rows, at_row = np.unique(det[start:stop], return_inverse=True)
            truths, at_truth = np.unique(gt[start:stop], return_inverse=True)
            some, real = [self._masks[i] for i in rows], [self._gt_masks[j] for j in truths]
            sizes = {tuple(mask["size"]) for mask in (*some, *real)}
            if len(sizes) > 1:
                raise ValueError(f"masks of one image must have one size, got (height, width) {sorted(sizes)}")
            out[start:stop] = coco_mask.iou(some, real, self._crowd[truths].astype(np.uint8))[at_row, at_truth]
        return out


def encode(masks: ArrayLike | Sequence[RLE]) -> list[RLE]:
    """Run lengths of masks.

    Args:
        masks: (N, H, W) bool, array or tensor; or run lengths, which are returned as they are.

    Raises:
        ValueError: another shape.
    """
    from pycocotools import mask as coco_mask

    if isinstance(masks, Sequence):
        if all(isinstance(mask, dict) for mask in masks):
            return list(masks)
        masks = np.stack([np.asarray(mask) for mask in masks])
    array = np.asarray(masks)
    if array.ndim != 3:
        raise ValueError(f"masks must have shape (N, H, W), got {array.shape}")
    if not len(array):
        return []
    return list(coco_mask.encode(np.asfortranarray(array.astype(bool).transpose(1, 2, 0), np.uint8)))


def as_rle(segmentation: Any, height: int, width: int) -> RLE:
    """A COCO segmentation (polygons, or run lengths packed or not) as packed run lengths."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        packed: RLE = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        packed = coco_mask.frPyObjects(segmentation, height, width)
    else:
        packed = segmentation
    return packed


def decode_masks(truth: GroundTruth, height: int, width: int) -> NDArray[np.bool_]:
    """Decodes the segmentations of an image.

    Returns:
        (G, height, width) bool.

    Raises:
        ValueError: the ground truth has no masks.
    """
    from pycocotools import mask as coco_mask

    packed = [as_rle(segmentation, height, width) for segmentation in _segmentations(truth)]
    if not packed:
        return np.zeros((0, height, width), bool)
    out: NDArray[np.bool_] = coco_mask.decode(packed).astype(bool).transpose(2, 0, 1)
    return out


def truth_masks(dataset: DetectionDataset) -> list[RLE]:
    """All ground-truth masks of a data set, in the order of its `truth_arrays`.

    Raises:
        ValueError: an image has no masks, or its size is not known.
    """
    out = []
    for image in dataset:
        if image.height is None or image.width is None:
            raise ValueError(f"the annotations do not say how large image {image.id} is, which its masks need")
        out += [as_rle(s, image.height, image.width) for s in _segmentations(image.truth)]
    return out


def _segmentations(truth: GroundTruth) -> list[Any]:
    if truth.masks is None:
        raise ValueError("this ground truth has boxes only: not every object has a segmentation")
    return truth.masks
