"""The last layer of a classifier at the kept rows only: what it sees, and its weights as a linear map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..frame import Classifier


def of_linear(layer: nn.Linear, inputs: Tensor, background: int) -> Classifier:
    """A fully connected layer.

    Args:
        layer: Its weight is (classes with the background, D).
        inputs: (n, ...) what it is given for each row.
        background: Column that is dropped.
    """
    keep = torch.arange(layer.out_features, device=inputs.device) != background
    bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
    return Classifier(
        inputs=inputs.detach().flatten(1).float(),
        weight=layer.weight.detach()[None, keep].float(),
        bias=bias.detach()[None, keep].float(),
        which=torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device),
    )


def of_levels(layers: Sequence[nn.Conv2d], maps: Sequence[Tensor], rows: Tensor) -> Classifier:
    """A convolution for each level, with one row for each place: `which` is the level."""
    inputs, level, _ = patches(maps, rows, layers[0].kernel_size[0])
    return Classifier(
        inputs=inputs,
        weight=torch.stack([layer.weight.detach().flatten(1).float() for layer in layers]),
        bias=torch.stack([_bias(layer) for layer in layers]),
        which=level,
    )


def of_anchors(layer: nn.Conv2d, maps: Sequence[Tensor], rows: Tensor, classes: int) -> Classifier:
    """One convolution for all levels, with a row for each anchor of a place: `which` is the anchor."""
    anchors = layer.out_channels // classes
    inputs, _, anchor = patches(maps, rows, layer.kernel_size[0], anchors)
    return Classifier(
        inputs=inputs,
        weight=layer.weight.detach().float().reshape(anchors, classes, -1),
        bias=_bias(layer).view(anchors, classes),
        which=anchor,
    )


def plain(layer: nn.Module, classes: int) -> bool:
    """Whether a layer is a convolution that keeps the size of its map, so that `patches` are what it sees."""
    if not isinstance(layer, nn.Conv2d):
        return False
    k = layer.kernel_size[0]
    return (
        layer.kernel_size == (k, k) and k % 2 == 1 and layer.padding == (k // 2, k // 2)
        and layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
        and layer.out_channels % classes == 0
    )


def patches(maps: Sequence[Tensor], rows: Tensor, kernel: int, anchors: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """What a convolution sees at some rows, without unfolding the maps.

    Args:
        maps: (C, h, w) of one image, one for each level.
        rows: (n,) int64, counted by level, y, x, anchor.
        kernel: Odd side of the patch; outside of a map there are zeros.
        anchors: Rows at each place.

    Returns:
        (n, C * kernel^2) float32 as the weight of the convolution is laid out, (n,) level and (n,) anchor.
    """
    sizes = rows.new_tensor([m.shape[1] * m.shape[2] * anchors for m in maps])
    ends = sizes.cumsum(0)
    level = torch.bucketize(rows, ends, right=True)
    local = rows - (ends - sizes)[level]
    place, anchor = local // anchors, local % anchors
    around = torch.arange(kernel, device=rows.device) - kernel // 2
    seen = torch.zeros(len(rows), len(maps[0]) * kernel**2, device=rows.device)
    for k, values in enumerate(maps):
        _, h, w = values.shape
        own = level == k
        y = (place[own] // w)[:, None, None] + around[:, None]
        x = (place[own] % w)[:, None, None] + around
        inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        patch = values.detach()[:, y.clamp(0, h - 1), x.clamp(0, w - 1)].masked_fill(~inside, 0)
        seen[own] = patch.movedim(1, 0).flatten(1).float()
    return seen, level, anchor


def _bias(layer: nn.Conv2d) -> Tensor:
    return layer.weight.new_zeros(layer.out_channels).float() if layer.bias is None else layer.bias.detach().float()
