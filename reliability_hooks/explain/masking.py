"""Random masks hide parts of the image, and the detector is asked what it still finds: what such methods share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..evaluation.fills import fill_of
from ..frame import Frame, View
from .base import Method, Probe
from .masks import BLOCK, GridMasks, Masks, steps
from .slopes import Slopes
from .targets import Target

GONE = 0.05
"""Of a target: an instance that stays below it behind every mask is lost, and its map says little."""
CELLS = 1 << 25
"""Mask probabilities of all instances in a batch, which bounds its size."""


class Masking(Method):
    """One set of masks for all instances and all targets of an image, made in batches and forgotten.

    Targets are measured at the same raw rows where the host can look at them (boxes and masks, one pass for all), and
    else, or with `rerun`, by the raw box of a new pass that fits best.

    Args:
        grid: Cells of the masks, (height, width) or one number for both.
        p: Probability that a cell is kept.
        fill: What stands in the place of what is hidden, of `evaluation.fills.FILLS`.
        seed: Of the masks.
        batch: Pictures in a pass, fewer where there are many instances.
    """

    rerun: ClassVar[bool] = False

    def __init__(self, grid: int | tuple[int, int], p: float, fill: str, seed: int, batch: int) -> None:
        self.grid = (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])
        if min(self.grid) < 1 or not 0 < p < 1 or batch < 1:
            raise ValueError(f"grid and batch must be at least 1 and p in (0, 1), not {grid}, {batch} and {p}")
        self.p, self.seed, self.batch = p, seed, batch
        self.fill = fill_of(fill)[1]

    def missing(self, frame: Frame) -> list[str]:
        can = frame.rerun is not None or (frame.look is not None and not self.rerun)
        return super().missing(frame) + ([] if can else ["model"])

    def draw(self, block: int, size: tuple[int, int], boxes: Tensor, g: torch.Generator) -> Masks:
        """`BLOCK` masks, the block-th; boxes (n, 4) are those of the instances in pixels of the image."""
        return GridMasks.draw(BLOCK, size, self.grid, self.p, g)

    def masked(
        self, view: View, size: tuple[int, int], boxes: Tensor, count: int, batch: int
    ) -> Iterator[tuple[Masks, Tensor, Tensor]]:
        """Batches of masks, of masked pixels (b, 3, h, w), and of the pixels less what hides them.

        What lies beside the image is left alone.
        """
        g = torch.Generator().manual_seed(self.seed)
        pixels = view.pixels.clone().float()
        colours = self.fill(pixels)
        y, x = (
            (torch.arange(side, device=pixels.device) + 0.5 - view.offset[axis]) / view.scale[axis]
            for axis, side in ((1, pixels.shape[1]), (0, pixels.shape[2]))
        )
        beside = ~((y >= 0) & (y <= size[0]))[:, None] | ~((x >= 0) & (x <= size[1]))
        for start, stop in steps(count, batch):
            if start % BLOCK == 0:
                block = self.draw(start // BLOCK, size, boxes, g)
            masks = block.part(start % BLOCK, stop - start)
            keep = masks.at(y, x).masked_fill(beside, 1.0)
            hidden = colours(keep < 0.5)
            change = (pixels - hidden).expand(len(keep), -1, -1, -1)
            yield masks, (hidden + change * keep[:, None]).to(view.pixels.dtype), change


class Answers:
    """What the instances answer to masks, batch by batch.

    Args:
        method: Draws the masks.
        frame: Is asked.
        rows: (n,) of its instances.
        targets: What is asked.
        budget: Pictures.
        slopes: Of the same rows and targets: gathers those of the pictures that it wants.

    Attributes:
        view: Of the frame.
        size: (height, width) of the image.
        probe: Counts the pictures.
    """

    def __init__(
        self, method: Masking, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int,
        slopes: Slopes | None = None,
    ) -> None:  # fmt: skip
        if frame.view is None or frame.instances.image_size is None:
            raise ValueError("the detector gives no pixels, so that nothing can be masked")
        self.view, self.size = frame.view, frame.instances.image_size
        with torch.inference_mode(False), torch.no_grad():  # what gradients are taken through must not be of that mode
            self.probe = Probe(frame, rows.clone(), targets, method.rerun)
        self.boxes = frame.instances.boxes[rows].float()
        self.method, self.budget, self.slopes = method, budget if len(rows) else 0, slopes
        self.highest = torch.zeros(len(rows), device=frame.view.pixels.device)

    def __iter__(self) -> Iterator[tuple[Masks, Tensor]]:
        """(b masks, (b, rows * targets) answers in [0, 1]); NaN for an instance that cannot be traced."""
        many = self.probe.reference.masks
        batch = self.method.batch if many is None else max(1, min(self.method.batch, CELLS // max(many.numel(), 1)))
        start = 0
        for masks, shown, change in self.method.masked(self.view, self.size, self.boxes, self.budget, batch):
            graded = 0 if self.slopes is None else self.slopes.wanted(start, len(shown))
            parts = [self.slopes.add(self.probe, shown[:graded], change[:graded])] if self.slopes and graded else []
            parts += [self.probe(shown[graded:])] if graded < len(shown) else []
            answers, start = torch.cat(parts), start + len(shown)
            self.highest = torch.maximum(self.highest, answers.amax((0, 2)))
            yield masks, answers.flatten(1)

    def notes(self) -> list[str]:
        """What is to be said about the instances."""
        if not len(self.highest):
            return ["there is nothing to explain"]
        gone = int((self.highest < GONE).sum())
        lost = f"{gone} of {len(self.highest)} survive no mask (target below {GONE:g}): a larger p may help"
        return [lost] if gone else []
