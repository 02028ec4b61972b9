"""What passes through a Segment Anything model's prompt encoder and mask decoder, and further passes through them.

The modules have the same names and arguments in segment_anything, SAM 2 and ultralytics (SAM 2 puts `sam_` in front),
so that one tap serves all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from .base import Hook

KEPT = ("image_embeddings", "image_pe", "high_res_features")
"""Arguments of the mask decoder that belong to the image and not to a prompt."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """B prompts as the prompt encoder takes them, in pixels of the model's input; any part may be absent.

    Attributes:
        points: (B, P, 2).
        labels: (B, P): 1 inside, 0 outside, 2 and 3 corners of a box (SAM 2), -1 padding.
        boxes: (B, 4) xyxy.
        masks: (B, 1, h, w) logits.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

    @classmethod
    def of(cls, given: dict[str, Any]) -> Prompts:
        """From the arguments of the prompt encoder."""
        points, labels = given.get("points") or (None, None)
        boxes = given.get("boxes")
        parts = {"points": points, "labels": labels, "masks": given.get("masks"),
                 "boxes": None if boxes is None else boxes.reshape(len(boxes), 4)}  # fmt: skip
        n = max((len(part) for part in parts.values() if part is not None), default=1)
        # one mask may go with several points
        return cls(**{k: v if v is None or len(v) == n else v.expand(n, *v.shape[1:]) for k, v in parts.items()})

    def __len__(self) -> int:
        return max((len(part) for part in self.parts().values()), default=1)

    def __getitem__(self, rows: Tensor | slice) -> Prompts:
        return Prompts(**{name: part[rows] for name, part in self.parts().items()})

    @property
    def movable(self) -> bool:
        """Whether there is a point or a box."""
        return self.points is not None or self.boxes is not None

    def parts(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        return {f.name: part for f in fields(self) if (part := getattr(self, f.name)) is not None}

    def moved(self, scale: Tensor, shift: Tensor) -> Prompts:
        """Points and corners p -> p * scale + shift, both (B, 2)."""
        parts = self.parts()
        if self.points is not None:
            parts["points"] = self.points * scale[:, None] + shift[:, None]
        if self.boxes is not None:
            parts["boxes"] = self.boxes * scale.repeat(1, 2) + shift.repeat(1, 2)
        return Prompts(**parts)

    def arguments(self) -> dict[str, Any]:
        """Of the prompt encoder."""
        points = None if self.points is None else (self.points, self.labels)
        return {"points": points, "boxes": self.boxes, "masks": self.masks}

    @classmethod
    def cat(cls, parts: Sequence[Prompts]) -> Prompts:
        """One after another; all have the same parts."""
        named = [p.parts() for p in parts]
        return cls(**{name: torch.cat([p[name] for p in named]) for name in named[0]})


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of the mask decoder: B prompts on an image.

    Attributes:
        prompts: (B) prompts.
        given: The decoder's arguments that belong to the image (`KEPT`).
        ious: (B, C) predicted IoU of the answers that were returned.
    """

    prompts: Prompts
    given: dict[str, Any]
    ious: Tensor

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for passes that can be run as one: the same image, the same parts of prompts."""
        shapes = tuple((name, tuple(part.shape[1:])) for name, part in self.prompts.parts().items())
        return self.given["image_embeddings"].data_ptr(), *shapes


@dataclass(eq=False)
class Seen:
    """What the hooks saw while they were listening.

    Attributes:
        images: (B, 3, h, w) inputs of the image encoder, in their order.
        passes: Of the mask decoder, in their order.
        prompts: Of the pass that has begun.
    """

    images: list[Tensor] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    prompts: Prompts | None = None


class Tap:
    """Hooks on the three parts of a Segment Anything model; it listens only where `listen` is entered, by thread."""

    def __init__(self, net: nn.Module, report: Callable[[Exception], None]) -> None:
        self.encoder, self.prompt_encoder, self.decoder = parts_of(net)
        self.local = threading.local()
        self.handles = [
            self.encoder.register_forward_pre_hook(Hook(self._on_image, report)),
            self.prompt_encoder.register_forward_pre_hook(Hook(self._on_prompts, report), with_kwargs=True),
            self.decoder.register_forward_hook(Hook(self._on_masks, report), with_kwargs=True),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.local = threading.local()

    @contextmanager
    def listen(self) -> Iterator[Seen]:
        """What passes in this thread meanwhile; within another `listen`, it alone hears."""
        outer, self.local.seen = getattr(self.local, "seen", None), Seen()
        try:
            yield self.local.seen
        finally:
            self.local.seen = outer

    def decode(self, prompts: Prompts, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Every answer to b prompts: mask logits (b, K, h, w) and predicted IoU (b, K), float32. Nobody hears it."""
        outer, self.local.seen = getattr(self.local, "seen", None), None
        try:
            sparse, dense = self.prompt_encoder(**prompts.arguments())
            masks, ious, *_ = self.decoder.predict_masks(
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, **given
            )
        finally:
            self.local.seen = outer
        return masks.float(), ious.float()

    def _on_image(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if (seen := getattr(self.local, "seen", None)) is not None:
            seen.images.append(args[0].detach())

    def _on_prompts(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if (seen := getattr(self.local, "seen", None)) is not None:
            seen.prompts = Prompts.of({**dict(zip(("points", "boxes", "masks"), args, strict=False)), **kwargs})

    def _on_masks(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen = getattr(self.local, "seen", None)
        if seen is not None and seen.prompts is not None:
            given = {name: kwargs[name] for name in KEPT if name in kwargs}
            if "repeat_image" in kwargs:  # SAM 2: one image for several prompts
                given["repeat_image"] = True
            seen.passes.append(Pass(seen.prompts, given, output[1].detach()))
            seen.prompts = None


def parts_of(net: nn.Module) -> tuple[Any, Any, Any]:
    """Image encoder, prompt encoder and mask decoder.

    Raises:
        TypeError: It has no such parts.
    """
    for prefix in ("", "sam_"):
        names = ("image_encoder", f"{prefix}prompt_encoder", f"{prefix}mask_decoder")
        if all(isinstance(getattr(net, name, None), nn.Module) for name in names):
            return getattr(net, names[0]), getattr(net, names[1]), getattr(net, names[2])
    raise TypeError(f"{type(net).__qualname__} is no Segment Anything model: it has no prompt encoder and mask decoder")
