"""Has the world changed since calibration? A sequential, label-free test that says which signal moved, and since when.

**Unit and assumption.** The instances of one image depend on each other, so each image is summarised by one number per
signal. While nothing changes, the images of calibration and stream together are assumed *exchangeable*: any order is
as likely. Neighbouring frames of a video are not; feed frames that are far enough apart. A signal or a reliability that
was itself fitted on the calibration images treats them as no later image: calibrate on others, or leave it out.

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

**Over S signals** the alarm is at S / alpha or 2 S L for any one of them (union bound; mean run length: the sum of
1 - t / (2 L)). That holds under any dependence, and also for each name: P(any signal that did not move is ever named)
<= alpha. Averaging the S martingales would promise too much: each is one only given its own past, and p-values of one
signal need not be uniform given another's (Choe & Ramdas 2024, "Combining evidence across filtrations").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..instances import Instances
from .state import State

Array = NDArray[Any]

BINS = 128
"""Most bins of a signal's reference distribution."""
POWERS = (0.25, 0.5, 0.75)
"""Exponents of the bets: from few extreme values to a slight shift of all."""
OWN: dict[str, tuple[str, str]] = {
    "count": ("fewer detections", "more detections"),
    "score": ("less confident detections", "more confident detections"),
    "undefined": ("fewer values are undefined", "more values are undefined"),
}
"""Summaries besides the means of the columns: detections, their mean score, share of column values not finite."""


@dataclass(frozen=True)
class Moved:
    """A signal whose distribution is not that of calibration any more.

    Attributes:
        signal: The column, or a name of `OWN`.
        direction: Where its values went.
        phrase: That in words.
        since: Estimated index (from 0) of the stream's first changed image, fixed when the signal was named.
        at: Index of the image at which it was named.
    """

    signal: str
    direction: Literal["higher", "lower"]
    phrase: str
    since: int
    at: int


@dataclass(frozen=True)
class DriftState:
    """What is known after an image of the stream.

    Attributes:
        images: Images of the stream seen so far.
        evidence: Against "nothing has changed", now; an alarm is raised where it reaches `threshold` and then stays.
            With `alpha` it is an e-value (expected at most 1 while nothing changes).
        threshold: 1 / alpha, or the run length.
        p_value: Bound on the chance of as much evidence at any image so far while nothing changes.
        moved: The signals named so far, first named first, the stronger before the weaker.
    """

    images: int
    evidence: float
    threshold: float
    p_value: float
    moved: tuple[Moved, ...]

    @property
    def alarm(self) -> bool:
        return bool(self.moved)

    @property
    def since(self) -> int | None:
        """Estimated index of the stream's first changed image, by the signal named first; None without alarm."""
        return self.moved[0].since if self.moved else None

    @property
    def alarm_at(self) -> int | None:
        """Index of the image at which the alarm was raised; None without alarm."""
        return self.moved[0].at if self.moved else None

    def __str__(self) -> str:
        if not self.moved:
            return f"no drift in {self.images} images (p = {self.p_value:.2g})"
        signals = "; ".join(f"{m.signal} {m.direction} ({m.phrase})" for m in self.moved)
        return f"drift since about image {self.since}, noticed at {self.alarm_at} (p = {self.p_value:.2g}): {signals}"


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


class DriftTest:
    """The running test: `fit` on calibration images, then `update` with each image of the stream.

    Attributes:
        signals: The S summaries that are watched.
        dropped: Summaries that are not, with the reason.
        alpha: Chance of ever raising a false alarm; not used with a run length.
        run_length: Mean images to a false alarm in an endless stream, or None.
    """

    def __init__(
        self,
        evidence: Evidence,
        columns: Sequence[str],
        signals: Sequence[str],
        dropped: Mapping[str, str],
        phrases: Mapping[str, Sequence[str]],
        alpha: float,
        run_length: float | None,
    ) -> None:
        self.evidence, self.alpha, self.run_length = evidence, alpha, run_length
        self.columns, self.signals, self.dropped = tuple(columns), tuple(signals), dict(dropped)
        self.phrases = {name: (str(low), str(high)) for name, (low, high) in phrases.items()}
        names = (*OWN, *self.columns)
        self._watched = np.array([names.index(name) for name in self.signals])

    @classmethod
    def fit(
        cls,
        images: Iterable[Instances],
        *,
        alpha: float = 0.01,
        run_length: float | None = None,
        columns: Sequence[str] | None = None,
        phrases: Mapping[str, tuple[str, str]] | None = None,
        seed: int = 0,
    ) -> DriftTest:
        """Learn what is usual from images of the deployment while all was well; no labels are needed.

        Args:
            images: The instances of each calibration image, with columns.
            alpha: Greatest chance of ever raising a false alarm, in (0, 1).
            run_length: Instead of `alpha`: least mean number of images to a false alarm, at least 1.
            columns: Columns to watch by their mean over an image; every floating-point (N,) column without it.
            phrases: For a column what a low and a high value mean (`Signal.columns`).
            seed: Of the random order of equal values and of the place within a bin.

        Raises:
            ValueError: Fewer than two images, a column that is absent or not (N,), a reserved name, or a promise
                that is none.
        """
        found = list(images)
        if len(found) < 2:
            raise ValueError(f"a drift test needs at least 2 calibration images (50 to be of use), got {len(found)}")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is a probability in (0, 1), not {alpha}")
        if run_length is not None and not 1 <= run_length < math.inf:
            raise ValueError(f"run_length is a finite number of images, at least 1, not {run_length}")
        if columns is None:
            one = next((i for i in found if len(i)), found[0])
            columns = [name for name, c in one.columns.items() if c.ndim == 1 and c.is_floating_point()]
        if reserved := sorted(set(OWN) & set(columns)):
            raise ValueError(f"the column names {reserved} are taken by the drift test itself: rename them")
        names = (*OWN, *columns)
        values = np.stack([summarise(i, columns) for i in found])
        # Whether a value is defined may choose the signals: given that, the defined values stay exchangeable.
        keep = np.isfinite(values).sum(0) >= 2
        signals = [name for name, k in zip(names, keep.tolist(), strict=True) if k]
        dropped = {name: "defined in fewer than 2 calibration images" for name in names if name not in signals}
        level = len(signals) / alpha if run_length is None else 2 * len(signals) * run_length
        evidence = Evidence(values[:, keep], math.log(level), endless=run_length is not None, seed=seed)
        spoken = {name: words for name, words in (phrases or {}).items() if name in signals}
        return cls(evidence, columns, signals, dropped, spoken, alpha, run_length)

    def update(self, instances: Instances) -> DriftState:
        """Take the next image of the stream.

        Raises:
            ValueError: A column that was there in `fit` is absent.
        """
        self.evidence.update(summarise(instances, self.columns)[self._watched])
        return self.current()

    def current(self) -> DriftState:
        """What is known now."""
        e, s = self.evidence, len(self.signals)
        log_factor = math.log(s if self.run_length is None else 2 * s)
        now, peak = float(e.log_evidence().max()), float(e.peak.max())
        chances = s if self.run_length is None else s * e.images
        order = sorted(np.flatnonzero(e.at >= 0).tolist(), key=lambda i: (int(e.at[i]), -float(e.peak[i])))
        return DriftState(
            images=e.images,
            evidence=_exp(now - log_factor),
            threshold=1 / self.alpha if self.run_length is None else self.run_length,
            p_value=min(1.0, _exp(math.log(chances) - peak)) if chances else 1.0,
            moved=tuple(self._moved(i) for i in order),
        )

    def reset(self) -> None:
        """Forget the stream, after an alarm has been dealt with. Each start makes the promise anew."""
        self.evidence.reset()

    def state(self) -> State:
        """Tensors and meta for `from_state`; in the middle of a stream as well."""
        tensors, running = self.evidence.state()
        own = {name: getattr(self, name) for name in ("dropped", "alpha", "run_length")}
        lists = {name: list(getattr(self, name)) for name in ("columns", "signals")}
        return tensors, {**own, **lists, "phrases": {k: list(v) for k, v in self.phrases.items()}, "evidence": running}

    @classmethod
    def from_state(cls, state: State) -> DriftTest:
        """Rebuild from `state()`; the stream goes on where it was."""
        tensors, meta = state
        rest = {name: value for name, value in meta.items() if name != "evidence"}
        return cls(Evidence.from_state((tensors, meta["evidence"])), **rest)

    def _moved(self, i: int) -> Moved:
        e, name = self.evidence, self.signals[i]
        high = bool(e.higher[i])
        direction: Literal["higher", "lower"] = "higher" if high else "lower"
        low_high = {**OWN, **self.phrases}.get(name, (f"lower {name}", f"higher {name}"))
        return Moved(name, direction, low_high[high], int(e.since[i]), int(e.at[i]))


def summarise(instances: Instances, columns: Sequence[str]) -> Array:
    """One image as float64 (3 + len(columns),): `OWN`, then the mean of each column's finite values.

    NaN where there is no finite value; without detections that is everything but `count`.

    Raises:
        ValueError: There are detections, and a column is absent or not (N,).
    """
    n = len(instances)
    if n == 0:
        return np.array([0.0, *[np.nan] * (len(OWN) - 1 + len(columns))])
    if absent := [name for name in columns if name not in instances.columns]:
        raise ValueError(f"the columns {absent} are absent: switch on the signals that make them, or fit again")
    picked = [instances.scores, *(instances.columns[name] for name in columns)]
    if wrong := [name for name, c in zip(("score", *columns), picked, strict=True) if c.ndim != 1]:
        raise ValueError(f"only columns of shape (N,) can be watched, not {wrong}")
    x = torch.stack([c.float() for c in picked]).detach().cpu().to(torch.float64)
    finite = x.isfinite()
    mean = (torch.where(finite, x, 0.0).sum(1) / finite.sum(1)).numpy()
    undefined = 1 - finite[1:].to(torch.float64).mean()
    return np.concatenate([[n, mean[0], float(undefined)], mean[1:]])


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


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))
