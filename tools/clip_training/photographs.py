"""Objects in real photographs to cut out: COCO train2017 instances, and photographs of one ImageNet class each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reliability_hooks.evaluation.datasets import ImageRecord, read_coco
from reliability_hooks.evaluation.masks import as_rle
from reliability_hooks.images import read_image

SMALLEST = 16
EDGE = 2.0


@dataclass(frozen=True, eq=False)
class Item:
    """One object.

    Attributes:
        path: Photograph.
        box: xyxy pixels; None for the whole photograph.
        label: Name of its class.
        segmentation: As COCO has it; None where there is none.
        crowded: Share of the box that other annotated objects cover, in [0, 1].
        cut: The box touches the edge of the photograph.
    """

    path: Path
    box: tuple[float, float, float, float] | None
    label: str
    segmentation: Any = None
    crowded: float = 0.0
    cut: bool = False


class Photographs:
    """The training material under `shared/data`; nothing of val2017 is read.

    Attributes:
        objects: COCO instances of at least 16 pixels.
        whole: ImageNet photographs.
        names: The COCO classes.
    """

    def __init__(self, data: Path) -> None:
        coco = read_coco(data / "coco" / "instances_train2017.json", data / "coco" / "train2017")
        self.names = coco.names
        self.objects = [item for record in coco for item in _objects(record, coco.names)]
        files = sorted((data / "photos" / "imagenet_sample").iterdir())
        self.whole = [Item(f, None, f.stem.split("_", 1)[1].replace("_", " ").lower()) for f in files]
        self._read: dict[Path, Tensor] = {}

    def picture(self, item: Item) -> Tensor:
        """(3, H, W) uint8."""
        if item.path not in self._read:
            pixels = torch.from_numpy(read_image(item.path)).permute(2, 0, 1).contiguous()
            if item.box is None:
                return pixels
            self._read[item.path] = pixels  # 288 photographs fit in memory
        return self._read[item.path]

    def mask(self, item: Item, height: int, width: int) -> Tensor:
        """(H, W) bool; an ellipse in the middle where the photograph has no masks."""
        if item.segmentation is not None:
            return torch.from_numpy(_mask(item.segmentation, height, width))
        y, x = torch.linspace(-1.25, 1.25, height)[:, None], torch.linspace(-1.25, 1.25, width)
        return y**2 + x**2 < 1

    def cut_out(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(3, h, w) in [0, 1] and (h, w) bool: some object by itself, to put in front of another."""
        while True:
            item = self.objects[rng.integers(len(self.objects))]
            picture = self.picture(item)
            assert item.box is not None
            x1, y1, x2, y2 = (int(v) for v in item.box)
            mask = self.mask(item, *picture.shape[1:])[y1:y2, x1:x2]
            if min(x2 - x1, y2 - y1) >= 32 and mask.float().mean() > 0.2:
                return picture[:, y1:y2, x1:x2].float() / 255, mask


def _objects(record: ImageRecord, names: tuple[str, ...]) -> list[Item]:
    truth, found = record.truth, []
    height, width = record.height or 0, record.width or 0
    segmentations = truth.masks or []
    masks = np.array([_mask(s, height, width) for s in segmentations]).reshape(-1, height, width)
    for k, (box, label, crowd) in enumerate(zip(truth.boxes, truth.labels, truth.crowd, strict=True)):
        x1, y1, x2, y2 = (float(v) for v in box)
        if crowd or min(x2 - x1, y2 - y1) < SMALLEST:
            continue
        inside = masks[:, int(y1) : int(y2), int(x1) : int(x2)]
        others = (np.delete(inside, k, 0).any(0) & ~inside[k]).mean() if len(inside) > 1 else 0.0
        cut = x1 < EDGE or y1 < EDGE or x2 > width - EDGE or y2 > height - EDGE
        found.append(Item(record.path, (x1, y1, x2, y2), names[label], segmentations[k], float(others), cut))
    return found


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    from pycocotools import mask as coco_mask

    decoded: np.ndarray = coco_mask.decode(as_rle(segmentation, height, width)).astype(bool)
    return decoded
