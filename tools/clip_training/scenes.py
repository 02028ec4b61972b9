"""What can stand between an object and the camera: other things, the edge of the picture, writing."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from .photographs import Photographs


def occluded(
    x: Tensor, mask: Tensor, photographs: Photographs, rng: np.random.Generator, aim: float
) -> tuple[Tensor, float]:
    """Things put in front of the object until about `aim` of it is hidden.

    Returns:
        The picture, and the share of the mask that is hidden.
    """
    x, left = x.clone(), mask.clone()
    area = max(int(mask.sum()), 1)
    for _ in range(6):
        hidden = 1 - int(left.sum()) / area
        if hidden >= aim - 0.08:
            break
        size = max((aim - hidden) * area, 16.0) ** 0.5 * rng.uniform(0.9, 1.5)
        front, shape = _front(photographs, size, rng)
        at = left.nonzero()
        cy, cx = at[rng.integers(len(at))].tolist()
        before, shown = x.clone(), left.clone()
        _paste(x, left, front, shape, cy - shape.shape[0] // 2, cx - shape.shape[1] // 2)
        if 1 - int(left.sum()) / area > min(aim + 0.15, 0.93):
            x, left = before, shown
    return x, 1 - int(left.sum()) / area


def cluttered(
    x: Tensor, mask: Tensor, photographs: Photographs, rng: np.random.Generator, strength: float
) -> tuple[Tensor, float]:
    """Three to nine smaller things about the object; as `occluded`."""
    x, left = x.clone(), mask.clone()
    area, (height, width) = max(int(mask.sum()), 1), mask.shape
    for _ in range(round(3 + 6 * strength)):
        front, shape = _front(photographs, min(height, width) * rng.uniform(0.2, 0.45), rng)
        before, shown = x.clone(), left.clone()
        _paste(x, left, front, shape, int(rng.integers(height)) - shape.shape[0] // 2,
               int(rng.integers(width)) - shape.shape[1] // 2)
        if 1 - int(left.sum()) / area > 0.35:
            x, left = before, shown
    return x, 1 - int(left.sum()) / area


def window(box: list[float], rng: np.random.Generator, keep: float) -> list[float]:
    """The part (xyxy) of a box that is left when the picture ends at one side or corner."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    kind = rng.choice(3)
    kx, ky = (keep, 1.0) if kind == 0 else (1.0, keep) if kind == 1 else (keep**0.5, keep**0.5)
    if rng.random() < 0.5:
        x1 = x2 - width * kx
    else:
        x2 = x1 + width * kx
    if rng.random() < 0.5:
        y1 = y2 - height * ky
    else:
        y2 = y1 + height * ky
    return [x1, y1, x2, y2]


def written(x: Tensor, rng: np.random.Generator) -> Tensor:
    """One to three lines of writing over the picture."""
    image = Image.fromarray((x.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for _ in range(rng.integers(1, 4)):
        letters = string.ascii_letters if rng.random() < 0.7 else string.ascii_uppercase + string.digits
        word = "".join(rng.choice(list(letters), rng.integers(3, 10)))
        font = ImageFont.load_default(max(height * rng.uniform(0.08, 0.25), 8))
        ink = tuple(int(v) for v in rng.integers(0, 256, 3))
        at = (rng.uniform(-0.05, 0.5) * width, rng.uniform(0, 0.8) * height)
        if rng.random() < 0.4:
            draw.rectangle(draw.textbbox(at, word, font=font), fill=tuple(255 - v for v in ink))
        draw.text(at, word, fill=ink, font=font)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _front(photographs: Photographs, size: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(3, h, w) and (h, w) bool of about size x size pixels: a cut-out object, or a plain bar or patch of one."""
    pixels, shape = photographs.cut_out(rng)
    if rng.random() < 0.25:
        shape = torch.ones_like(shape)
        if rng.random() < 0.5:
            pixels = torch.from_numpy(rng.random(3)).float()[:, None, None].expand_as(pixels)
    scale = size / (shape.shape[0] * shape.shape[1]) ** 0.5
    to = [max(round(s * scale), 2) for s in shape.shape]
    pixels = interpolate(pixels[None], to, mode="bilinear", antialias=True)[0]
    shape = interpolate(shape[None, None].float(), to, mode="bilinear", antialias=True)[0, 0] > 0.5
    return (pixels.flip(2), shape.flip(1)) if rng.random() < 0.5 else (pixels, shape)


def _paste(x: Tensor, left: Tensor, front: Tensor, shape: Tensor, top: int, start: int) -> None:
    """In place: the front onto the picture, and off the mask of what is left to see."""
    height, width = left.shape
    y1, x1, y2, x2 = max(top, 0), max(start, 0), min(top + shape.shape[0], height), min(start + shape.shape[1], width)
    if y1 >= y2 or x1 >= x2:
        return
    part = shape[y1 - top : y2 - top, x1 - start : x2 - start]
    x[:, y1:y2, x1:x2] = torch.where(part, front[:, y1 - top : y2 - top, x1 - start : x2 - start], x[:, y1:y2, x1:x2])
    left[y1:y2, x1:x2] &= ~part
