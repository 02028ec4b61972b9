"""One training sample: a crop under random, combined degradations, and what a caption may say of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import roi_align

from .degradations import CAMERA
from .photographs import Item, Photographs
from .scenes import cluttered, occluded, window, written

CONDITIONS = (*CAMERA, "occlusion", "truncation", "clutter", "text")
"""Everything that a caption may name."""

SIZE = 192
CONTEXT = 1.3
LONGEST = 420
HOW_MANY = (0.22, 0.46, 0.2, 0.12)
"""Chance of 0, 1, 2 and 3 degradations in one crop."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A crop and what is to be said of it.

    Attributes:
        pixels: (3, SIZE, SIZE) uint8.
        label: Name of the class.
        target: (C,) how far each of `CONDITIONS` applies, in [0, 1].
        weight: (C,) how far that is known: 0 where the photograph itself may or may not show it.
    """

    pixels: Tensor
    label: str
    target: Tensor
    weight: Tensor


def draw(photographs: Photographs, item: Item, rng: np.random.Generator) -> Sample:
    """A crop of the item."""
    x, mask, box = _region(photographs, item, rng)
    said = dict.fromkeys(CONDITIONS, 0.0)
    known = dict.fromkeys(CONDITIONS, 1.0)
    known["occlusion"] = 0.3
    said["truncation"], known["truncation"] = (0.8, 0.5) if item.cut else (0.0, 1.0 if item.box else 0.3)
    said["clutter"] = min(item.crowded / 0.5, 1.0)
    chosen = rng.choice(len(CONDITIONS), rng.choice(4, p=HOW_MANY), replace=False)
    for name in (CONDITIONS[k] for k in sorted(chosen)):
        strength = float(rng.random())
        if name == "occlusion":
            x, hidden = occluded(x, mask, photographs, rng, 0.15 + 0.7 * strength)
            said[name], known[name] = min(hidden / 0.5, 1.0), 1.0
        elif name == "clutter":
            x, hidden = cluttered(x, mask, photographs, rng, strength)
            said[name], said["occlusion"], known["occlusion"] = max(said[name], 0.4 + 0.6 * strength), hidden, 0.5
        elif name == "truncation":
            keep = 0.85 - 0.55 * strength
            box = window(box, rng, keep)
            said[name], known[name], known["occlusion"] = min(1.15 - keep, 0.5) / 0.5, 1.0, 0.3
        elif name == "text":
            said[name] = 1.0
            x = written(x, rng)
    for name in (CONDITIONS[k] for k in sorted(chosen)):  # the scene first, then the camera
        if name not in CAMERA:
            continue
        strength = float(rng.random())
        x = CAMERA[name](x, strength, rng).clamp(0, 1)
        said[name] = min(0.25 + 1.2 * strength, 1.0)
        if name == "low_light":
            known["noise"] = max(known["noise"] * 0.3, said["noise"])
    side = min(box[2] - box[0], box[3] - box[1])
    said["low_resolution"] = max(said["low_resolution"], 0.5 * min(max((56 - side) / 36, 0.0), 1.0))
    crop = roi_align(x[None].float(), [torch.tensor([box])], SIZE, sampling_ratio=-1, aligned=True)[0]
    if rng.random() < 0.5:
        crop = crop.flip(2)
    return Sample((crop.clamp(0, 1) * 255).round().byte(), item.label,
                  torch.tensor(list(said.values())), torch.tensor(list(known.values())))


def _region(photographs: Photographs, item: Item, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[float]]:
    """The picture around the item (3, h, w), the item's mask in it, and its box in it as a detector would draw it."""
    picture = photographs.picture(item)
    height, width = picture.shape[1:]
    if item.box is None:
        w, h = width * rng.uniform(0.6, 1), height * rng.uniform(0.6, 1)
        x1, y1 = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = np.array([x1, y1, x1 + w, y1 + h])
    else:
        box = np.array(item.box)
        size = np.tile(box[2:] - box[:2], 2)
        box = box + size * rng.normal(0, 0.03, 4) + size * rng.uniform(-0.02, 0.12) * np.array([-1, -1, 1, 1]) / 2
    extent = np.array([width, height] * 2)
    box = box.clip(0, extent)
    size, center = (box[2:] - box[:2]) * CONTEXT, (box[2:] + box[:2]) / 2
    x1, y1, x2, y2 = np.concatenate([center - size / 2, center + size / 2]).clip(0, extent).round().astype(int).tolist()
    x = picture[:, y1:y2, x1:x2].float() / 255
    mask = photographs.mask(item, height, width)[y1:y2, x1:x2]
    scale = min(LONGEST * rng.uniform(0.4, 1) / max(x.shape[1:]), 1.0)
    if scale < 1:
        to = [max(round(s * scale), 8) for s in x.shape[1:]]
        x = interpolate(x[None], to, mode="bilinear", antialias=True)[0]
        mask = interpolate(mask[None, None].float(), to)[0, 0] > 0.5
    return x, mask, ((box - np.array([x1, y1] * 2)) * scale).tolist()
