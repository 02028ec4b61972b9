"""Passes of a Detectron2 model on given pixels: all of it, and the kept rows alone, gradients kept."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ..frame import Glance, Layer
from .detectron2_rows import Pass, anchors, dense_rows, joined, of_class, rois, stages
from .look import Kept


def run(model: Any, seen: Pass, batch: Tensor) -> None:
    """What the model does after its normalisation, for the hooks to see; masks and keypoints are left out if they can.

    Args:
        model: The detector.
        seen: Where the hooks write.
        batch: (B, C, H, W) normalised and padded.
    """
    from detectron2.structures import ImageList

    images, features = ImageList(batch, list(seen.sizes)), model.backbone(batch)
    if hasattr(model, "head_in_features"):
        levels = [features[name] for name in model.head_in_features]
        model.head(levels)
        model.anchor_generator(levels)
        return
    proposals, _ = model.proposal_generator(images, features, None)
    if hasattr(model.roi_heads, "_forward_box"):
        seen.calls["roi_heads"] = ((images, features, proposals), None)
        model.roi_heads._forward_box(features, proposals)
    else:
        model.roi_heads(images, features, proposals, None)


def can_look(model: Any) -> bool:
    """Whether `glance` knows how the heads pool a row: those of FPN, of a cascade, of C4, and the dense ones."""
    heads = getattr(model, "roi_heads", None)
    return (
        hasattr(model, "head_in_features")
        or (hasattr(heads, "box_pooler") and hasattr(heads, "box_head"))
        or (hasattr(heads, "pooler") and hasattr(heads, "res5"))
    )


def glance(model: Any, batch: Tensor, *, seen: Pass, i: int, kept: Kept, parts: Collection[str]) -> Glance:
    """What is found at the rows of image i.

    Args:
        model: The detector.
        batch: (B, C, H, W) versions of the image, padded as its batch was.
        seen: The pass that the rows come from.
        i: Index of the image in it.
        kept: The rows.
        parts: What is wanted beside logits.
    """
    if hasattr(model, "head_in_features"):
        return _dense(model, batch, seen, kept, parts)
    return _two_stage(model, batch, seen, i, kept, parts)


def _two_stage(model: Any, batch: Tensor, seen: Pass, i: int, kept: Kept, parts: Collection[str]) -> Glance:
    """The RoIs of each stage stay where they were, and those of the masks at the final boxes."""
    from detectron2.structures import Boxes

    heads, count, features = model.roi_heads, len(batch), model.backbone(batch)
    made, layers, every = stages(model), {}, torch.arange(len(kept.rows), device=batch.device)
    at = [boxes[kept.rows] for boxes in rois(model, seen, i)]

    def pooled(name: str, pooler: Any, wanted: Any, boxes: Tensor) -> Tensor:
        values: Tensor = pooler([features[f] for f in wanted], [Boxes(boxes)] * count)
        if "layers" in parts:  # the last stage's, in a cascade
            layers[name] = Layer(values, boxes.float(), every)
        return values

    found = []
    for k, ((_, predictor), boxes) in enumerate(zip(made, at, strict=True)):
        if hasattr(heads, "res5"):
            inputs = heads.res5(pooled("rois", heads.pooler, heads.in_features, boxes)).mean(dim=[2, 3])
        else:
            head = heads.box_head[k] if len(made) > 1 else heads.box_head
            inputs = head(pooled("rois", heads.box_pooler, heads.box_in_features, boxes))
        found.append(predictor(inputs))
    predictor = made[-1][1]
    sigmoid = bool(getattr(predictor, "use_sigmoid_ce", False))
    logits = joined([logits for logits, *_ in found], sigmoid)
    logits = logits[:, :-1] if sigmoid else logits
    moved = masks = rects = None
    if "boxes" in parts:
        own = of_class(found[-1][1], torch.arange(len(logits), device=batch.device), kept.labels.repeat(count))
        moved = _of_each(predictor.box2box_transform.apply_deltas(own, at[-1].repeat(count, 1)), count)
    if "masks" in parts and hasattr(getattr(heads, "mask_head", None), "layers"):
        rects = kept.boxes.to(batch.dtype) * batch.new_tensor(seen.scale(i) * 2)
        if hasattr(heads, "res5"):
            inputs = heads.res5(pooled("mask_rois", heads.pooler, heads.in_features, rects))
        else:
            inputs = pooled("mask_rois", heads.mask_pooler, heads.mask_in_features, rects)
        each = heads.mask_head.layers(inputs)
        labels = kept.labels.repeat(count) if each.shape[1] > 1 else torch.zeros_like(kept.labels).repeat(count)
        masks = _of_each(each[torch.arange(len(each), device=batch.device), labels], count)
    return Glance(_of_each(logits, count), boxes=moved, masks=masks, mask_boxes=rects, layers=layers)


def _of_each(values: Tensor, count: int) -> Tensor:
    """(B * n, ...) -> (B, n, ...)."""
    return values.reshape(count, len(values) // count, *values.shape[1:])


def _dense(model: Any, batch: Tensor, seen: Pass, kept: Kept, parts: Collection[str]) -> Glance:
    features, count = model.backbone(batch), len(batch)
    logits, deltas, *_ = dense_rows(model, model.head([features[name] for name in model.head_in_features]))
    boxes = None
    if "boxes" in parts:
        at = anchors(seen)[kept.rows].repeat(count, 1)
        boxes = _of_each(model.box2box_transform.apply_deltas(deltas[:, kept.rows].flatten(0, 1), at), count)
    return Glance(logits[:, kept.rows], boxes=boxes, layers={})
