"""What masks and answers have to do with each other, and how sure that is, from running means."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimate = Literal["ratio", "sum", "centred"]
"""Mean of w M over mean of M, what an instance keeps where the place is seen (as xaitk-saliency does); mean of w M, as
published, in which places that chance showed more often stand out; mean of (w - mean w)(M - mean M)."""


class Moments:
    """Running means of w^a M^b, a and b up to 2, for weights w (B, R) and masks M (B, P); float64."""

    def __init__(self, rows: int, places: int, device: torch.device) -> None:
        self.w = torch.zeros(2, rows, 1, dtype=torch.float64, device=device)
        self.m = torch.zeros(2, 1, places, dtype=torch.float64, device=device)
        self.wm = torch.zeros(2, 2, rows, places, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, weights: Tensor, masks: Tensor) -> None:
        """A batch; a NaN weight makes its row NaN."""
        self.count += len(weights)
        w, m = (torch.stack([t.double(), t.double() ** 2]) for t in (weights, masks))
        self.w += (w.mean(1)[..., None] - self.w) * (len(weights) / self.count)
        self.m += (m.mean(1)[:, None] - self.m) * (len(weights) / self.count)
        for a in range(2):
            for b in range(2):
                self.wm[a, b] += (w[a].T @ m[b] - len(weights) * self.wm[a, b]) / self.count

    def effect(self, estimate: Estimate) -> tuple[Tensor, Tensor]:
        """(R, P) an `Estimate` and its standard error; NaN with one mask."""
        (w, ww), (m, mm), ((wm, wmm), (wwm, wwmm)) = self.w, self.m, self.wm
        if estimate == "ratio":
            size = m.clamp(min=1e-9)
            mean = wm / size
            spread = (wwmm - 2 * mean * wmm + mean**2 * mm) / size**2
        elif estimate == "sum":
            mean, spread = wm, wwmm - wm**2
        else:
            mean = wm - w * m
            square = wwmm - 2 * m * wwm + m**2 * ww - 2 * w * (wmm - 2 * m * wm + m**2 * w) + w**2 * (mm - m**2)
            spread = square - mean**2
        none = torch.full_like(mean, torch.nan)
        return mean, (spread.clamp(min=0) / (self.count - 1)).sqrt() if self.count > 1 else none
