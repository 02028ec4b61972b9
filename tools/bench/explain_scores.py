"""Scores of maps for `explain.py`: what the detector answers while pixels go in the order that a map names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reliability_hooks.evaluation.faithfulness import deletion_insertion, inside
from reliability_hooks.evaluation.localisation import energy_inside, pointing_game
from reliability_hooks.explain.base import Probe
from reliability_hooks.explain.targets import TARGETS
from reliability_hooks.frame import Frame, Glance

FILL = "inpaint"
"""What no method hides with."""
STEPS = 6


class Scorer:
    """Scores of maps of some rows of a frame, in the pixels of the view that the image takes up."""

    def __init__(self, frame: Frame, rows: Tensor) -> None:
        view, size = frame.view, frame.instances.image_size
        assert view is not None
        assert size is not None
        (x, y), (high, wide) = (round(v) for v in view.offset), view.pixels.shape[1:]
        self.y = slice(y, min(high, y + round(size[0] * view.scale[1])))
        self.x = slice(x, min(wide, x + round(size[1] * view.scale[0])))
        place = "box" if frame.instances.masks is None else "mask"
        self.probe = Probe(frame, rows, [TARGETS[name] for name in ("joint", "class", place)])
        self.pixels = view.pixels.float()
        self.content = self.pixels[:, self.y, self.x].clone()
        if frame.instances.masks is None:
            boxes = view.to_view(frame.instances.boxes[rows]) - torch.tensor([x, y, x, y])
            self.objects = inside(boxes, len(rows), *self.content.shape[1:], boxes.device)
        else:
            self.objects = self.brought(frame.instances.masks[rows].float()) > 0.5

    def brought(self, maps: Tensor) -> Tensor:
        """(n, h, w) at the pixels that are scored."""
        return interpolate(maps[:, None], self.content.shape[1:], mode="bilinear")[:, 0]

    def respond(self, pictures: Tensor) -> Tensor:
        whole = self.pixels.repeat(len(pictures), 1, 1, 1)
        whole[:, :, self.y, self.x] = pictures
        return self.probe(whole)

    def __call__(self, maps: Tensor) -> dict[str, list[float]]:
        """Each score of each row."""
        given = self.brought(maps)
        area, full = (
            deletion_insertion(self.respond, self.content, given, masks=self.objects, steps=STEPS, area=a, fill=FILL,
                               batch=8).oa
            for a in ("object", "full")
        )  # fmt: skip
        scores = {
            "area_oa": area[:, 0], "full_oa": full[:, 0], "class_area_oa": area[:, 1], "place_area_oa": area[:, 2],
            "pointing": pointing_game(given, self.objects), "epg": energy_inside(given, self.objects),
        }  # fmt: skip
        return {name: values.tolist() for name, values in scores.items()}


class Recorder:
    """Keeps what a detector saw in the first pictures, so that these, in the same order, need not be shown again."""

    def __init__(self, frame: Frame, most: int) -> None:
        assert frame.look is not None
        self.look, self.kept, self.left = frame.look, list[Glance](), most
        self.recording = replace(frame, look=self._record)

    def _record(self, pixels: Tensor, parts: Collection[str] = (), rows: Tensor | None = None) -> Glance:
        glance = self.look(pixels, parts, rows)
        if self.left > 0:
            self.kept.append(replace(glance, maps=None))
            self.left -= len(pixels)
        return glance

    def replaying(self) -> Frame:
        """The frame again, whose look gives what was recorded, from the start."""
        left = iter(self.kept)
        return replace(self.recording, look=lambda pixels, parts=(), rows=None: next(left))


def cue_frame(frame: Frame, cue: np.ndarray, weight: float = 8.0) -> Frame:
    """The frame of a detector that believes in a class only while a sticker is seen: the true cue is known.

    The class logits of every object fall by up to `weight` (against the background's, where a softmax has one) with the
    share of the sticker's pixels that no longer show what they showed. Differentiable in the pixels, and nothing on the
    way there shows inside the detector.
    """
    view, look = frame.view, frame.look
    assert view is not None
    assert look is not None
    mask = torch.from_numpy(cue).float()[None, None]
    y, x = round(view.offset[1]), round(view.offset[0])
    high, wide = round(cue.shape[0] * view.scale[1]), round(cue.shape[1] * view.scale[0])
    small = interpolate(mask, (high, wide), mode="area")[0, 0]
    where = torch.zeros(view.pixels.shape[1:])
    where[y : y + high, x : x + wide] = small[: where.shape[0] - y, : where.shape[1] - x]
    where = where / where.sum()
    first, found = view.pixels.clone().float(), frame.instances

    def seen(pixels: Tensor, parts: Collection[str] = (), rows: Tensor | None = None) -> Glance:
        glance = look(pixels, parts, rows)
        change = (pixels.float() - first).abs().mean(1) / 0.2  # a fifth of the range: no longer the same thing
        gone = (change.clamp(max=1) * where).sum((1, 2))
        falls = torch.ones(glance.logits.shape[2])
        if found.background is not None:
            falls[found.background] = 0
        return replace(glance, logits=glance.logits - weight * gone[:, None, None] * falls)

    return replace(frame, look=seen)
