"""How much evidence against a track is too much? A boundary over its age, calibrated on whole tracks.

**Why not multiply bets over frames.** The frames of a track show one object under nearly one view: what makes one frame
odd makes the next one odd too. Conformal p-values of single frames are therefore far from independent, the product of
bets against them is no test martingale, and a threshold that a share alpha of *frames* crosses is crossed at some time
by many more *tracks*.

**The rule.** The evidence of a track is one path over its life, and its highest point so far, M, is a single number.
The calibration tracks have such a number each, taken over their whole lives. If tracks are exchangeable (any order as
likely), M of a new track at the end of its life falls into each gap between theirs with equal chance, so that the
conformal p-value p = (1 + #{calibration M >= M}) / (n + 1) has P(p <= alpha) <= alpha for every n (Vovk, Gammerman,
Shafer 2005; for outliers Bates et al. 2023, "Testing for outliers with conformal p-values"). M only grows with age and
p only falls, hence P(a new in-distribution track is *ever* flagged) <= alpha, whatever the dependence between frames.
It takes n >= 1 / alpha - 1 tracks (99 for 1 %); with fewer no track could be flagged. The chance counts the calibration
too: with one set of n tracks the rate of false alarms to come varies about its mean as a Beta distribution does.

**Tracks of one video** depend on each other. With `unit="video"` only videos need be exchangeable: a track weighs one
over the number of tracks in its video, and p = (1 + sum of the weights with M at least as high) / (videos + 1) holds
for a track drawn at random from a new video (Lee, Barber, Willett 2023, "Distribution-free inference with hierarchical
data"). It takes 1 / alpha - 1 *videos*.

**Lengths.** Exchangeable tracks have lives of the same distribution: tracks followed ten times longer than those of
calibration have more chances to be flagged than was promised. How evidence is made comparable between ages only moves
power from old to young tracks; it is learnt from units of its own, so that the promise stands whatever its form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..reliability.state import State

Rule = Literal["mean", "cusum", "frame"]
Unit = Literal["track", "video"]
ALLOWANCE = 1.0
"""Deviations from the usual that a CUSUM forgives in each frame: half of the shift it is best for, here 2 (Page)."""
SHAPE_SHARE = 4
"""One unit in so many is kept from the calibration of the level, to learn what is usual at which age."""
_WEIGHT, _SQUARES, _MEAN, _CUSUM, _PEAK = range(5)


@dataclass(frozen=True, eq=False)
class Boundary:
    """The fitted alarm of tracks.

    A frame's value is the mean over the watched columns of (score - centre) / spread. The evidence of a track is, by
    `rule`:

    - `mean`: the exponentially weighted mean of its values over the deviation that such a mean has at this age among
      usual tracks, sqrt(between^2 + within^2 * sum w^2 / (sum w)^2): a boundary that narrows with age;
    - `cusum`: max(0, evidence + value / deviation - `ALLOWANCE`) from frame to frame (Page 1954, "Continuous inspection
      schemes");
    - `frame`: the value of the frame, that is the plain threshold for each frame.

    Attributes:
        columns: The C watched columns, higher = more out-of-distribution.
        center: (C,) usual value.
        spread: (C,) its usual deviation between frames, positive.
        within: Deviation of values about the mean of their track.
        between: Deviation of the means of tracks.
        peaks: (n,) float64 ascending, the highest evidence of each calibration track in its life.
        tail: (n,) float64, weight of the calibration tracks from each on upwards.
        units: Tracks or videos that the level was calibrated on.
        alpha: Chance that an in-distribution track is ever flagged, in (0, 1).
        rule: See above.
        memory: Frames that a mean reaches back, at least 1.
    """

    columns: tuple[str, ...]
    center: Tensor
    spread: Tensor
    within: float
    between: float
    peaks: Tensor
    tail: Tensor
    units: int
    alpha: float
    rule: Rule
    memory: float

    @classmethod
    def fit(
        cls,
        values: Tensor,
        track: Tensor,
        video: Tensor,
        columns: Sequence[str],
        *,
        alpha: float = 0.01,
        rule: Rule = "mean",
        unit: Unit = "track",
        memory: float = 10.0,
        seed: int = 0,
    ) -> Boundary:
        """Learn the boundary from in-distribution tracks.

        Args:
            values: (R, C) watched columns, one row for each frame of each track, in the order of time.
            track: (R,) int64, number of the track from 0, across all videos.
            video: (T,) int64, the video of each track.
            columns: C names.
            alpha: In (0, 1).
            rule: `mean`, `cusum` or `frame`.
            unit: What is exchangeable: `track` or `video`.
            memory: Frames, at least 1.
            seed: Of the choice of units that the shape is learnt from.

        Raises:
            ValueError: Too few units for `alpha`, no finite values, or a setting out of range.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is a probability in (0, 1), not {alpha}")
        if rule not in get_args(Rule) or unit not in get_args(Unit):
            raise ValueError(f"rule is one of {get_args(Rule)}, unit one of {get_args(Unit)}; not {rule!r}, {unit!r}")
        of = torch.arange(len(video)) if unit == "track" else torch.unique(video, return_inverse=True)[1]
        k, least = (int(of.max()) + 1 if len(of) else 0), needed(alpha)
        if k < least + 2:
            raise ValueError(f"alpha = {alpha:g} needs {least} {unit}s for the level and 2 to learn what is usual, got "
                             f"{k}: record more in-distribution {unit}s, or raise alpha")
        order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
        for_shape = torch.zeros(k, dtype=torch.bool)
        for_shape[order[: min(max(2, k // SHAPE_SHARE), k - least)]] = True
        usual = for_shape[of]
        shape = _shape(values[usual[track]], track[usual[track]], len(video))

        none = torch.zeros(0, dtype=torch.float64)
        bare = cls(tuple(columns), **shape, peaks=none, tail=none, units=k - int(for_shape.sum()), alpha=alpha,
                   rule=rule, memory=memory)  # fmt: skip
        weight = 1 / torch.bincount(of).double()[of]
        peaks, by = bare._lives(values, track, len(video))[~usual].sort()
        tail = weight[~usual][by].flip(0).cumsum(0).flip(0)
        return cls(**{**vars(bare), "peaks": peaks, "tail": tail})

    def start(self, n: int) -> Tensor:
        """(n, 5) float64: the evidence of n tracks of which nothing was seen."""
        state = torch.zeros(n, 5, dtype=torch.float64)
        state[:, _PEAK] = -torch.inf
        return state

    def step(self, state: Tensor, values: Tensor) -> Tensor:
        """(n, 5) evidence after one more frame with (n, C) values; a frame without a finite value changes nothing."""
        weight, squares, mean, cusum, peak = state.unbind(1)
        z = (values.double() - self.center) / self.spread
        finite = z.isfinite()
        y = torch.where(finite, z, 0.0).sum(1) / finite.sum(1)
        decay = 1 - 1 / self.memory
        weight, squares = decay * weight + 1, decay**2 * squares + 1
        mean = mean + (y - mean) / weight
        cusum = (cusum + y / math.hypot(self.within, self.between) - ALLOWANCE).clamp(min=0)
        usual = (self.between**2 + self.within**2 * squares / weight**2).sqrt()
        now = {"mean": mean / usual, "cusum": cusum, "frame": y}
        after = torch.stack([weight, squares, mean, cusum, torch.maximum(peak, now[self.rule])], 1)
        return torch.where(finite.any(1, keepdim=True), after, state)

    def p_value(self, state: Tensor) -> Tensor:
        """(n,) float64 bound on the chance that an in-distribution track is ever as odd as these already were.

        NaN where no value was defined yet.
        """
        peak = state[:, _PEAK].contiguous()
        at = torch.searchsorted(self.peaks, peak)
        tail = torch.cat([self.tail, self.tail.new_zeros(1)])[at]
        return torch.where(peak == -torch.inf, torch.nan, (1 + tail) / (self.units + 1))

    def alarm(self, p_value: Tensor) -> Tensor:
        """(n,) float32: 1 where p <= alpha, 0 where not, NaN where p is."""
        flagged = (p_value <= self.alpha * (1 + 1e-9)).float()  # sums of weights are rounded
        return torch.where(p_value.isnan(), torch.nan, flagged)

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {name: value for name, value in vars(self).items() if name not in tensors}
        return tensors, {**meta, "columns": list(self.columns)}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Boundary:
        """Rebuild from `state()`."""
        return cls(**{**tensors, **meta, "columns": tuple(meta["columns"])})

    def _lives(self, values: Tensor, track: Tensor, n: int) -> Tensor:
        """(n,) highest evidence of each track in its life."""
        count = torch.bincount(track, minlength=n)
        rows, first = track.argsort(stable=True), count.cumsum(0) - count
        state = self.start(n)
        for age in range(int(count.max())):
            on = (count > age).nonzero().squeeze(1)
            state[on] = self.step(state[on], values[rows[first[on] + age]])
        return state[:, _PEAK]


def needed(alpha: float) -> int:
    """The least number of calibration units with which a track can be flagged at `alpha`: 1 / alpha - 1, rounded up."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def _shape(values: Tensor, track: Tensor, n: int) -> dict[str, Any]:
    """Centre and spread of the columns, and the two variance components of a track's values."""
    values = values.double()
    finite = torch.where(values.isfinite(), values, torch.nan)
    if not bool(values.isfinite().any(0).all()):
        raise ValueError("a watched column has no finite value in the calibration tracks: leave it out")
    low, center, high = finite.nanquantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    spread = (high - low) / 1.349  # the deviation, were it normal
    spread = torch.where(spread > 0, spread, 1.0)
    y = ((finite - center) / spread).nanmean(1)
    track, y = track[y.isfinite()], y[y.isfinite()]
    ids, of = torch.unique(track, return_inverse=True)
    count = torch.bincount(of).double()
    mean = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, of, y) / count
    within2 = float((y - mean[of]).square().sum() / max(len(y) - len(ids), 1))
    between2 = float((mean - mean.mean()).square().sum() / max(len(ids) - 1, 1) - (within2 / count).mean())
    # Of constant scores neither is positive; any positive number then ranks the tracks alike
    return {"center": center, "spread": spread, "within": max(within2, 1e-12) ** 0.5,
            "between": max(between2, 1e-12) ** 0.5}  # fmt: skip
