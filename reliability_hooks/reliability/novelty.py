"""Is this object of a kind that the detector does not know? A threshold on a score with a promised false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .groups import Groups
from .scores import image_codes
from .state import State, pack, unpack


@dataclass(frozen=True, eq=False)
class Novelty:
    """Conformal p-values of an out-of-distribution score, within each class and size.

    **The promise.** Of the right detections of known objects, taken at random from a new image, at most a share
    `alpha` has a p-value <= alpha, in every cell (class x size) by itself. It holds for any number of calibration
    images and any score: for one that is bad at its task few unknown objects are found, but no more false alarms.

    **The assumption.** Calibration images and the new one are exchangeable, and the score did not learn from them.
    Nothing is assumed of the objects inside an image: an image counts as one, each of its n objects as 1 / n of it
    (hierarchical conformal prediction: Dunn, Wasserman & Ramdas 2023; Lee, Barber & Willett 2023).

    **How.** p = (1 + weight of the calibration objects of the cell that score as high) / (1 + its images). The least
    p is 1 / (1 + images), so that a cell of fewer than 1 / alpha - 1 images cannot raise an alarm: such cells, and
    those not seen, are judged together (a taxonomy as any other: Mondrian conformal prediction, Vovk et al. 2005).

    Attributes:
        alpha: False-alarm rate.
        groups: Factors -> cell.
        cell_of: (G,) int64, the cell of each group; 0 for those judged together.
        cells: (M,) int64, sorted; scores: (M,) float64, ascending within a cell; above: (M,) float64, weight of the
            calibration objects of the cell that score as high or higher.
        images: (C,) int64 for each cell.
    """

    alpha: float
    groups: Groups
    cell_of: Tensor
    cells: Tensor
    scores: Tensor
    above: Tensor
    images: Tensor

    @classmethod
    def fit(cls, score: Tensor, image: Tensor, factors: Mapping[str, Tensor], alpha: float = 0.05) -> Novelty:
        """Learn what is usual from right detections of known objects.

        Args:
            score: (N,), higher = more out-of-distribution; NaN is left out.
            image: (N,) integers, the image (or what it is a version of) of each.
            factors: Such as {"class": labels, "size": size codes}, each (N,).
            alpha: In (0, 1).

        Raises:
            ValueError: alpha is no rate, or there is no score.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is a rate in (0, 1), not {alpha}")
        keep = score.isfinite().cpu()
        if not bool(keep.any()):
            raise ValueError("no finite score of a right detection: nothing to set a threshold by")
        s, img = score.detach().cpu().double()[keep], image_codes(image, len(score))[keep]
        known = {name: value.detach().cpu()[keep] for name, value in factors.items()}
        groups = Groups.fit(known)
        code = groups.codes(known)
        count = math.prod(len(v) for v in groups.levels.values())
        pairs = torch.unique(torch.stack([code, img]), dim=1)
        enough = torch.bincount(pairs[0], minlength=count) >= 1 / alpha - 1
        cell_of = torch.where(enough, enough.cumsum(0), 0)
        cell = cell_of[code]
        _, same, n = torch.unique(torch.stack([cell, img]), dim=1, return_inverse=True, return_counts=True)
        weight = 1 / n[same].double()  # of an image in the cell: 1 in all
        order = torch.from_numpy(np.lexsort((s.numpy(), cell.numpy())))
        cell, s, weight = cell[order], s[order], weight[order]
        total = torch.zeros(int(enough.sum()) + 1, dtype=torch.float64).scatter_add_(0, cell, weight)
        before = weight.cumsum(0) - weight
        start = torch.cat([total.new_zeros(1), total.cumsum(0)])[cell]
        return cls(alpha, groups, cell_of, cell, s, total[cell] - (before - start), total.round().long())

    def p_values(self, score: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """(N,) float32 in (0, 1]; NaN for a NaN score."""
        s = score.detach().cpu().double().numpy()
        code = self.groups.codes(factors).numpy()
        cell = np.where(code >= 0, self.cell_of.numpy()[code.clip(0)], 0)
        out = np.ones_like(s)
        for c in np.unique(cell).tolist():
            mine, (scores, above) = cell == c, self._by_cell[c]
            out[mine] = (1 + above[np.searchsorted(scores, s[mine])]) / (1 + int(self.images[c]))
        return torch.from_numpy(np.where(np.isnan(s), np.nan, out)).float().to(score.device)

    @cached_property
    def _by_cell(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each cell the scores, ascending, and the weight at or above each, with 0 above all."""
        ends = np.searchsorted(self.cells.numpy(), np.arange(len(self.images) + 1))
        scores, above = self.scores.numpy(), self.above.numpy()
        return [(scores[a:b], np.append(above[a:b], 0.0)) for a, b in pairwise(ends)]

    def __call__(self, score: Tensor, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`ood_p_value` and `is_ood` (1 at a p-value <= alpha, else 0; NaN without a score), each (N,) float32."""
        p = self.p_values(score, factors)
        return {"ood_p_value": p, "is_ood": torch.where(p.isnan(), p, (p <= self.alpha).float())}

    def describe(self) -> list[dict[str, Any]]:
        """For each cell its name, calibration images, and whether it can raise an alarm."""
        need = math.ceil(1 / self.alpha) - 1
        names = {int(c): self.groups.name(g) for g, c in enumerate(self.cell_of.tolist()) if c}
        return [
            {"cell": names.get(c, "all others"), "images": n, "certifiable": n >= need}
            for c, n in enumerate(self.images.tolist())
        ]

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors, parts = pack({"groups": self.groups.state()})
        own = {name: getattr(self, name) for name in ("cell_of", "cells", "scores", "above", "images")}
        return {**tensors, **own}, {"alpha": self.alpha, "parts": parts}

    @classmethod
    def from_state(cls, state: State) -> Novelty:
        """Rebuild from `state()`."""
        tensors, meta = state
        groups = Groups.from_state(unpack((tensors, meta["parts"]), "groups"))
        own = {name: tensors[name] for name in ("cell_of", "cells", "scores", "above", "images")}
        return cls(meta["alpha"], groups, **own)
