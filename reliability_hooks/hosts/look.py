"""The kept objects in other pixels, differentiable in whatever mode the detector runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..frame import Glance, Look

LookAt = Callable[[Tensor, Tensor], Glance]
"""(rows (n,), pixels (B, 3, h, w)) -> logits (B, n, K) at these raw rows, and maps; called in grad mode."""


@contextmanager
def grad_mode() -> Iterator[None]:
    """Gradients are recorded, also inside of `torch.inference_mode` and `torch.no_grad`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def look_at(run: LookAt, rows: Tensor, found: Tensor) -> Look:
    """See `Frame.look`.

    Args:
        run: The host's.
        rows: (n,) the raw rows that are known.
        found: (N,) bool, which of the kept boxes they belong to.
    """

    def look(pixels: Tensor) -> Glance:
        with grad_mode():
            # what was made in inference mode cannot be saved for a backward pass
            given, at, where = (t.clone() if t.is_inference() else t for t in (pixels, rows, found))
            glance = run(at, given)
            logits = glance.logits.float()
            full = logits.new_full((len(given), len(where), logits.shape[2]), torch.nan)
            full[:, where] = logits
            return replace(glance, logits=full)

    return look


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
