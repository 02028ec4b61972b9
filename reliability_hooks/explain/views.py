"""The same image seen otherwise: what holds in one view alone may be chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..instances import Instances

AWAY = 0.05
"""How far `moved` goes, in sides."""
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


def _margins(size: Size) -> tuple[int, int]:
    return int(size[0] * AWAY) + 1, int(size[1] * AWAY) + 1


VIEWS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[Instances, Size], Instances]]] = {
    "mirrored": (mirror, mirrored),
    "moved": (move, moved),
}
"""Name -> what is done to the image, and where its detections lie then."""
