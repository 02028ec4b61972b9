"""The kept queries of a DETR-like model in other pixels, gradients kept: logits, boxes and masks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ..frame import Glance
from .look import Kept
from .queries import Pass
from .query_rows import HEADS, without_background

OWN = 1e-3
"""What the query itself is given ahead, so that rounding, or a box without area, makes no other one its partner."""


def glance(output: Any, seen: Pass, i: int, kept: Kept, parts: Collection[str]) -> Glance:
    """What is found in B versions of image i.

    The number of a query means nothing in other pixels: most of these models choose their queries by the image. The
    partner of an object is the query with the highest IoU * (1 - |p - p'|), p the probability of the object's class
    before and after (after D-RISE, Petsiuk et al. 2021, eq. 3: overlap times likeness of the scores). Where several
    are alike, and in the untouched pixels, it is the query itself. The choice has no gradient, and neither have the
    places where RT-DETR and D-FINE cut theirs off, as in training (the queries' content and reference points).

    Args:
        output: Of the model, of the versions.
        seen: The pass that the objects come from.
        i: Index of the image in it.
        kept: The rows.
        parts: What is wanted beside logits.
    """
    boxed = seen.boxes is not None
    logits = output.logits if boxed else output.class_queries_logits
    now, then = _probabilities(logits.detach(), seen.kind), _probabilities(seen.logits[i][kept.rows], seen.kind)
    at = kept.labels[None, None].expand(len(now), now.shape[1], -1)
    change = (now.gather(2, at) - then.gather(1, kept.labels[:, None])[:, 0]).abs().transpose(1, 2)
    if boxed:
        assert seen.boxes is not None
        overlap = _box_overlap(output.pred_boxes.detach(), seen.boxes[i][kept.rows])
    else:
        assert seen.masks is not None
        overlap = _mask_overlap(output.masks_queries_logits.detach() > 0, seen.masks[i][kept.rows] > 0)
    likeness = overlap * (1 - change)
    own = kept.rows[None, :, None].expand(len(now), -1, 1)
    query = likeness.scatter_add(2, own, torch.full_like(own, OWN, dtype=likeness.dtype)).argmax(2)

    def chosen(values: Tensor) -> Tensor:
        index = query.reshape(*query.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index)

    boxes = masks = rects = None
    if boxed and "boxes" in parts:
        h, w = seen.sizes[i]
        x, y, width, height = (chosen(output.pred_boxes).float() * logits.new_tensor([w, h] * 2)).unbind(-1)
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    if not boxed and "masks" in parts:
        masks = chosen(output.masks_queries_logits)
        height, width = seen.pixels.shape[2:]
        rects = masks.new_tensor([0, 0, width, height], dtype=torch.float32).expand(len(kept.rows), 4)
    return Glance(chosen(logits), boxes=boxes, masks=masks, mask_boxes=rects)


def _probabilities(logits: Tensor, kind: str) -> Tensor:
    return logits.float().sigmoid() if HEADS[kind] == "sigmoid" else without_background(logits.float().softmax(-1))


def _box_overlap(found: Tensor, wanted: Tensor) -> Tensor:
    """(B, n, Q) IoU of boxes (B, Q, 4) and (n, 4), both centre and size relative to the image."""
    from torchvision.ops import box_convert, box_iou

    corners, own = (box_convert(t.float(), "cxcywh", "xyxy") for t in (found, wanted))
    overlap: Tensor = box_iou(own, corners.flatten(0, 1))
    return overlap.nan_to_num(0).view(len(own), *found.shape[:2]).transpose(0, 1)


def _mask_overlap(found: Tensor, wanted: Tensor) -> Tensor:
    """(B, n, Q) IoU of masks (B, Q, h, w) and (n, h, w) bool."""
    own, other = wanted.flatten(1).float(), found.flatten(2).float()
    both = own @ other.transpose(1, 2)
    either = own.sum(1)[None, :, None] + other.sum(2)[:, None] - both
    return both / either.clamp(min=1)
