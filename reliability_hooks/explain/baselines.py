"""What needs no look into the detector: whoever explains must beat these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..frame import Frame
from .base import Heat, Heats, Method
from .targets import Target

SIDE = 64
"""Cells of the Gaussian's map."""


class Baseline(Method):
    """The same maps for every target, without a pass."""

    def heats(self, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int) -> Heats:
        heat, note = self.heat(frame, rows)
        return Heats({t.name: [heat] for t in targets}, notes=(note,) if note else ())

    def heat(self, frame: Frame, rows: Tensor) -> tuple[Heat, str]:
        """Maps of the rows, and a note or ''."""
        raise NotImplementedError

    @staticmethod
    def place(frame: Frame, boxes: Tensor) -> Tensor:
        """(n, 4) boxes in view pixels."""
        if frame.view is None:
            raise ValueError("the detector gives no pixels, so that nothing can be explained")
        return frame.view.to_view(boxes.float())


class OwnMask(Baseline):
    """The predicted mask, or the box where there is none."""

    name = "mask"

    def heat(self, frame: Frame, rows: Tensor) -> tuple[Heat, str]:
        kept, size = frame.instances, frame.instances.image_size
        if kept.masks is None or size is None:
            boxes = kept.boxes[rows]
            return Heat(boxes.new_ones(len(rows), 1, 1), self.place(frame, boxes)), "no masks: the box in their place"
        whole = self.place(frame, kept.boxes.new_tensor([[0, 0, size[1], size[0]]]))
        return Heat(kept.masks[rows].float(), whole), ""


class BoxGaussian(Baseline):
    """A Gaussian at the middle of the box.

    Args:
        width: Its standard deviation, as a share of the box's sides.
    """

    name = "gaussian"

    def __init__(self, width: float = 0.25) -> None:
        if not width > 0:
            raise ValueError(f"width must be above 0, not {width}")
        self.width = width

    def heat(self, frame: Frame, rows: Tensor) -> tuple[Heat, str]:
        boxes, reach = frame.instances.boxes[rows].float(), 8 * self.width  # 4 standard deviations on either side
        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * reach
        place = self.place(frame, torch.cat([middle - half, middle + half], 1))
        z = (torch.arange(SIDE, device=boxes.device) + 0.5) / SIDE * 8 - 4
        bell = (-(z**2) / 2).exp()
        return Heat((bell[:, None] * bell).expand(len(rows), SIDE, SIDE), place), ""


class RandomMap(Baseline):
    """Uniform noise on a grid, another for each instance.

    Args:
        grid: Cells on either side.
        seed: Of the noise.
    """

    name = "random"

    def __init__(self, grid: int = 16, seed: int = 0) -> None:
        if grid < 1:
            raise ValueError(f"grid must be at least 1, not {grid}")
        self.grid, self.seed = grid, seed

    def heat(self, frame: Frame, rows: Tensor) -> tuple[Heat, str]:
        g, size = torch.Generator().manual_seed(self.seed), frame.instances.image_size
        if size is None:
            raise ValueError("the size of the image is not known")
        noise = torch.rand(len(rows), self.grid, self.grid, generator=g).to(rows.device)
        return Heat(noise, self.place(frame, noise.new_tensor([[0, 0, size[1], size[0]]]))), ""
