"""What an ultralytics network computes, in our terms: raw rows, the letterboxed view, masks, stages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..frame import MAPS, Glance, View
from .last_layer import of_levels, plain
from .rows import RawRows, pool_features

BRANCHES = ("cv3", "one2one_cv3")
"""Classes of the head: with suppression, and end-to-end."""


def stages(layers: nn.Sequential) -> dict[str, int]:
    """Where the stages of the backbone with strides 4, 8 and 16 end; those that are there."""
    strides: list[int] = []
    for layer in layers:
        if layer.f != -1:  # the first layer that does not take the last one's output begins the neck
            break
        steps = [m.stride[0] for m in layer.modules() if isinstance(m, nn.Conv2d)]
        strides.append((strides[-1] if strides else 1) * max(steps, default=1))
    return {
        name: max(i for i, s in enumerate(strides) if s == stride)
        for name, stride in zip(MAPS, (4, 8, 16), strict=True)
        if stride in strides
    }


def class_layers(head: Any) -> dict[str, list[nn.Conv2d]]:
    """The last convolution of each level, by branch, where these give the logits: World and YOLOE heads go on."""
    found = {}
    for name in BRANCHES:
        branch = getattr(head, name, None)  # None: `fuse` takes out the one that is not in use
        last = [[m for m in level.modules() if isinstance(m, nn.Conv2d)][-1] for level in branch or ()]
        alike = all(m.out_channels == head.nc and m.weight.shape == last[0].weight.shape for m in last)
        if last and alike and all(plain(m, head.nc) for m in last):
            found[name] = last
    return found


def raw_rows(
    head: Any,
    output: Any,
    i: int,
    size: tuple[int, ...],
    image_size: tuple[int, int] | None,
    inputs: Mapping[nn.Module, Tensor] | None = None,
) -> RawRows:
    """The rows of image i.

    Args:
        head: The module.
        output: What it returned.
        i: Index in the batch.
        size: (height, width) of the input.
        image_size: Boxes are in pixels of the original, or of the input itself where this is not given.
        inputs: What each of `class_layers` was given, where somebody needs it.
    """
    from ultralytics.utils import ops

    decoded, raw = output[0], selected(head, output)
    if isinstance(decoded, tuple):  # segmentation returns its prototypes beside the rows
        decoded = decoded[0]
    logits = raw["scores"][i].T
    if head.end2end:  # what the head returned are the kept rows only
        boxes, scores = head._get_decode_boxes(raw)[i].T, logits.sigmoid()
    else:
        boxes, scores = decoded[i, :4].T, decoded[i, 4 : 4 + head.nc].T
    xyxy = head.end2end or head.xyxy

    def decode(rows: Tensor, labels: Tensor) -> Tensor:
        chosen = boxes[rows]
        chosen = chosen.clone() if xyxy else ops.xywh2xyxy(chosen)
        scaled: Tensor = chosen if image_size is None else ops.scale_boxes(size, chosen, image_size)
        return scaled

    def features(rows: Tensor, kept: Tensor) -> Tensor:
        in_input = kept if image_size is None else letterbox(size, image_size).to_view(kept.float())
        return pool_features([level[i] for level in raw["feats"]], in_input, (size[0], size[1]))

    layers = class_layers(head).get(BRANCHES[head.end2end], []) if inputs else []
    seen = [inputs[layer][i] for layer in layers if layer in inputs] if inputs else []
    return RawRows(
        scores=scores, logits=logits, decode=decode, head="sigmoid", features=features,
        classifier=partial(of_levels, layers, seen) if layers and len(seen) == len(layers) else None,
    )


def glance(head: Any, output: Any, rows: Tensor, size: tuple[int, ...], parts: Collection[str]) -> Glance:
    """What the head returned at rows (n,) of each of B inputs of a size (height, width), gradients kept."""
    from ultralytics.utils import ops

    raw = selected(head, output)
    coefficients = raw.get("mask_coefficient") if "masks" in parts else None
    boxes, found, rects = None, None, None
    if "boxes" in parts:
        boxes = head._get_decode_boxes(raw)[:, :, rows].transpose(1, 2)
        boxes = boxes if head.end2end or head.xyxy else ops.xywh2xyxy(boxes)
    if coefficients is not None:
        # the prototypes beside the rows: those of an end-to-end branch are cut off from the network
        found = torch.einsum("bcn,bchw->bnhw", coefficients[:, :, rows], output[0][1])
        rects = found.new_tensor([0, 0, size[1], size[0]], dtype=torch.float32).expand(len(rows), 4)
    return Glance(raw["scores"][:, :, rows].transpose(1, 2), boxes=boxes, masks=found, mask_boxes=rects)


def selected(head: Any, output: Any) -> Any:
    """Scores, boxes and features before decoding, of the branch that is in use."""
    raw = output[1]
    return raw["one2one" if head.end2end else "one2many"] if "one2one" in raw else raw


def letterbox(size: tuple[int, ...], image_size: tuple[int, int], pixels: Tensor | None = None) -> View:
    """Where the image lies in the padded input; the same arithmetic as `ultralytics.utils.ops.scale_boxes`."""
    gain = min(size[0] / image_size[0], size[1] / image_size[1])
    h, w = (max(round(x * gain), 1) for x in image_size)
    return View(
        pixels=torch.empty(3, 0, 0) if pixels is None else pixels,
        scale=(w / image_size[1], h / image_size[0]),
        offset=(round((size[1] - w) / 2 - 0.1), round((size[0] - h) / 2 - 0.1)),
    )


def view(pixels: Tensor, image_size: tuple[int, int], stretched: bool = False) -> View | None:
    """The input of one image as a view; None for a network of something other than RGB."""
    if len(pixels) != 3:
        return None
    if stretched:
        return View(pixels, scale=(pixels.shape[2] / image_size[1], pixels.shape[1] / image_size[0]))
    return letterbox(tuple(pixels.shape[1:]), image_size, pixels)


def masks(result: Any) -> Tensor | None:
    """(N, h, w) bool without the letterbox padding."""
    if result.masks is None:
        return None
    found: Tensor = result.masks.data
    if tuple(found.shape[1:]) != tuple(result.orig_shape):
        box = letterbox(tuple(found.shape[1:]), result.orig_shape)
        left, top = int(box.offset[0]), int(box.offset[1])
        height, width = round(result.orig_shape[0] * box.scale[1]), round(result.orig_shape[1] * box.scale[0])
        found = found[:, top : top + height, left : left + width]
    return found.bool()  # a copy: torch.save refuses two dtypes of one storage
