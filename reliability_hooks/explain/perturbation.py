"""Random masks hide parts of the image; what an instance survives with counts: D-RISE for boxes and masks.

One set of masks serves all instances and all targets of an image. Masks are made in batches and forgotten: sums are
kept on a small lattice on which each mask is evaluated exactly, and brought to the image at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from ..frame import Frame
from .base import Heat, Heats
from .masking import Answers, Masking
from .moments import Estimate, Moments
from .places import centres
from .targets import Target

LATTICE = 4
"""Places of the lattice in a cell of the grid, at most one in a pixel."""
FEWEST = 64
"""Masks before which the standard error is not trusted to stop."""


class DRISE(Masking):
    """H = sum_i w_i M_i / sum_i M_i, w_i the target in the i-th masked image (Petsiuk et al. 2021, D-RISE).

    The map is H less its minimum over its maximum, and its error the standard error of H on the same scale. An
    instance that every mask removes has a map of zeros.

    Args:
        grid: See `Masking`, as are p, fill, seed and batch.
        p: As grid.
        fill: As grid.
        seed: As grid.
        batch: As grid.
        estimate: Of H; see `Estimate`. All three rank places alike in the limit.
        tolerance: Stop when the standard error, over the range of H and in the mean over map and instances, is below
            it; not before `FEWEST` masks. The whole budget is spent without it.
    """

    name = "drise"

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
        super().__init__(grid, p, fill, seed, batch)
        if estimate not in get_args(Estimate):
            raise ValueError(f"estimate must be one of {', '.join(get_args(Estimate))}, not {estimate!r}")
        self.estimate: Estimate = estimate
        self.tolerance = tolerance

    def heats(self, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int) -> Heats:
        seen = Answers(self, frame, rows, targets, budget)
        n, device, size = len(rows), seen.view.pixels.device, seen.size
        lattice = [min(side, LATTICE * cells) for side, cells in zip(size, self.grid, strict=True)]
        moments = Moments(n * len(targets), lattice[0] * lattice[1], device)
        y, x = (centres(count, side, device) for count, side in zip(lattice, size, strict=True))
        notes = []
        for masks, answers in seen:
            moments.add(answers, masks.at(y, x).flatten(1))
            if self.tolerance is not None and moments.count >= FEWEST and self._error(moments) <= self.tolerance:
                notes.append(f"stopped after {moments.count} masks: the standard error is below {self.tolerance:g}")
                break
        effect, spread = moments.effect(self.estimate)
        values = (effect - effect.amin(1, keepdim=True)).view(n, len(targets), *lattice).float()
        errors = spread.view(n, len(targets), *lattice).float()
        boxes = seen.view.to_view(values.new_tensor([[0.0, 0.0, size[1], size[0]]]))
        maps = {t.name: [Heat(values[:, i], boxes, errors[:, i])] for i, t in enumerate(targets)}
        return Heats(maps, seen.probe.passes, notes=(*notes, *seen.notes()))

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
