"""What lies inside a Detectron2 model beside its rows: view, stages of the backbone, the classifier's last layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..frame import MAPS, Classifier, Layer, View
from .detectron2_rows import Pass
from .last_layer import of_anchors, of_linear, plain

LAST = "last layer of the classifier"
"""Name in a pass of (inputs of each call, the layer)."""
CHANNELS = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}
"""Input format -> the order in which its channels are red, green, blue; and the other way round."""


def view(model: Any, seen: Pass, i: int, format: str) -> View | None:
    """Image i as the backbone saw it, or as the model was given it where there is no backbone; in RGB.

    None where it is neither RGB nor BGR.
    """
    h, w = seen.sizes[i]
    normalised = seen.pixels is not None and hasattr(model, "pixel_mean") and hasattr(model, "pixel_std")
    pixels = seen.batch[i, :, :h, :w].detach() if normalised else seen.images[i].detach().float()
    if format not in CHANNELS or len(pixels) != 3:
        return None
    order = CHANNELS[format]
    mean, std = torch.zeros(3), torch.ones(3)
    if normalised:
        mean, std = (t.detach().float().flatten() for t in (model.pixel_mean, model.pixel_std))
    (r, g, b), (sr, sg, sb) = ((values / 255)[order].tolist() for values in (mean, std))
    return View(pixels=pixels[order], scale=seen.scale(i), mean=(r, g, b), std=(sr, sg, sb))


def trunk(backbone: nn.Module) -> Iterator[nn.Module]:
    """The stages of a backbone below its feature pyramid, and the blocks of those that are lists.

    `ResNet` and its like have a child for each stage; `FPN` holds them as `bottom_up`.
    """
    for child in getattr(backbone, "bottom_up", backbone).children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield child


def stage(seen: Pass, output: Any) -> str | None:
    """The name in `MAPS` of a feature map (B, C, h, w), by how many input pixels there are for each of its own."""
    if seen.pixels is None or not isinstance(output, Tensor) or output.ndim != 4:
        return None
    size = seen.pixels.shape[-2:]
    for name, stride in zip(MAPS, (4, 8, 16), strict=True):
        if all(n // stride <= m <= -(-n // stride) for n, m in zip(size, output.shape[-2:], strict=True)):
            return name
    return None


def maps(seen: Pass, i: int | slice) -> dict[str, Tensor] | None:
    """Feature maps of an image, or of several of one size, by depth and without the padding of the batch.

    None where a stage is not there.
    """
    if any(name not in seen.calls for name in MAPS):
        return None
    height, width = seen.batch.shape[-2:]
    h, w = seen.sizes[0 if isinstance(i, slice) else i]
    levels = {name: seen.calls[name][1][i] for name in MAPS}
    return {
        name: level[..., : -(-h * level.shape[-2] // height), : -(-w * level.shape[-1] // width)]
        for name, level in levels.items()
    }


def shared(seen: Pass) -> dict[str, Layer]:
    """The stages of the backbone as layers, which cover the padding of the batch too."""
    height, width = seen.batch.shape[-2:]
    found = {name: seen.calls[name][1] for name in MAPS if name in seen.calls}
    return {
        name: Layer(values, values.new_tensor([[0, 0, width, height]], dtype=torch.float32))
        for name, values in found.items()
    }


def last_layer(model: nn.Module, path: str | None) -> nn.Module | None:
    """The module at the path; None where there is none, as in a head of somebody's own."""
    try:
        return None if path is None else model.get_submodule(path)
    except AttributeError:
        return None


def classifier(seen: Pass, i: int, columns: int) -> Callable[[Tensor], Classifier] | None:
    """The last layer at rows (n,) of image i; None where it is not of a kind that is known.

    R-CNN: a fully connected layer, whose last row is the background's. RetinaNet and FCOS: a convolution, one map for
    each anchor of a place. A cascade has one for each stage: none.

    Args:
        seen: The pass.
        i: Image.
        columns: Classes, without the background.
    """
    if LAST not in seen.calls:
        return None
    inputs, layer = seen.calls[LAST]
    if isinstance(layer, nn.Linear) and layer.out_features == columns + 1 and len(inputs) == 1:
        rows_of = inputs[0].split([len(p) for p in seen.proposals])[i]
        return lambda rows: of_linear(layer, rows_of[rows], background=columns)
    if plain(layer, columns) and "head" in seen.calls:
        return lambda rows: of_anchors(layer, [level[i] for level in inputs], rows, columns)
    return None
