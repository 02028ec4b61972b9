"""Annotated pictures: colour is reliability, the reason stands beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..instances import Instances

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

# Okabe-Ito colours, told apart with every kind of colour blindness: vermilion (doubt), yellow, blue (trust)
STOPS = np.array([[213, 94, 0], [240, 228, 66], [0, 114, 178]], dtype=float)
UNKNOWN = (120, 120, 120)
CROWD = 12
"""With more instances than this, reasons are left out of the picture: they would cover it."""


def colour(reliability: float) -> tuple[int, int, int]:
    """RGB for a reliability in [0, 1]; grey for NaN."""
    if not math.isfinite(reliability):
        return UNKNOWN
    place = min(max(reliability, 0.0), 1.0) * (len(STOPS) - 1)
    i = min(int(place), len(STOPS) - 2)
    r, g, b = STOPS[i] + (STOPS[i + 1] - STOPS[i]) * (place - i)
    return int(r), int(g), int(b)


def caption(name: str, score: float, reliability: float, reason: str = "") -> str:
    """`dog 0.87 > 0.35: blurred`: the detector's score, then the reliability."""
    value = f"{reliability:.2f}" if math.isfinite(reliability) else "unknown"
    return f"{name} {score:.2f} > {value}{f': {reason}' if reason else ''}"


def draw(
    image: np.ndarray,
    instances: Instances,
    names: Mapping[int, str],
    reasons: Sequence[str] | None = None,
    legend: bool = True,
) -> np.ndarray:
    """The image with boxes, masks and captions; least reliable on top.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        instances: With the column `reliability`; grey where it is NaN or absent.
        names: Label -> class name.
        reasons: For each instance a few words, shown beside its reliability.
        legend: Whether a scale of colours is drawn at the bottom left.

    Returns:
        (H', W', 3) uint8 RGB, scaled to between 640 and 2000 px on the long side so that words can be read.
    """
    from PIL import ImageFont
    from PIL.Image import fromarray
    from PIL.ImageDraw import Draw

    instances = instances.cpu()
    picture = fromarray(image)
    longest = max(picture.size)
    factor = 640 / longest if longest < 640 else min(1.0, 2000 / longest)
    if factor != 1:
        picture = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
    values = instances.columns.get("reliability", torch.full((len(instances),), torch.nan)).tolist()
    order = sorted(range(len(instances)), key=lambda i: -values[i] if math.isfinite(values[i]) else -2.0)
    colours = [colour(v) for v in values]
    if instances.masks is not None and len(instances):
        masks = instances[order].masks_at((picture.height, picture.width))
        picture = _tint(picture, masks, [colours[i] for i in order])
    size = max(12, round(max(picture.size) / 55))
    font = ImageFont.load_default(size)
    pen = Draw(picture)
    taken: list[tuple[float, float, float, float]] = []
    for i in order:
        box = [v * factor for v in instances.boxes[i].tolist()]
        if not all(math.isfinite(v) for v in box):
            continue
        pen.rectangle(_ordered(box), outline=colours[i], width=max(2, size // 6))
    for i in reversed(order):  # the least reliable has the first choice of a place
        box = [v * factor for v in instances.boxes[i].tolist()]
        if not all(math.isfinite(v) for v in box):
            continue
        name = names.get(int(instances.labels[i]), str(int(instances.labels[i])))
        reason = reasons[i] if reasons and len(order) <= CROWD else ""
        text = caption(name, float(instances.scores[i]), values[i], reason)
        width, height = pen.textlength(text, font=font) + 6, size + 6
        place = _place(box, width, height, picture.size, taken)
        taken.append(place)
        pen.rectangle(place, fill=colours[i])
        dark = sum(colours[i]) > 380
        pen.text((place[0] + 3, place[1] + 1), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
    if legend:
        _legend(picture, pen, font, size)
    return np.asarray(picture)


def _ordered(box: list[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _tint(picture: Image, masks: torch.Tensor, colours: Sequence[tuple[int, int, int]]) -> Image:
    from PIL.Image import fromarray
    from torchvision.utils import draw_segmentation_masks

    canvas = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    tinted = draw_segmentation_masks(canvas, masks, alpha=0.35, colors=list(colours))
    return fromarray(tinted.permute(1, 2, 0).numpy())


def _place(
    box: list[float], width: float, height: float, size: tuple[int, int], taken: Sequence[tuple[float, ...]]
) -> tuple[float, float, float, float]:
    """Where a caption goes: above its box, else inside, else the nearest free line below."""
    x = min(max(box[0], 0), max(size[0] - width, 0))
    start = min(max(box[1] - height, 0), size[1] - height)
    lines = sorted(range(-4, 12), key=lambda k: (abs(k), k))
    for k in lines:
        y = start + k * height
        place = (x, y, x + width, y + height)
        if 0 <= y <= size[1] - height and not any(_overlap(place, other) for other in taken):
            return place
    return (x, start, x + width, start + height)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(picture: Image, pen: ImageDraw, font: Any, size: int) -> None:
    width, height = size * 11, max(6, size // 2)
    x, y = 4, picture.height - height - 4
    for k in range(width):
        pen.line((x + k, y, x + k, y + height), fill=colour(k / (width - 1)))
    words = ("class score > reliability", x, y - size - 4), ("0", x + 2, y - 2), ("1", x + width - size // 2, y - 2)
    for text, left, top in words:
        pen.text((left, top), text, fill=(255, 255, 255), font=font, stroke_width=2, stroke_fill=(0, 0, 0))
