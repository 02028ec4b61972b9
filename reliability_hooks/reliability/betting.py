"""Tests behind the certificates: a betting test on images, an exact binomial test on detections."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STAKES = (0.98, 0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1)
"""Shares of the largest bet that cannot ruin; 0.98, not 1, so that one image with all wrong is survived."""
PRIOR = 20.0
"""All-right images that speak for the highest stake before any was seen."""


def betting_log_p(gain: Tensor, best: float) -> Tensor:
    """Log p-values against "the mean gain is at most 0", for gains that cannot fall below -1.

    The wealth of a gambler who before each image stakes a share f of it, f chosen from the images before, is a
    supermartingale under the hypothesis: E[1 + f gain] <= 1. By Ville's inequality 1 / max wealth is a p-value,
    for any distribution and any dependence *inside* an image, if the images are independent (Waudby-Smith &
    Ramdas 2024, JRSS B, section 4). The stake is the one of `STAKES` that would have earned most so far ("follow
    the leader"). Of the tests that we compared (Hoeffding-Bentkus, empirical Bernstein, fixed stakes, mixtures of
    stakes, approximate GRAPA) it finds most where data are few and hardly less than the best elsewhere.

    Args:
        gain: (I, T), images in a random order, one column for each hypothesis.
        best: gain of an image with all right, which the prior counts.

    Returns:
        (T,) float64, at most 0.
    """
    stakes = torch.tensor(STAKES, dtype=torch.float64)
    earned = torch.log1p(gain[:, :, None] * stakes)
    before = earned.cumsum(0) - earned + PRIOR * torch.log1p(stakes * best)
    chosen = earned.gather(2, before.argmax(2, keepdim=True))[:, :, 0]
    zero = torch.zeros(1, gain.shape[1], dtype=torch.float64)
    return -torch.cat([zero, chosen.cumsum(0)]).amax(0)


def binomial_log_p(right: Tensor, n: Tensor, target: float) -> Tensor:
    """Log P(Binomial(n, target) >= right), (T,): the exact test for *independent detections*."""
    from scipy.stats import binom

    return torch.as_tensor(binom.logsf(right.numpy() - 1, n.numpy(), target), dtype=torch.float64)


def needed(target: float, delta: float, unit: str = "instance") -> int:
    """The least number of straight successes that certifies `target` at `delta`.

    For the binomial test detections: 22 for 0.9 at 0.1, 45 for 0.95, 230 for 0.99. For the betting test images,
    each with as many detections as the limit allows, all right.
    """
    if not (0 < target < 1 and 0 < delta < 1):
        raise ValueError(f"target and delta must lie in (0, 1), got {target} and {delta}")
    growth = -math.log(target) if unit == "instance" else math.log1p(STAKES[0] * (1 - target) / target)
    return math.ceil(-math.log(delta) / growth - 1e-9)
