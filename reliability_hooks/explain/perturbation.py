"""D-RISE for boxes and masks: random masks hide parts of the image; what the instance survives with counts.

One set of masks serves all instances and all targets of an image. Masks are made in batches and forgotten: sums are
kept on a small lattice on which each mask is evaluated exactly, and brought to the image at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor

from ..evaluation.fills import fill_of
from ..frame import Frame, View
from .base import Heat, Heats, Method, Probe
from .masks import BLOCK, GridMasks, steps
from .moments import Estimate, Moments
from .places import centres
from .targets import Target

LATTICE = 4
"""Places of the lattice in a cell of the grid, at most one in a pixel."""
FEWEST = 64
"""Masks before which the standard error is not trusted to stop."""
GONE = 0.05
"""Of a target: an instance that stays below it behind every mask is lost, and its map says little."""
CELLS = 1 << 25
"""Mask probabilities of all instances in a batch, which bounds its size."""


class DRISE(Method):
    """H = sum_i w_i M_i / sum_i M_i, w_i the target in the i-th masked image (Petsiuk et al. 2021, D-RISE).

    Targets are measured at the same raw rows where the host can look at them (boxes and masks, one pass for all), and
    else as D-RISE is published, by the raw box that fits best (`BoxDRISE`).

    The map is H less its minimum over its maximum, and its error the standard error of H on the same scale. An
    instance that every mask removes has a map of zeros.

    Args:
        grid: Cells of the masks, (height, width) or one number for both.
        p: Probability that a cell is kept.
        fill: What stands in the place of what is hidden, of `evaluation.fills.FILLS`.
        seed: Of the masks.
        batch: Pictures in a pass, fewer where there are many instances.
        estimate: Of H; see `Estimate`. All three rank places alike in the limit.
        tolerance: Stop when the standard error, over the range of H and in the mean over map and instances, is below
            it; not before `FEWEST` masks. The whole budget is spent without it.
    """

    name = "drise"
    rerun = False

    def __init__(
        self,
        grid: int | tuple[int, int] = 16,
        p: float = 0.5,
        fill: str = "grey",
        seed: int = 0,
        batch: int = 8,
        estimate: Estimate = "ratio",
        tolerance: float | None = None,
    ) -> None:
        self.grid = (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])
        if min(self.grid) < 1 or not 0 < p < 1 or batch < 1:
            raise ValueError(f"grid and batch must be at least 1 and p in (0, 1), not {grid}, {batch} and {p}")
        self.p, self.seed, self.batch = p, seed, batch
        if estimate not in get_args(Estimate):
            raise ValueError(f"estimate must be one of {', '.join(get_args(Estimate))}, not {estimate!r}")
        self.estimate: Estimate = estimate
        self.tolerance = tolerance
        self.fill = fill_of(fill)[1]

    def missing(self, frame: Frame) -> list[str]:
        can = frame.rerun is not None or (frame.look is not None and not self.rerun)
        return super().missing(frame) + ([] if can else ["model"])

    def heats(self, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int) -> Heats:
        view, size = frame.view, frame.instances.image_size
        if view is None or size is None:
            raise ValueError("the detector gives no pixels, so that nothing can be masked")
        probe = Probe(frame, rows, targets, self.rerun)
        n, device = len(rows), view.pixels.device
        lattice = [min(side, LATTICE * cells) for side, cells in zip(size, self.grid, strict=True)]
        moments = Moments(n * len(targets), lattice[0] * lattice[1], device)
        y, x = (centres(count, side, device) for count, side in zip(lattice, size, strict=True))
        notes = [] if n else ["there is nothing to explain"]
        highest = torch.zeros(n, device=device)
        for masks, shown in self.masked(view, size, budget if n else 0, self._batch(probe)):
            weights = probe(shown)
            moments.add(weights.flatten(1), masks.at(y, x).flatten(1))
            highest = torch.maximum(highest, weights.amax((0, 2)))
            if self.tolerance is not None and moments.count >= FEWEST and self._error(moments) <= self.tolerance:
                notes.append(f"stopped after {moments.count} masks: the standard error is below {self.tolerance:g}")
                break
        if gone := int((highest < GONE).sum()):
            notes.append(f"{gone} of {n} survive no mask (target below {GONE:g}): a larger p or a finer grid may help")
        effect, spread = moments.effect(self.estimate)
        values = (effect - effect.amin(1, keepdim=True)).view(n, len(targets), *lattice).float()
        errors = spread.view(n, len(targets), *lattice).float()
        boxes = view.to_view(values.new_tensor([[0.0, 0.0, size[1], size[0]]]))
        maps = {t.name: [Heat(values[:, i], boxes, errors[:, i])] for i, t in enumerate(targets)}
        return Heats(maps, probe.passes, notes=tuple(notes))

    def masked(self, view: View, size: tuple[int, int], count: int, batch: int) -> Iterator[tuple[GridMasks, Tensor]]:
        """Batches of masks and of masked pixels (b, 3, h, w); what lies beside the image is left alone."""
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
                block = GridMasks.draw(BLOCK, size, self.grid, self.p, g)
            masks = block.part(start % BLOCK, stop - start)
            keep = masks.at(y, x).masked_fill(beside, 1.0)
            hidden = colours(keep < 0.5)
            yield masks, (hidden + (pixels - hidden) * keep[:, None]).to(view.pixels.dtype)

    def _batch(self, probe: Probe) -> int:
        masks = probe.reference.masks
        return self.batch if masks is None else max(1, min(self.batch, CELLS // max(masks.numel(), 1)))

    def _error(self, moments: Moments) -> float:
        mean, error = moments.effect(self.estimate)
        span = mean.amax(1) - mean.amin(1)
        some = span > 0  # false for NaN; what every mask removes has no error
        return float((error.mean(1)[some] / span[some]).mean()) if bool(some.any()) else 0.0


class BoxDRISE(DRISE):
    """w_i = max_j IoU(b, b_j) p_j over the raw boxes j of the same class in the masked image.

    That, with `estimate="sum"`, is D-RISE as published, for one-hot class probabilities.
    """

    name = "drise_boxes"
    rerun = True
