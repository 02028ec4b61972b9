"""What is read from the network inside an ultralytics predictor, and further passes through it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..frame import MAPS, Candidates, Frame, Glance, Layer
from ..instances import Instances
from .base import Hook, dropouts, dropping
from .look import Kept, Part, frozen
from .rows import candidates, with_evidence
from .ultralytics_rows import class_layers, glance, raw_rows, stages, view
from .ultralytics_rtdetr import backbone, is_rtdetr, query_frame, score_layer

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Seen:
    """What the hooks saw in one pass of a batch.

    Attributes:
        image: (B, 3, h, w).
        head: The detection head that ran.
        output: What it returned.
        maps: By name (`MAPS`), (B, C, h, w).
        inputs: Of the last layers of the classifier.
        stages: What the layers of RT-DETR's backbone returned, in their order.
    """

    image: Tensor | None = None
    head: Any = None
    output: Any = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    stages: list[Tensor] = field(default_factory=list)


class HeadTap:
    """Listens to the network inside the predictor, which is a fused copy that `predict()` may replace."""

    def __init__(self, report: Callable[[Exception], None], needs: Collection[str] = ()) -> None:
        self.report, self.needs = report, needs
        self.net: nn.Module | None = None
        self.handles: list[Any] = []
        self.dropout = False
        self.drop()

    def install(self, predictor: Any) -> None:
        """Fires at every `predict()`."""
        net = predictor.model.model if predictor.model.format == "pt" else predictor.model
        if net is self.net:
            return
        self.remove()
        if not isinstance(net, nn.Module):
            return
        self.net = net
        self.dropout = bool(dropouts(net))
        self.handles = [net.register_forward_pre_hook(Hook(self._on_input, self.report))]
        from ultralytics.nn.modules.head import OBB, Detect

        layers = getattr(net, "model", None)
        head = layers[-1] if isinstance(layers, nn.Sequential) else None
        if isinstance(layers, nn.Sequential) and isinstance(head, Detect) and not isinstance(head, OBB):
            self.handles.append(head.register_forward_hook(Hook(self._on_head, self.report)))
            for name, i in stages(layers).items() if "maps" in self.needs else ():
                self.handles.append(layers[i].register_forward_hook(Hook(partial(self._on_stage, name), self.report)))
            last = class_layers(head) if "classifier" in self.needs else {}
            for layer in (layer for branch in last.values() for layer in branch):
                self.handles.append(layer.register_forward_pre_hook(Hook(self._on_class_layer, self.report)))
        elif isinstance(layers, nn.Sequential) and head is not None and is_rtdetr(head):
            self.handles.append(head.register_forward_hook(Hook(self._on_head, self.report)))
            self.handles.append(score_layer(head).register_forward_pre_hook(Hook(self._on_class_layer, self.report)))
            for block in backbone(layers) if "maps" in self.needs else ():
                self.handles.append(block.register_forward_hook(Hook(self._on_any_stage, self.report)))
        elif predictor.model.format != "pt":
            log.warning("an exported model (%s) shows its boxes alone: objects are judged by box and image signals; "
                        "attach the .pt model for all of them", predictor.model.format)
        elif not isinstance(head, OBB):
            name = type(net if head is None else head).__name__
            log.warning("the head %s is not known: its objects are judged by image signals alone", name)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.net = None
        self.drop()

    def drop(self) -> None:
        """Forget the batch."""
        self.seen = Seen()

    def _on_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.seen.image = args[0]

    def _on_head(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seen.head, self.seen.output = module, output

    def _on_stage(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self.seen.maps[name] = output

    def _on_any_stage(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seen.stages.append(output)

    def _on_class_layer(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.seen.inputs[module] = args[0]

    @contextmanager
    def aside(self) -> Iterator[Seen]:
        """The hooks write elsewhere; what is known of the batch stays."""
        outer, self.seen = self.seen, Seen()
        try:
            yield self.seen
        finally:
            self.seen = outer

    def rerun(self, net: nn.Module, head: Any, pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        """The candidates in other pixels of the same size; see `Frame.rerun`."""
        with self.aside(), dropping(net) if dropout else nullcontext():
            output = net(pixels)
        size = (int(pixels.shape[2]), int(pixels.shape[3]))
        return [candidates(raw_rows(head, output, i, size, None)) for i in range(len(pixels))]

    def look(
        self, net: nn.Module, head: Any, like: Tensor, kept: Kept, pixels: Tensor, parts: Collection[str]
    ) -> Glance:
        """The same rows in other pixels; see `Frame.look`.

        Args:
            net: The network.
            head: Its last layer.
            like: (3, h, w) the view's pixels.
            kept: (n,) rows.
            pixels: (B, 3, h, w).
            parts: What is wanted beside logits and maps.
        """
        if pixels.shape[1:] != like.shape:
            raise ValueError(f"pixels must be (B, {', '.join(map(str, like.shape))}) as the view's, not "
                             f"{tuple(pixels.shape)}")
        run = Part(net, lambda net, given: glance(head, net(given), kept.rows, given.shape[2:], parts))
        with self.aside() as seen, own_anchors(head):
            found: Glance = frozen(run, pixels.to(like.dtype))
        maps = seen.maps if len(seen.maps) == len(MAPS) else None
        whole = like.new_tensor([[0.0, 0.0, like.shape[2], like.shape[1]]], dtype=torch.float32)
        layers = {name: Layer(values, whole) for name, values in (maps or {}).items()}
        return replace(found, maps=maps, layers=layers if "layers" in parts else None)

    def evidence(self, i: int, result: Any, predictor: Any) -> Callable[[Instances], Frame]:
        """How image i's frame is built once its kept rows are known. Holds this batch's tensors until then."""
        seen, net, dropout = self.seen, predictor.model.model, self.dropout

        def build(kept: Instances) -> Frame:
            if seen.image is None:
                return Frame(kept)
            shown = view(seen.image[i], result.orig_shape, getattr(predictor, "scale_fill", False))
            if seen.head is None or predictor.args.augment:  # augmented passes mix several scales: no one raw row
                return Frame(kept, shown)
            if is_rtdetr(seen.head):
                return query_frame(self, net, seen, i, kept, shown, result.boxes.data.dtype)
            raw = raw_rows(seen.head, seen.output, i, tuple(seen.image.shape[2:]), result.orig_shape, seen.inputs)
            can_look = shown is not None and "look" in self.needs
            return replace(
                with_evidence(kept, raw, partial(self.look, net, seen.head, seen.image[i]) if can_look else None),
                view=shown,
                maps={name: levels[i] for name, levels in seen.maps.items()} if len(seen.maps) == len(MAPS) else None,
                rerun=partial(self.rerun, net, seen.head) if shown else None,
                dropout=dropout,
            )

        return build


@contextmanager
def own_anchors(head: Any, names: Sequence[str] = ("shape", "anchors", "strides")) -> Iterator[None]:
    """The head makes its anchors anew: those that it keeps were made in inference mode, where autograd refuses them.

    Args:
        head: The module.
        names: Its attributes; the first is the shape that they were made for.
    """
    kept = {name: vars(head)[name] for name in names if name in vars(head)}
    setattr(head, names[0], None)
    try:
        yield
    finally:
        for name in names:
            vars(head).pop(name, None)
        vars(head).update(kept)
