"""The same image seen otherwise: what holds in one view alone may be chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..instances import Instances

AWAY = 0.05
"""How far `move` goes, in sides."""
SMALLER = 0.85
"""Of the sides that `shrink` leaves."""
GREY = 114
"""What detectors pad with."""
Size = tuple[int, int]


def mirror(image: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


def mirrored(instances: Instances, size: Size) -> Instances:
    """Where they lie in the mirror image of an image of `size` (height, width)."""
    x1, y1, x2, y2 = instances.boxes.unbind(1)
    return instances.replace(boxes=torch.stack([size[1] - x2, y1, size[1] - x1, y2], 1), masks=None)


def move(image: np.ndarray) -> np.ndarray:
    """A grey margin above and on the left: every pixel falls on another place of the detector's grid."""
    down, right = _margins((image.shape[0], image.shape[1]))
    return np.pad(image, ((down, 0), (right, 0), (0, 0)), constant_values=GREY)


def moved(instances: Instances, size: Size) -> Instances:
    """Where they lie in what `move` makes of an image of `size` (height, width)."""
    down, right = _margins(size)
    away = instances.boxes.new_tensor([right, down, right, down])
    return instances.replace(boxes=instances.boxes + away, masks=None)


def shrink(image: np.ndarray) -> np.ndarray:
    """Smaller, at the upper left of a grey image of the same size."""
    from PIL import Image

    height, width = _smaller((image.shape[0], image.shape[1]))
    out = np.full_like(image, GREY)
    out[:height, :width] = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return out


def shrunk(instances: Instances, size: Size) -> Instances:
    """Where they lie in what `shrink` makes of an image of `size` (height, width)."""
    height, width = _smaller(size)
    by = instances.boxes.new_tensor([width / size[1], height / size[0]] * 2)
    return instances.replace(boxes=instances.boxes * by, masks=None)


def _smaller(size: Size) -> Size:
    return max(1, round(size[0] * SMALLER)), max(1, round(size[1] * SMALLER))


def _margins(size: Size) -> tuple[int, int]:
    return int(size[0] * AWAY) + 1, int(size[1] * AWAY) + 1


VIEWS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[Instances, Size], Instances]]] = {
    "mirrored": (mirror, mirrored),
    "moved": (move, moved),
    "shrunk": (shrink, shrunk),
}
"""Name -> what is done to the image, and where its detections lie then."""
