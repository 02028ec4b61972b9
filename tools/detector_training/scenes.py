"""Training scenes: a photograph at a random scale, mirrored or not, with objects of other photographs pasted on it.

Copy-paste after Ghiasi et al. 2021, the classes drawn alike often; nothing but COCO train2017 is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from reliability_hooks.evaluation.datasets import DetectionDataset, read_coco
from reliability_hooks.evaluation.masks import as_rle
from reliability_hooks.images import read_image

SIDE = 352
"""Of a scene, in pixels."""
FIT = 416
"""The longer side of a photograph at scale 1, as the detector will see it."""
SCALE = (0.6, 1.7)
PASTED = (0.2, 0.3, 0.3, 0.2)
"""Chance of 0, 1, 2 and 3 pasted objects."""
SMALLEST_PASTED = 20
SMALLEST, VISIBLE = 5, 0.3
"""An object with a shorter side, or with less of it left to see, is none."""
GREY = 128


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph: pixels (H, W, 3) uint8, run lengths and labels (N,) of its objects, run lengths of its crowds."""

    pixels: np.ndarray
    masks: list[Any]
    labels: np.ndarray
    crowds: list[Any]


class Scenes:
    """What is drawn from: the photographs, and the objects of each class that are large enough to be pasted.

    Args:
        dataset: COCO, whose labels become 1 ... among `names`.
        names: Classes to train, the background's first. Objects of others are background.
    """

    def __init__(self, dataset: DetectionDataset, names: Sequence[str]) -> None:
        self.names = list(names)
        number = {name: k for k, name in enumerate(names)}
        to = np.array([number.get(name, 0) for name in dataset.names])
        self.photographs: list[Photograph] = []
        self.objects: list[list[tuple[int, int]]] = [[] for _ in names]
        for i, record in enumerate(dataset):
            pixels, truth = read_image(record.path), record.truth
            masks = [as_rle(m, *pixels.shape[:2]) for m in truth.masks or []]
            labels = to[truth.labels]
            use = np.flatnonzero((labels > 0) & ~truth.crowd)
            crowds = [masks[k] for k in np.flatnonzero(truth.crowd)]
            self.photographs.append(Photograph(pixels, [masks[k] for k in use], labels[use], crowds))
            sides = truth.boxes[use, 2:] - truth.boxes[use, :2]
            for k in np.flatnonzero(sides.min(1, initial=np.inf) >= SMALLEST_PASTED):
                self.objects[labels[use[k]]].append((i, int(k)))
        self.classes = [k for k, found in enumerate(self.objects) if found]

    def draw(self, i: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Photograph i under a random view.

        Returns:
            (3, SIDE, SIDE) float RGB in [0, 1], and `boxes` (N, 4) xyxy, `labels` (N,), `masks` (N, SIDE, SIDE) uint8.
        """
        photograph = self.photographs[i]
        canvas, masks = _view(photograph, _scale(photograph.pixels, rng), rng)
        area, labels = masks.sum((1, 2)), photograph.labels
        for _ in range(rng.choice(len(PASTED), p=PASTED) if self.classes else 0):
            label = self.classes[rng.integers(len(self.classes))]
            source, k = self.objects[label][rng.integers(len(self.objects[label]))]
            shape = _paste(canvas, self.photographs[source], k, rng)
            masks = np.concatenate([masks & ~shape, shape[None]])
            area, labels = np.r_[area, shape.sum()], np.r_[labels, label]
        boxes = _boxes(masks)
        keep = ((boxes[:, 2:] - boxes[:, :2]).min(1, initial=SIDE) >= SMALLEST) & (masks.sum((1, 2)) >= VISIBLE * area)
        target = {"boxes": torch.from_numpy(boxes[keep]), "labels": torch.from_numpy(labels[keep]),
                  "masks": torch.from_numpy(masks[keep].astype(np.uint8))}  # fmt: skip
        return _light(torch.from_numpy(canvas).permute(2, 0, 1).float() / 255, rng), target


def candidates(dataset: DetectionDataset, objects: int, photographs: int) -> list[str]:
    """Classes with at least so many objects in at least so many photographs, the most frequent first."""
    labels = [r.truth.labels[~r.truth.crowd] for r in dataset]
    count = np.bincount(np.concatenate(labels), minlength=len(dataset.names))
    within = np.bincount(np.concatenate([np.unique(k) for k in labels]), minlength=len(dataset.names))
    order = np.argsort(-count, kind="stable")
    return [dataset.names[k] for k in order if count[k] >= objects and within[k] >= photographs]


def train2017(coco: Path) -> DetectionDataset:
    """The photographs to train on."""
    return read_coco(coco / "instances_train2017.json", coco / "train2017")


def _scale(pixels: np.ndarray, rng: np.random.Generator) -> float:
    low, high = np.log(SCALE)
    return float(FIT / max(pixels.shape[:2]) * np.exp(rng.uniform(low, high)))


def _view(photograph: Photograph, scale: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A window of the scaled photograph (SIDE, SIDE, 3) on grey, and its objects' masks (N, SIDE, SIDE)."""
    size = np.array(photograph.pixels.shape[:2])
    scaled = np.maximum(np.rint(size * scale).astype(int), 8)
    room = SIDE - scaled
    corner = np.rint(rng.uniform(np.minimum(room, 0), np.maximum(room, 0))).astype(int)  # of the photograph
    low, high = np.maximum(corner, 0), np.minimum(corner + scaled, SIDE)
    box = np.r_[(low - corner)[::-1], (high - corner)[::-1]] / np.tile(scaled / size, 2)[::-1]
    (y1, x1), (y2, x2) = low, high
    image = Image.fromarray(photograph.pixels)
    canvas = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    to = (int(x2 - x1), int(y2 - y1))
    canvas[y1:y2, x1:x2] = image.resize(to, Image.Resampling.BILINEAR, box=tuple(box), reducing_gap=2.0)
    rows, columns = (
        np.clip(((np.arange(a, b) - c + 0.5) * n / s).astype(int), 0, n - 1)
        for a, b, c, n, s in zip(low, high, corner, size, scaled, strict=True)
    )

    def seen(masks: list[Any]) -> np.ndarray:
        found = np.zeros((len(masks), SIDE, SIDE), bool)
        if masks:
            by_column = coco_mask.decode(masks).transpose(2, 1, 0)  # as it lies in memory
            found[:, y1:y2, x1:x2] = by_column[:, columns[:, None], rows].transpose(0, 2, 1)
        return found

    canvas[seen(photograph.crowds).any(0)] = GREY  # torchvision cannot ignore a region
    masks = seen(photograph.masks)
    if rng.random() < 0.5:
        return np.ascontiguousarray(canvas[:, ::-1]), masks[:, :, ::-1]
    return canvas, masks


def _paste(canvas: np.ndarray, photograph: Photograph, k: int, rng: np.random.Generator) -> np.ndarray:
    """Object k of a photograph onto the canvas, in place; returns its mask (SIDE, SIDE)."""
    x, y, w, h = coco_mask.toBbox(photograph.masks[k]).astype(int).tolist()
    region = (x, y, x + w, y + h)
    scale = min(_scale(photograph.pixels, rng), 0.8 * SIDE / max(w, h))
    to = (max(round(w * scale), 4), max(round(h * scale), 4))
    cut = Image.fromarray(coco_mask.decode(photograph.masks[k]) * np.uint8(255))
    pixels = np.asarray(Image.fromarray(photograph.pixels).resize(to, Image.Resampling.BILINEAR, box=region))
    alpha = np.asarray(cut.resize(to, Image.Resampling.BILINEAR, box=region))
    if rng.random() < 0.5:
        pixels, alpha = pixels[:, ::-1], alpha[:, ::-1]
    left, top = (int(rng.integers(SIDE - n + 1)) for n in to)
    place = (slice(top, top + to[1]), slice(left, left + to[0]))
    weight = alpha[..., None] / 255
    canvas[place] = np.rint(canvas[place] * (1 - weight) + pixels * weight)
    shape = np.zeros((SIDE, SIDE), bool)
    shape[place] = alpha > 127
    return shape


def _boxes(masks: np.ndarray) -> np.ndarray:
    """(N, 4) float32 xyxy around each mask; zeros around an empty one."""
    columns, rows = masks.any(1), masks.any(2)
    first = np.stack([columns.argmax(1), rows.argmax(1)], 1)
    last = SIDE - np.stack([columns[:, ::-1].argmax(1), rows[:, ::-1].argmax(1)], 1)
    return np.concatenate([first, np.where(rows.any(1)[:, None], last, first)], 1).astype(np.float32)


def _light(x: Tensor, rng: np.random.Generator) -> Tensor:
    """A little more or less light, contrast and colour; one scene in ten without colour."""
    grey = x.mean(0, keepdim=True)
    colour = 0.0 if rng.random() < 0.1 else rng.uniform(0.7, 1.3)
    x = grey + (x - grey) * colour
    x = (x - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.1, 0.1)
    return x.clamp(0, 1)
