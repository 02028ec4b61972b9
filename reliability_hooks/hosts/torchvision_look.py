"""The kept rows of a torchvision detector in other pixels, gradients kept: logits, boxes and masks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ..frame import MAPS, Glance, Layer
from .look import Kept
from .torchvision_rows import Capture, Family, fpn, sizes


def glance(
    model: Any, inputs: Any, *, family: Family, capture: Capture, i: int, kept: Kept, parts: Collection[str]
) -> Glance:
    """What is found at the rows of image i.

    Args:
        model: The detector.
        inputs: `ImageList` of B versions of the image, padded as its batch was.
        family: Of the model.
        capture: Of the pass that the rows come from.
        i: Index of the image in it.
        kept: The rows.
        parts: What is wanted beside logits.
    """
    if family.decode is None:
        return _two_stage(model, inputs, capture, i, kept, parts)
    return _one_stage(model, inputs, capture, i, kept, parts, family.decode)


def shared(capture: Capture) -> dict[str, Layer]:
    """The stages of the backbone as layers, which cover the padding of the batch too."""
    height, width = capture["transform"][1][0].tensors.shape[-2:]
    found = {name: capture[name][1] for name in MAPS if name in capture}
    return {
        name: Layer(values, values.new_tensor([[0, 0, width, height]], dtype=torch.float32))
        for name, values in found.items()
    }


def _two_stage(model: Any, inputs: Any, capture: Capture, i: int, kept: Kept, parts: Collection[str]) -> Glance:
    """The RoIs stay where they were proposed, and those of the masks at the final boxes."""
    (_, proposals, *_), _ = capture["roi_heads"]
    heads, count, features = model.roi_heads, len(inputs.tensors), fpn(model, inputs)
    rois, layers = proposals[i].detach()[kept.rows], {}

    def pooled(name: str, pool: Any, boxes: Tensor) -> Tensor:
        values: Tensor = pool(features, [boxes] * count, inputs.image_sizes)
        if "layers" in parts:
            layers[name] = Layer(values, boxes.float(), torch.arange(len(boxes), device=boxes.device))
        return values

    logits, deltas = heads.box_predictor(heads.box_head(pooled("rois", heads.box_roi_pool, rois)))
    boxes = masks = rects = None
    if "boxes" in parts:
        own = deltas.unflatten(1, (-1, 4))[torch.arange(len(deltas), device=rois.device), kept.labels.repeat(count)]
        boxes = heads.box_coder.decode_single(own, rois.repeat(count, 1)).unflatten(0, (count, -1))
    if "masks" in parts and heads.has_mask():
        (h, w), (seen_h, seen_w) = sizes(capture, i)
        rects = kept.boxes.to(rois.dtype) * rois.new_tensor([seen_w / w, seen_h / h] * 2)
        every = heads.mask_predictor(heads.mask_head(pooled("mask_rois", heads.mask_roi_pool, rects)))
        own = every[torch.arange(len(every), device=rois.device), kept.labels.repeat(count)]
        masks = own.unflatten(0, (count, -1))
    return Glance(logits.unflatten(0, (count, -1)), boxes=boxes, masks=masks, mask_boxes=rects, layers=layers)


def _one_stage(
    model: Any, inputs: Any, capture: Capture, i: int, kept: Kept, parts: Collection[str], decode: str
) -> Glance:
    found, count = model.head(list(fpn(model, inputs).values())), len(inputs.tensors)
    boxes = None
    if "boxes" in parts:
        anchors = capture["anchor_generator"][1][i].detach()[kept.rows].repeat(count, 1)
        flat = getattr(model.box_coder, decode)(found["bbox_regression"][:, kept.rows].flatten(0, 1), anchors)
        boxes = flat.unflatten(0, (count, -1))
    return Glance(found["cls_logits"][:, kept.rows], boxes=boxes, layers={})
