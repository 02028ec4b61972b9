"""Photographs that installed packages bring along, and what can befall them: the pictures of `demo`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..evaluation.corruptions import corrupt
from ..images import read_image

PACKAGED: dict[str, dict[str, str]] = {
    "skimage": {
        "astronaut": "data/astronaut.png", "cat": "data/chelsea.png", "coffee": "data/coffee.png",
        "motorcycle": "data/motorcycle_left.png", "rocket": "data/rocket.jpg", "retina": "data/retina.jpg",
        "tissue": "data/ihc.png", "galaxies": "data/hubble_deep_field.jpg",
    },
    "matplotlib": {"admiral": "mpl-data/sample_data/grace_hopper.jpg"},
    "sklearn": {"temple": "datasets/images/china.jpg", "flower": "datasets/images/flower.jpg"},
    "ultralytics": {"street": "assets/bus.jpg", "sideline": "assets/zidane.jpg"},
}  # fmt: skip
"""Package -> name -> file of it. Those that are installed are shown."""
UNKNOWN = ("rocket", "retina", "tissue", "galaxies", "flower")
"""Photographs of things of which COCO has no class."""
LONGEST = 640
SEVERITY = 0.8
COVERED = 0.55
"""Share of the height of a box that an occluder hides."""

Boxes = np.ndarray
CONDITIONS: dict[str, tuple[str, Callable[[Tensor, Boxes, int], Tensor]]] = {
    "blurred": ("blur", lambda image, boxes, seed: corrupt(image, "blur", SEVERITY, seed)),
    "dark": ("low_light", lambda image, boxes, seed: corrupt(image, "low_light", SEVERITY, seed)),
    "noisy": ("noise", lambda image, boxes, seed: corrupt(image, "noise", SEVERITY, seed)),
    "occluded": ("occlusion", lambda image, boxes, seed: occluded(image, boxes, seed)),
}
"""What befalls a photograph -> the name of the condition (`assets/conditions.yaml`), and how it is made."""


@dataclass(frozen=True)
class Photograph:
    """One of them.

    Attributes:
        name: In a word.
        source: `package: file`.
        pixels: (H, W, 3) uint8 RGB, its longer side at most `LONGEST`.
        known: Whether it shows something of a class of COCO.
    """

    name: str
    source: str
    pixels: np.ndarray
    known: bool


def photographs() -> Iterator[Photograph]:
    """Of all packages that are installed."""
    for package, files in PACKAGED.items():
        found = find_spec(package)
        for name, file in files.items() if found is not None and found.origin is not None else ():
            path = Path(found.origin).parent / file  # type: ignore[union-attr, arg-type]
            if path.is_file():
                yield Photograph(name, f"{package}: {path.name}", small(read_image(path)), name not in UNKNOWN)


def versions(pixels: np.ndarray, boxes: Boxes, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(what befell it, picture) for each of `CONDITIONS`; boxes (N, 4) are what an occluder hides part of."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    for name, (_, change) in CONDITIONS.items():
        yield name, change(image, boxes, seed).permute(1, 2, 0).contiguous().numpy()


def occluded(image: Tensor, boxes: Sequence[np.ndarray] | Boxes, seed: int) -> Tensor:
    """The lower part of each box behind a board of one colour with a grain, wider than the box."""
    g = torch.Generator().manual_seed(seed)
    image = image.clone()
    height, width = image.shape[1:]
    for x1, y1, x2, y2 in np.asarray(boxes, float).reshape(-1, 4):
        margin = 0.08 * (x2 - x1)
        left, right = max(0, round(x1 - margin)), min(width, round(x2 + margin))
        top, bottom = max(0, round(y2 - COVERED * (y2 - y1))), min(height, round(y2 + 0.02 * (y2 - y1)))
        if right <= left or bottom <= top:
            continue
        colour = torch.rand(3, 1, 1, generator=g) * 90 + 70
        grain = torch.rand(1, 1, 3, max(2, (right - left) // 6), generator=g)
        grain = interpolate(grain, (bottom - top, right - left), mode="bilinear")[0] - 0.5
        image[:, top:bottom, left:right] = (colour + 50 * grain).clamp(0, 255).to(torch.uint8)
    return image


def small(pixels: np.ndarray) -> np.ndarray:
    """Its longer side at most `LONGEST`."""
    from PIL import Image

    share = LONGEST / max(pixels.shape[:2])
    if share >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * share)), max(1, round(pixels.shape[0] * share)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
