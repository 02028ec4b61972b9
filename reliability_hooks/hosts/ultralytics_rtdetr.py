"""RT-DETR in ultralytics: queries instead of anchors, and an image that is stretched and not letterboxed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..frame import Candidates, Frame, Glance, Layer, View
from ..instances import Instances
from .base import dropping
from .look import Kept, Part, frozen
from .queries import Inside, Pass
from .query_look import glance
from .query_rows import raw_rows
from .rows import candidates, with_evidence

if TYPE_CHECKING:
    from .ultralytics_tap import HeadTap, Seen

CACHED = ("shapes", "anchors", "valid_mask")
"""What the head keeps of its last input."""


def is_rtdetr(head: Any) -> bool:
    """Whether this is the head of an RT-DETR."""
    from ultralytics.nn.modules.head import RTDETRDecoder

    return isinstance(head, RTDETRDecoder)


def score_layer(head: Any) -> nn.Linear:
    """The layer that makes the logits of the queries."""
    found: nn.Linear = head.dec_score_head[head.decoder.eval_idx]
    return found


def backbone(layers: nn.Sequential) -> Iterator[nn.Module]:
    """The layers before the neck, which begins with the first that does not take the last one's output."""
    for layer in layers:
        if layer.f != -1:
            return
        yield layer


def as_pass(head: Any, output: Any, image: Tensor, seen: Seen, last: bool) -> Pass:
    """One pass of the network, detached.

    Args:
        head: `RTDETRDecoder`.
        output: What it returned.
        image: (B, 3, h, w).
        seen: By the hooks inside.
        last: Whether somebody needs the last layer.
    """
    _, (boxes, scores, *_) = output
    layer, logits = score_layer(head), scores[-1].detach()
    hidden = seen.inputs.get(layer)  # a frame that has outlived its handle is run again without hooks
    hidden = None if hidden is None else hidden.detach()
    maps = {name: level.detach() for name, level in Inside(seen.stages).maps(image.shape).items()}
    layers = [(layer, hidden, logits)] if last and hidden is not None else []
    return Pass("rt_detr", image.detach(), None, logits, boxes[-1].detach(), None, hidden, maps, layers)


def query_frame(
    tap: HeadTap, net: nn.Module, seen: Seen, i: int, kept: Instances, shown: View | None, dtype: torch.dtype
) -> Frame:
    """The frame of image i.

    Args:
        tap: Whose hooks these are.
        net: The network.
        seen: By the hooks.
        i: Index in the batch.
        kept: The detections.
        shown: The view.
        dtype: Of the boxes that were returned.
    """
    assert seen.image is not None
    assert kept.image_size is not None
    own = as_pass(seen.head, seen.output, seen.image, seen, "classifier" in tap.needs)
    can_look = shown is not None and "look" in tap.needs
    return replace(
        with_evidence(kept, raw_rows(own, i, kept.image_size, dtype),
                      partial(_look, tap, net, seen.head, own, i) if can_look else None),
        view=shown,
        maps=own.cut(own.maps, i),
        rerun=None if shown is None else partial(_rerun, tap, net, seen.head, own, i),
        dropout=tap.dropout,
    )


def _rerun(
    tap: HeadTap, net: nn.Module, head: Any, own: Pass, i: int, pixels: Tensor, dropout: bool = False
) -> list[Candidates]:
    """See `Frame.rerun`."""
    given = own.again(i, pixels)["pixel_values"]
    with torch.no_grad(), tap.aside() as aside, dropping(net) if dropout else nullcontext():
        made = as_pass(head, net(given), given, aside, False)
    return [candidates(raw_rows(made, k, own.sizes[i])) for k in range(len(pixels))]


def _look(
    tap: HeadTap, net: nn.Module, head: Any, own: Pass, i: int, kept: Kept, pixels: Tensor, parts: Collection[str]
) -> Glance:
    """See `Frame.look`."""
    from .ultralytics_tap import own_anchors

    def run(net: nn.Module, x: Tensor) -> Glance:
        _, (boxes, scores, *_) = net(x)
        return glance(SimpleNamespace(logits=scores[-1], pred_boxes=boxes[-1]), own, i, kept, parts)

    given = own.again(i, pixels)["pixel_values"]
    with tap.aside() as aside, own_anchors(head, CACHED):
        found: Glance = frozen(Part(net, run), given)
    levels = Inside(aside.stages).maps(given.shape)
    whole = given.new_tensor([[0.0, 0.0, given.shape[3], given.shape[2]]], dtype=torch.float32)
    layers = {name: Layer(values, whole) for name, values in levels.items()} if "layers" in parts else None
    return replace(found, maps=own.cut(levels, i, slice(None)), layers=layers)
