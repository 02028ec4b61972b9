"""The kept objects in other pixels, differentiable in whatever mode the detector runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..frame import Glance, Layer, Look


class Kept(NamedTuple):
    """The kept boxes whose raw row is known.

    Attributes:
        rows: (n,) int64, of the raw rows.
        labels: (n,) int64.
        boxes: (n, 4) xyxy in pixels of the original image, as the detector returned them.
    """

    rows: Tensor
    labels: Tensor
    boxes: Tensor


LookAt = Callable[[Kept, Tensor, Collection[str]], Glance]
"""(kept, pixels (B, 3, h, w), parts) -> a glance of n rows; called in grad mode."""


@contextmanager
def grad_mode() -> Iterator[None]:
    """Gradients are recorded, also inside of `torch.inference_mode` and `torch.no_grad`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def look_at(run: LookAt, kept: Kept, found: Tensor) -> Look:
    """See `Frame.look`.

    Args:
        run: The host's.
        kept: Those that are known.
        found: (N,) bool, which of the kept boxes they are.
    """
    position = found.cumsum(0) - 1

    def look(pixels: Tensor, parts: Collection[str] = (), rows: Tensor | None = None) -> Glance:
        with grad_mode():
            asked = torch.arange(len(found), device=found.device) if rows is None else rows
            known = found[asked]
            # what was made in inference mode cannot be saved for a backward pass
            at = Kept(*(_usable(t)[position[asked[known]]] for t in kept))
            return _scattered(run(at, _usable(pixels), parts), _usable(known), len(pixels))

    return look


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _scattered(glance: Glance, known: Tensor, count: int) -> Glance:
    """The rows of a glance at their places among all that were asked for, NaN at the others."""
    every = bool(known.all())

    def full(values: Tensor) -> Tensor:
        if every:  # a copy of all masks in all versions is worth avoiding
            return values.float()
        out = values.new_full((count, len(known), *values.shape[2:]), torch.nan, dtype=torch.float32)
        out[:, known] = values.float()
        return out

    def layer(given: Layer) -> Layer:
        return given if given.which is None else replace(given, which=known.nonzero()[:, 0][given.which])

    rects = glance.mask_boxes
    return replace(
        glance,
        logits=full(glance.logits),
        boxes=None if glance.boxes is None else full(glance.boxes),
        masks=None if glance.masks is None else full(glance.masks),
        mask_boxes=None if rects is None else rects.new_full((len(known), 4), torch.nan).index_put((known,), rects),
        layers=None if glance.layers is None else {name: layer(given) for name, given in glance.layers.items()},
    )


def frozen(module: nn.Module, *args: Any) -> Any:
    """`module(*args)` with weights that no gradient reaches, whoever calls `backward`; afterwards it is as it was.

    A pass of the same module in another thread meanwhile sees the frozen weights too.
    """
    named = chain(module.named_parameters(), module.named_buffers())
    held = {name: t.clone() if t.is_inference() else t.detach() for name, t in named}
    return torch.func.functional_call(module, held, args)


class Part(nn.Module):
    """A pass through a part of a model, for `frozen`: `run(model, *args)`."""

    def __init__(self, model: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, *args: Any) -> Any:
        return self.run(self.model, *args)
