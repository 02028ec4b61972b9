"""A detector whose one class hangs on a sticker beside its objects, in pictures where that is known."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reliability_hooks import Instances
from reliability_hooks.evaluation.datasets import GroundTruth, ImageRecord
from reliability_hooks.frame import Frame, Glance, Layer, View
from reliability_hooks.hosts.look import grad_mode

SIDE, BOX, STICKER = 96, 20, 8
NAMES = {0: "bottle", 1: "bowl"}


def scenes(folder: Path, count: int = 12) -> list[ImageRecord]:
    """Pictures of a bottle with a bright sticker to the right of it, and of a bowl without one."""
    rng, records = np.random.default_rng(0), []
    for k in range(count):
        picture = (60 + 40 * rng.random((SIDE, SIDE, 3))).astype(np.uint8)
        y = [int(v) for v in rng.integers([14, 60], [30, 66])]
        x = [int(v) for v in rng.integers(30, 40, 2)]
        boxes = np.array([[x[i], y[i], x[i] + BOX, y[i] + BOX] for i in range(2)], np.float32)
        for i in range(2):
            picture[y[i] : y[i] + BOX, x[i] : x[i] + BOX] = 170
        picture[y[0] + 6 : y[0] + 6 + STICKER, x[0] + BOX + 4 : x[0] + BOX + 4 + STICKER] = 255
        Image.fromarray(picture).save(folder / f"{k}.png")
        truth = GroundTruth(boxes, np.array([0, 1]), np.zeros(2, bool))
        records.append(ImageRecord(k, folder / f"{k}.png", SIDE, SIDE, truth))
    return records


class Planted:
    """A handle of it: class 0 rests on the sticker's place, or like class 1 on the object itself.

    Args:
        records: Of `scenes`.
        cheats: Whether it needs the sticker.
        look: Whether it gives gradients.
    """

    def __init__(self, records: Sequence[ImageRecord], cheats: bool, look: bool = True) -> None:
        self.boxes = {np.array(Image.open(r.path)).tobytes(): torch.from_numpy(r.truth.boxes) for r in records}
        self.cheats, self.looks, self.calls = cheats, look, 0
        self.open: list[Frame] = []

    @contextmanager
    def frames(self, *needs: str) -> Iterator[list[Frame]]:
        self.open = []
        yield self.open

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        self.calls += 1
        (image,) = images
        boxes = self.boxes[image.tobytes()]
        view = View(torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255)
        found = Instances(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), image_size=(SIDE, SIDE),
                          head="sigmoid", logits=torch.zeros(2, 2))  # fmt: skip
        whole = torch.tensor([[0.0, 0, SIDE, SIDE]])

        def brightness(given: Tensor, box: list[float], beside: bool) -> Tensor:
            x1, y1, x2, y2 = (int(v) for v in box)
            if beside:
                x1, x2, y1, y2 = x2 + 4, x2 + 4 + STICKER, y1 + 6, y1 + 6 + STICKER
            return given[:, :, y1:y2, x1:x2].mean((1, 2, 3))

        def look(given: Tensor, parts: Collection[str] = (), rows: Tensor | None = None) -> Glance:
            with grad_mode():
                rows = torch.arange(2) if rows is None else rows
                each = [brightness(given, boxes[i].tolist(), self.cheats and i == 0) for i in rows.tolist()]
                score = 10 * torch.stack(each, 1) - 4
                logits = torch.where((torch.arange(2) == rows[:, None])[None], score[..., None], -score[..., None])
                return Glance(logits, None, boxes[rows].expand(len(given), -1, -1) if "boxes" in parts else None,
                              layers={"late": Layer(given, whole)} if "layers" in parts else None)  # fmt: skip

        self.open.append(Frame(found, view, maps={"late": view.pixels}, look=look if self.looks else None))
        return [found]
