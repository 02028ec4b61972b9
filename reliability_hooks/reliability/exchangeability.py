"""Are the numbers that come exchangeable with those of before? Conformal p-values, and bets against them.

**P-values that stay true with few calibration images.** A fixed set of n calibration images is not the population: a
test that bets against it for ever finds that out in the end and calls it drift. Here every past image counts: the n
sorted calibration values leave n + 1 gaps, by exchangeability the next value falls into each with probability
1 / (n + 1), and a gap that was hit once counts one more from then on (a Polya urn). The smoothed conformal p-values
drawn from the urn are independent and exactly uniform for every n (Vovk, Nouretdinov, Gammerman 2003; Vovk 2021,
"Testing randomness online"). Ties are broken at random. Gaps are pooled into at most `BINS` bins, which keeps the
property, so that memory and time per image do not grow. Where an image leaves a signal undefined, none is drawn.

**Bets.** Power bets f(p) = a p^(a - 1), a in `POWERS`, on p (the signal rises) and on 1 - p (it falls), each begun anew
at every image (Shiryaev-Roberts): R_t = (R_(t-1) + w_t) f(p_t), averaged over the bets. Two promises, as one chooses:

- `alpha`: P(an alarm is ever raised) <= alpha. w_t = g(t-1) - g(t) with g(t) = 1 / log2(t + 2) is a prior on when the
  change comes; M_t = R_t + g(t) is a test martingale from 1, so P(M ever reaches c) <= 1/c (Ville).
- `run_length` L, for endless streams: mean images to a false alarm >= L, and P(alarm within t images) <= t / (2 L).
  w_t = 1; R_t - t is a martingale, hence P(R reaches c within t) <= t / c (an e-detector: Shin, Ramdas, Rinaldo 2024;
  with conformal p-values: Volkhonskiy et al. 2017, Vovk et al. 2021, "Retrain or not retrain").
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .state import State

Array = NDArray[Any]

BINS = 128
"""Most bins of a signal's reference distribution."""
POWERS = (0.25, 0.5, 0.75)
"""Exponents of the bets: from few extreme values to a slight shift of all."""


class Evidence:
    """S sequences of numbers, each tested by itself for being exchangeable with its calibration values.

    Args:
        calibration: (n, S) float64; what is not finite is undefined.
        log_threshold: Log of the level at which a sequence is named.
        endless: Whether the level is an e-detector's (w_t = 1) instead of a test martingale's.
        seed: Of ties and of the place within a bin.
    """

    def __init__(self, calibration: Array, log_threshold: float, *, endless: bool = False, seed: int = 0) -> None:
        self.log_threshold, self.endless, self.seed = log_threshold, endless, seed
        self.edges, self.ties, self.mass = _bins(calibration, seed)
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        s, bets = len(self.mass), 2 * len(POWERS)
        self.images = 0
        self.counts = self.mass.copy()
        self.log_r = np.full((s, bets), -np.inf)
        self.cusum = np.zeros((s, bets))
        self.start = np.zeros((s, bets), np.int64)
        self.peak = self.log_evidence()
        self.since, self.at = np.full((2, s), -1)
        self.higher = np.zeros(s, bool)

    def update(self, values: Array) -> None:
        """Take the next value of each sequence, (S,) float64; what is not finite is undefined."""
        defined = np.isfinite(values)
        tie, inside = np.random.default_rng([self.seed, self.images + 1]).random((2, len(values)))
        rows, index = np.arange(len(values)), self.bins(values, tie)
        up_to, own = self.counts.cumsum(1), self.counts[rows, index]
        total, below = up_to[:, -1], up_to[rows, index] - own
        p = np.stack([total - below - inside * own, below + inside * own], 1) / total[:, None]
        log_p = np.log(p.clip(1e-12))[..., None]  # the floor only makes a bet smaller
        gain = (np.log(POWERS) + (np.array(POWERS) - 1) * log_p).reshape(self.log_r.shape) * defined[:, None]
        self.counts[rows, index] += defined

        weight = 1.0 if self.endless else _unspent(self.images) - _unspent(self.images + 1)
        self.log_r = np.logaddexp(self.log_r, math.log(weight)) + gain
        # Page's CUSUM of each bet: where it last began to rise is the likeliest beginning of the change.
        self.start[self.cusum <= 0] = self.images
        self.cusum = self.cusum.clip(0) + gain
        self.images += 1

        now = self.log_evidence()
        self.peak = np.maximum(self.peak, now)
        new = np.flatnonzero((now >= self.log_threshold) & (self.at < 0))
        best = self.cusum[new].argmax(1)
        self.since[new], self.at[new] = self.start[new, best], self.images - 1
        self.higher[new] = best < len(POWERS)

    def bins(self, values: Array, ties: Array) -> Array:
        """(S,) bin of each value; ties (S,) in [0, 1) order equal ones. 0 for NaN."""
        v = values[:, None]
        below: Array = ((self.edges < v) | ((self.edges == v) & (self.ties <= ties[:, None]))).sum(1)
        return below

    def log_evidence(self) -> Array:
        """(S,) log of M_t, or of R_t where endless."""
        log_r: Array = np.logaddexp.reduce(self.log_r, 1) - math.log(self.log_r.shape[1])
        return log_r if self.endless else np.logaddexp(log_r, math.log(_unspent(self.images)))

    def state(self) -> State:
        """Tensors and meta for `from_state`, the stream so far included."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        meta = {name: value for name, value in vars(self).items() if name not in arrays}
        return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}, meta

    @classmethod
    def from_state(cls, state: State) -> Evidence:
        """Rebuild from `state()`."""
        evidence = cls.__new__(cls)
        vars(evidence).update({name: t.numpy().copy() for name, t in state[0].items()}, **state[1])
        return evidence


def _bins(calibration: Array, seed: int) -> tuple[Array, Array, Array]:
    """Edges (S, K-1) and their tie-breakers, padded with infinity, and the gaps in each bin (S, K).

    An edge is a calibration value with its tie-breaker; bins hold equally many of the gaps, as far as they can.
    """
    n, s = calibration.shape
    calibration = np.where(np.isfinite(calibration), calibration, np.nan)
    keys = np.random.default_rng([seed, 0]).random((n, s))
    k = min(BINS, n + 1)
    edges, ties, mass = np.full((s, k - 1), np.inf), np.full((s, k - 1), np.inf), np.zeros((s, k))
    for i, (column, key) in enumerate(zip(calibration.T, keys.T, strict=True)):
        order = np.lexsort((key, column))[: np.isfinite(column).sum()]  # what is undefined sorts last
        cuts = np.linspace(0, len(order) + 1, min(k, len(order) + 1) + 1).round().astype(int)
        inner = order[cuts[1:-1] - 1]
        edges[i, : len(inner)], ties[i, : len(inner)] = column[inner], key[inner]
        mass[i, : len(inner) + 1] = np.diff(cuts)
    return edges, ties, mass


def _unspent(t: int) -> float:
    """Prior probability that the change comes after t images."""
    return 1 / math.log2(t + 2)
