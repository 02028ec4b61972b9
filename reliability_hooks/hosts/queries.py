"""One forward pass of a DETR-like model, as its hooks saw it: pixels, queries, feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..frame import MAPS, View

OVERSHOOT = 0.1
"""By how much bicubic resizing may leave [0, 1]."""


@dataclass(eq=False)
class Inside:
    """What hooks inside of the model saw of one pass.

    Attributes:
        stages: What stages and backbones returned, in their order.
        layers: Linear layers as wide as the logits, each with what it was given and what it returned.
    """

    stages: list[Any] = field(default_factory=list)
    layers: list[tuple[nn.Linear, Tensor, Tensor]] = field(default_factory=list)

    def maps(self, size: Sequence[int]) -> dict[str, Tensor]:
        """The deepest feature maps (B, C, h, w) with strides 4, 8 and 16, by name (`MAPS`), of an input of a size."""
        found = {}
        for output in self.stages:
            levels = getattr(output, "feature_maps", output)
            for level in levels if isinstance(levels, (tuple, list)) else [levels]:
                for name, stride in zip(MAPS, (4, 8, 16), strict=True):
                    if isinstance(level, Tensor) and level.ndim == 4 and all(
                        n // stride <= m <= -(-n // stride) for n, m in zip(size[-2:], level.shape[-2:], strict=True)
                    ):
                        found[name] = level
        return found


@dataclass(eq=False)
class Pass:
    """One forward pass of a batch, detached.

    Attributes:
        kind: Key in `query_rows.HEADS`: `config.model_type` of transformers.
        pixels: (B, 3, H, W) with the padding of the batch.
        mask: (B, H, W), 1 where there is an image; None where the model was given none.
        logits: (B, Q, K).
        boxes: (B, Q, 4) centre, width and height relative to the image, or None.
        masks: (B, Q, h, w) logits on the whole input, or None.
        hidden: (B, Q, D) the queries after the decoder, or None.
        maps: By name (`MAPS`), (B, C, h, w).
        layers: As `Inside.layers`.
    """

    kind: str
    pixels: Tensor
    mask: Tensor | None
    logits: Tensor
    boxes: Tensor | None
    masks: Tensor | None
    hidden: Tensor | None
    maps: dict[str, Tensor]
    layers: list[tuple[nn.Linear, Tensor, Tensor]]

    @classmethod
    def of(cls, kind: str, inputs: Mapping[str, Any], output: Any, inside: Inside) -> Pass | None:
        """None where the output has no queries with boxes or masks (a tuple, another task)."""

        def named(*names: str) -> Tensor | None:
            values = (getattr(output, name, None) for name in names)
            return next((value.detach() for value in values if isinstance(value, Tensor)), None)

        pixels, logits = inputs.get("pixel_values"), named("logits", "class_queries_logits")
        boxes, masks = named("pred_boxes"), named("masks_queries_logits")
        if not isinstance(pixels, Tensor) or logits is None or logits.ndim != 3 or (boxes is None and masks is None):
            return None
        hidden = named("last_hidden_state", "transformer_decoder_last_hidden_state")
        hidden = hidden if hidden is not None and hidden.shape[:2] == logits.shape[:2] else None
        maps = {name: level.detach() for name, level in inside.maps(pixels.shape).items()}
        return cls(kind, pixels.detach(), inputs.get("pixel_mask"), logits, boxes, masks, hidden, maps, inside.layers)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image without its padding, which is at the right and below."""
        if self.mask is None:
            h, w = self.pixels.shape[2:]
            return [(int(h), int(w))] * len(self.pixels)
        valid = self.mask != 0
        found = torch.stack([valid.any(2).sum(1), valid.any(1).sum(1)], 1).tolist()
        return [(int(h), int(w)) for h, w in found]

    def find(self, logits: Tensor) -> int:
        """Which image of the batch these logits (Q, K) are of, or -1; a pipeline cuts batches up and moves them."""
        return next((i for i, own in enumerate(self.logits) if _is(own, logits)), -1)

    def again(self, i: int, pixels: Tensor) -> dict[str, Any]:
        """The model's arguments for other pixels (B, 3, h, w) of image i, padded as it was in its batch.

        Raises:
            ValueError: They are of another size.
        """
        h, w = self.sizes[i]
        if tuple(pixels.shape[1:]) != (self.pixels.shape[1], h, w):
            raise ValueError(f"pixels must be (B, {self.pixels.shape[1]}, {h}, {w}) as the view's, not "
                             f"{tuple(pixels.shape)}")
        height, width = self.pixels.shape[2:]
        given: dict[str, Any] = {"pixel_values": pad(pixels.to(self.pixels.dtype), (0, width - w, 0, height - h))}
        if self.mask is not None:
            given["pixel_mask"] = self.mask[i].clone()[None].expand(len(pixels), -1, -1)
        return given

    def cut(self, maps: Mapping[str, Tensor], i: int, which: int | slice | None = None) -> dict[str, Tensor] | None:
        """Feature maps of image i without the padding of the batch; None where a stage is not there.

        Args:
            maps: By name, (B, C, h, w).
            i: The image.
            which: Of the maps; without it, the image's.
        """
        if any(name not in maps for name in MAPS):
            return None
        (h, w), (height, width) = self.sizes[i], self.pixels.shape[2:]
        levels = {name: maps[name][i if which is None else which] for name in MAPS}
        return {
            name: level[..., : -(-h * level.shape[-2] // height), : -(-w * level.shape[-1] // width)]
            for name, level in levels.items()
        }


def _is(own: Tensor, other: Tensor) -> bool:
    if own.shape != other.shape:
        return False
    same = own.device == other.device and own.data_ptr() == other.data_ptr() and own.stride() == other.stride()
    return same or torch.equal(own, other.to(own.device))


def view(seen: Pass, i: int, size: tuple[int, int], processor: Any) -> View | None:
    """The pixels of image i; None where they are not RGB, or not what the processor's settings give.

    Args:
        seen: The pass.
        i: Index in the batch.
        size: (height, width) of the original image.
        processor: Says with which mean and deviation it normalises.
    """
    (h, w), channels = seen.sizes[i], seen.pixels.shape[1]
    if channels != 3:
        return None
    normal = bool(getattr(processor, "do_normalize", False))
    mean, std = (tuple(map(float, getattr(processor, name))) if normal else (default,) * 3
                 for name, default in (("image_mean", 0.0), ("image_std", 1.0)))
    pixels = seen.pixels[i, :, :h, :w]
    ends = torch.stack([pixels.amin((1, 2)), pixels.amax((1, 2))]).float()
    ends = ends * ends.new_tensor(std) + ends.new_tensor(mean)
    if bool(((ends < -OVERSHOOT) | (ends > 1 + OVERSHOOT)).any()):
        return None
    return View(pixels=pixels, scale=(w / size[1], h / size[0]), mean=mean, std=std)  # type: ignore[arg-type]
