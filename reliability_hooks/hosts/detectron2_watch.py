"""Hooks that note what a Detectron2 model computes while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .base import Hook, Removable
from .detectron2_inside import LAST, last_layer, stage, trunk
from .detectron2_rows import Family, Pass, dense_rows


class Watch:
    """The pass that runs, in each thread its own.

    Args:
        net: The model.
        family: Of its head; None where that is not known.
    """

    def __init__(self, net: Any, family: Family | None) -> None:
        self.net, self.family = net, family
        self._running = threading.local()  # `seen`: there during a pass in eval mode only

    @property
    def seen(self) -> Pass | None:
        found: Pass | None = getattr(self._running, "seen", None)
        return found

    def install(self, report: Callable[[Exception], None], needs: Collection[str]) -> list[Removable]:
        """Hook the model's beginning and its parts; who calls `take` at its end is the caller's affair.

        Args:
            report: Takes a fault of ours.
            needs: What costs (`maps`, `classifier`) is noted only where it is among them.
        """
        made: list[Removable] = [
            self.net.register_forward_pre_hook(Hook(self._start, report), with_kwargs=True),
            *(self.net.get_submodule(name).register_forward_hook(Hook(partial(self._keep, name), report))
              for name in (self.family.watched if self.family else ())),
        ]  # fmt: skip
        backbone = getattr(self.net, "backbone", None)
        if isinstance(backbone, nn.Module):
            made.append(backbone.register_forward_pre_hook(Hook(self._given, report)))
            if "maps" in needs:
                made += [m.register_forward_hook(Hook(self._keep_stage, report)) for m in trunk(backbone)]
        layer = last_layer(self.net, self.family.last) if self.family and "classifier" in needs else None
        if layer is not None:
            made.append(layer.register_forward_pre_hook(Hook(self._keep_input, report)))
        return made

    def take(self) -> Pass | None:
        """The pass that has ended, which is forgotten here; None of one in training mode."""
        seen, self._running.seen = self.seen, None
        return seen

    @contextmanager
    def aside(self, pixels: Tensor) -> Iterator[Pass]:
        """The hooks write into a pass of its own, of (B, 3, h, w) pixels; the running one stays."""
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in pixels]
        outer, self._running.seen = self.seen, Pass(sizes, sizes)  # resized by nothing: boxes stay as seen
        try:
            yield self._running.seen
        finally:
            self._running.seen = outer

    def _start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
        inputs = [*args, *kwargs.values()][0]
        self._running.seen = None if module.training or tracing else Pass.of(inputs)

    def _given(self, module: nn.Module, args: Any) -> None:
        if (seen := self.seen) is not None:
            seen.pixels = args[0]

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if (seen := self.seen) is not None:
            seen.calls[name] = (args, dense_rows(self.net, output) if name == "head" else output)

    def _keep_stage(self, module: nn.Module, args: Any, output: Any) -> None:
        if (seen := self.seen) is not None and (name := stage(seen, output)) is not None:
            seen.calls[name] = ((), output)  # what runs later is deeper

    def _keep_input(self, module: nn.Module, args: Any) -> None:
        if (seen := self.seen) is not None:
            seen.calls.setdefault(LAST, ([], module))[0].append(args[0].detach())
