"""Detections of labelled images, and what is true of each."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
import torch
from torch import Tensor

from ..instances import Instances
from .datasets import GroundTruth
from .matching import match

Pairs = Sequence[tuple[Instances, GroundTruth]]
MASK_IOU = "truth/mask_iou"
"""Column that `with_mask_iou` adds."""
OBJECT_IOU = "truth/object_iou"
"""Column that `with_object_iou` adds: where it is, it says what is right, and boxes are not matched."""


def labelled(pairs: Pairs, iou_threshold: float = 0.5) -> tuple[Instances, Tensor, Tensor, Tensor]:
    """All detections of labelled images with what is true of them; those on crowd regions are left out.

    Where every image has the column `OBJECT_IOU`, right is an IoU with the object of at least the threshold.

    Returns:
        rows: All instances, without masks, logits and features.
        correct: (N,) bool, true positive at `iou_threshold` (COCO greedy matching).
        iou: (N,) IoU with the object matched at any overlap, 0 without one (the target of LaECE_0).
        image: (N,) index of the pair.

    Raises:
        ValueError: No pairs.
    """
    if not pairs:
        raise ValueError("no labelled images: pass at least one (instances, ground truth)")
    bare = [
        i.replace(masks=None, logits=None, head=None, background=None, features=None, track_ids=None).cpu()
        for i, _ in pairs
    ]
    # an image without detections has every signal's columns, also those for which the detector gives no evidence
    rows = Instances.cat([i for i in bare if len(i)] or bare[:1])
    image = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor([len(i) for i in bare]))
    if OBJECT_IOU in rows.columns:
        overlap = rows.columns[OBJECT_IOU].float()
        known = overlap.isfinite()
        return rows[known], (overlap >= iou_threshold)[known], overlap[known], image[known]
    strict, any_overlap = (
        match(rows.boxes, rows.scores, rows.labels, image, *truth_of(pairs), iou_threshold=tau)
        for tau in (iou_threshold, 0.0)
    )
    keep = torch.from_numpy(~strict.ignore)
    iou = torch.from_numpy(any_overlap.iou * any_overlap.tp)
    return rows[keep], torch.from_numpy(strict.tp)[keep], iou[keep].float(), image[keep]


def with_mask_iou(instances: Instances, truth: GroundTruth) -> Instances:
    """The instances with the column `MASK_IOU`: of each mask with that of the object that its box is matched to.

    At any overlap of boxes, as the box's own IoU; 0 without such an object, NaN where a crowd absorbs the detection,
    and where detections or objects have no masks.
    """
    if OBJECT_IOU in instances.columns:  # which is that of the mask
        return instances
    if instances.masks is None or truth.masks is None or instances.image_size is None:
        return instances.with_columns({MASK_IOU: torch.full_like(instances.scores, nan, dtype=torch.float32)})
    from .masks import MaskIoU, as_rle, encode

    where = np.zeros(len(instances), np.int64), np.zeros(len(truth), np.int64)
    kept = instances.cpu()
    found = match(kept.boxes, kept.scores, kept.labels, where[0], truth.boxes, truth.labels, where[1], truth.crowd,
                  iou_threshold=0.0)  # fmt: skip
    value = np.where(found.ignore, nan, 0.0)
    hit = np.flatnonzero(found.tp)
    if len(hit):
        theirs = [as_rle(truth.masks[j], *instances.image_size) for j in found.gt_index[hit]]
        each = np.arange(len(hit))
        value[hit] = MaskIoU(encode(kept.masks_at(instances.image_size)[hit]), theirs)(each, each)
    return instances.with_columns({MASK_IOU: torch.from_numpy(value).float().to(instances.device)})


def with_object_iou(instances: Instances, truth: GroundTruth, objects: np.ndarray | None = None) -> Instances:
    """The instances with the column `OBJECT_IOU`: (N,) IoU of each mask with that of its object, of whatever class.

    Args:
        instances: With masks.
        truth: The annotated objects.
        objects: (N,) the object that each instance was asked for; without it, COCO's greedy matching of masks at any
            overlap: 0 for what finds none, NaN for what a crowd absorbs.

    Raises:
        ValueError: There are no masks, or the size of the image is not known.
    """
    if len(instances) == 0:
        return instances.with_columns({OBJECT_IOU: torch.zeros(0, device=instances.device)})
    if instances.masks is None or instances.image_size is None or (truth.masks is None and len(truth)):
        raise ValueError("masks of instances and of every annotated object are needed, and the size of the image")
    from .masks import MaskIoU, as_rle, encode

    kept = instances.cpu()
    theirs = [as_rle(mask, *instances.image_size) for mask in truth.masks or []]
    iou = MaskIoU(encode(kept.masks_at(instances.image_size)), theirs, truth.crowd)
    if objects is not None:
        value = iou(np.arange(len(kept)), np.asarray(objects, np.int64))
    else:
        where = np.zeros(len(kept), np.int64), np.zeros(len(truth), np.int64)
        found = match(kept.boxes, kept.scores, kept.labels, where[0], truth.boxes, truth.labels, where[1], truth.crowd,
                      iou_threshold=0.0, class_agnostic=True, pair_iou=iou)  # fmt: skip
        value = np.where(found.ignore, nan, found.iou)
    return instances.with_columns({OBJECT_IOU: torch.from_numpy(value).float().to(instances.device)})


def with_truth(instances: Instances, truth: GroundTruth, iou_threshold: float = 0.5) -> Instances:
    """The instances with the column `truth`: (N,) int64 label of the object that each box finds, of whatever class.

    -1 where it finds none, or one of a class that the detector does not know.
    """
    kept = instances.cpu()
    where = np.zeros(len(kept), np.int64), np.zeros(len(truth), np.int64)
    found = match(kept.boxes, kept.scores, kept.labels, where[0], truth.boxes, truth.labels, where[1], truth.crowd,
                  iou_threshold=iou_threshold, class_agnostic=True)  # fmt: skip
    label = np.full(len(kept), -1)
    label[found.tp] = truth.labels[found.gt_index[found.tp]]
    return instances.with_columns({"truth": torch.from_numpy(label).to(instances.device)})


def truth_of(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, labels, index of the pair and crowd flags of all annotated objects, as `match` takes them."""
    truths = [t for _, t in pairs]
    return (
        np.concatenate([t.boxes for t in truths]), np.concatenate([t.labels for t in truths]),
        np.repeat(np.arange(len(pairs)), [len(t) for t in truths]), np.concatenate([t.crowd for t in truths]),
    )  # fmt: skip
