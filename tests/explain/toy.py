"""A detector that can be seen through: an object is as sure as its cue is bright."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from reliability_hooks import Instances
from reliability_hooks.frame import Candidates, Frame, Glance, Layer, View
from reliability_hooks.hosts.look import grad_mode

SIZE = (48, 64)
BOXES = torch.tensor([[8.0, 8, 24, 24], [36, 20, 60, 44], [4, 30, 20, 46]])
CUES = torch.tensor([[10.0, 10, 16, 16], [40, 4, 48, 12], [6, 32, 18, 44]])  # of the second outside of its box


def toy(seed: int = 0, look: bool = True, unknown: int | None = None, copies: int = 1) -> Frame:
    """Three objects, or copies of them, in a view that is the image at twice the size between grey bars.

    Args:
        seed: Of the picture.
        look: Whether the detector can look.
        unknown: An object whose raw row is not known.
        copies: How many times each object is there.
    """
    random = torch.Generator().manual_seed(seed)
    picture = 0.4 + 0.2 * torch.rand(3, 2 * SIZE[0], 2 * SIZE[1], generator=random)
    view = View(torch.zeros(3, 2 * SIZE[0] + 16, 2 * SIZE[1]), (2.0, 2.0), (0.0, 8.0))
    cues = view.to_view(CUES).long()
    for x1, y1, x2, y2 in (cues - torch.tensor([0, 8, 0, 8])).tolist():
        picture[:, y1:y2, x1:x2] = 1.0
    pixels = torch.full_like(view.pixels, 0.5)
    pixels[:, 8:-8] = picture
    view = replace(view, pixels=pixels)
    boxes, labels = BOXES.repeat(copies, 1), torch.tensor([0, 1, 0]).repeat(copies)
    filled = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(filled, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    found = Instances(boxes, torch.full((len(boxes),), 0.9), labels, image_size=SIZE, head="sigmoid", masks=filled,
                      logits=torch.zeros(len(boxes), 2))

    def brightness(given: Tensor) -> Tensor:
        means = [given[:, :, y1:y2, x1:x2].mean((1, 2, 3)) for x1, y1, x2, y2 in cues.tolist()]
        return torch.stack(means, 1).repeat(1, copies)

    def glance(given: Tensor, parts: Collection[str] = (), rows: Tensor | None = None) -> Glance:
        with grad_mode():
            rows = torch.arange(len(boxes)) if rows is None else rows
            bright = brightness(given)[:, rows]
            bright = bright if unknown is None else bright.masked_fill(rows == unknown, torch.nan)
            logits = torch.stack([8 * bright - 4, 2 - 8 * bright], 2)
            logits = torch.where(labels[rows][:, None] == 1, logits.flip(2), logits)
            own = view.to_view(boxes[rows])
            y, x = (torch.arange(k, dtype=torch.float32) * 4 + 2 for k in (28, 32))
            across = (x - own[:, 0:1]) * (own[:, 2:3] - x) / 100
            down = (y - own[:, 1:2]) * (own[:, 3:4] - y) / 100
            masks = torch.minimum(down[:, :, None], across[:, None]) + 4 * bright[..., None, None] - 4
            whole = torch.tensor([[0.0, 0, given.shape[3], given.shape[2]]])
            moved = own + 8 * (1 - bright[..., None]) * torch.tensor([1.0, 1, -1, -1])
            return Glance(
                logits, None, moved if "boxes" in parts else None, masks if "masks" in parts else None,
                whole.expand(len(rows), 4) if "masks" in parts else None,
                {"late": Layer(given, whole)} if "layers" in parts else None,
            )

    def rerun(given: Tensor, dropout: bool = False) -> list[Candidates]:
        scores = (8 * brightness(given) - 4).sigmoid()
        own = view.to_view(boxes)
        every = [torch.cat([own, own + 3, own]) for _ in given]
        names = torch.cat([labels, labels, 1 - labels])
        return [Candidates(b, torch.cat([s, s * 0.9, 1 - s]), names) for b, s in zip(every, scores, strict=True)]

    return Frame(found, view, maps={"late": pixels}, rerun=rerun, look=glance if look else None)
