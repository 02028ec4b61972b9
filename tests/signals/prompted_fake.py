"""A promptable segmenter whose masks are ellipses in the prompt's box: what each answer is can be reckoned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reliability_hooks.frame import Prompted

GRID = (30, 40)
IMAGE = (120, 160)


def ellipses(boxes: Tensor, grow: float = 1.0) -> Tensor:
    """(..., 4) boxes in pixels of the image -> (..., h, w) logits: 4 in the centre, 0 on the ellipse in the box."""
    h, w = GRID
    y, x = torch.meshgrid((torch.arange(h) + 0.5) * IMAGE[0] / h, (torch.arange(w) + 0.5) * IMAGE[1] / w, indexing="ij")
    x1, y1, x2, y2 = boxes[..., None, None].float().unbind(-3)
    radius = (((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2).sqrt()
    return 4 - 8 * radius / grow


@dataclass(frozen=True)
class Prompting:
    """`Frame.prompted` of boxes that were prompted as they are."""

    boxes: Tensor
    grow: tuple[float, ...] = (0.7, 1.0, 1.3)

    def __call__(self) -> Prompted:
        every = torch.stack([ellipses(self.boxes, g) for g in self.grow], 1)
        ious = torch.linspace(0.9, 0.7, len(self.grow)) - self.boxes[:, :1].float() / 1000
        return Prompted(every[:, 0], ious[:, 0], every[:, 1:] > 0, ious[:, 1:],
                        torch.ones(len(self.boxes), dtype=torch.bool), self.moved)  # fmt: skip

    def moved(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return ellipses(boxes, self.grow[0]) > 0, 0.9 - boxes[..., 0].float() / 1000

    def logits(self) -> Tensor:
        return self().logits
