"""What lies inside a torchvision detector beside its rows: stages of the backbone, the classifier's last layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ..frame import MAPS, Classifier
from .last_layer import of_anchors, of_linear, plain
from .torchvision_rows import Capture, sizes

LAST = "last layer of the classifier"
"""Name in a capture of (inputs of each call, the layer)."""


def trunk(backbone: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a backbone below its feature pyramid, and what holds them: sequences, lists of stages, a wrapper.

    What is inside of a block is none of them: its first layers, before its stride, belong to no earlier stage.
    """
    from torchvision.ops import FeaturePyramidNetwork

    children = [m for m in backbone.children() if not isinstance(m, FeaturePyramidNetwork)]
    sequences = (nn.Sequential, nn.ModuleDict)
    wrapped = len(children) == 1 and not isinstance(backbone, sequences)
    for child in children:
        if isinstance(child, nn.ModuleList):
            yield from child
            continue
        yield child
        if wrapped or isinstance(child, sequences):
            yield from trunk(child)


def stage(capture: Capture, output: Any) -> str | None:
    """The name in `MAPS` of a feature map (B, C, h, w), by how many input pixels there are for each of its own."""
    if "transform" not in capture or not isinstance(output, Tensor) or output.ndim != 4:
        return None
    size = capture["transform"][1][0].tensors.shape[-2:]
    for name, stride in zip(MAPS, (4, 8, 16), strict=True):
        if all(n // stride <= m <= -(-n // stride) for n, m in zip(size, output.shape[-2:], strict=True)):
            return name
    return None


def maps(capture: Capture, i: int | slice) -> dict[str, Tensor] | None:
    """Feature maps of an image, or of several of one size, by depth and without the padding of the batch.

    None where a stage is not there.
    """
    if any(name not in capture for name in MAPS):
        return None
    height, width = capture["transform"][1][0].tensors.shape[-2:]
    h, w = sizes(capture, 0 if isinstance(i, slice) else i)[1]
    levels = {name: capture[name][1][i] for name in MAPS}
    return {
        name: level[..., : -(-h * level.shape[-2] // height), : -(-w * level.shape[-1] // width)]
        for name, level in levels.items()
    }


def last_layer(model: nn.Module, path: str | None) -> nn.Module | None:
    """The module at the path; None where there is none, as in a head of somebody's own."""
    try:
        return None if path is None else model.get_submodule(path)
    except AttributeError:
        return None


def classifier(capture: Capture, i: int, columns: int) -> Callable[[Tensor], Classifier] | None:
    """The last layer at rows (n,) of image i; None where it is not of a kind that is known.

    R-CNN: a fully connected layer, without the background. RetinaNet and FCOS: a convolution over the 3 x 3 places
    around, one map for each anchor of a place. SSD has layers of other widths for each level: none.

    Args:
        capture: Of the pass.
        i: Image.
        columns: Of the logits, with the background.
    """
    if LAST not in capture:
        return None
    inputs, layer = capture[LAST]
    if isinstance(layer, nn.Linear) and layer.out_features == columns and len(inputs) == 1 and "roi_heads" in capture:
        own = inputs[0].split([len(p) for p in capture["roi_heads"][0][1]])[i]
        return lambda rows: of_linear(layer, own[rows], background=0)
    if plain(layer, columns):
        return lambda rows: of_anchors(layer, [level[i] for level in inputs], rows, columns)
    return None
