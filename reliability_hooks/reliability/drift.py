"""Has the world changed since calibration? A sequential, label-free test that says which signal moved, and since when.

**Unit and assumption.** The instances of one image depend on each other, so each image is summarised by one number per
signal. While nothing changes, the images of calibration and stream together are assumed *exchangeable*: any order is
as likely. Neighbouring frames of a video are not; feed frames that are far enough apart. A signal or a reliability that
was itself fitted on the calibration images treats them as no later image: calibrate on others, or leave it out.

The evidence of each signal by itself is `exchangeability.Evidence`; its promise is one of `alpha` and `run_length`
there.

**Over S signals** the alarm is at S / alpha or 2 S L for any one of them (union bound; mean run length: the sum of
1 - t / (2 L)). That holds under any dependence, and also for each name: P(any signal that did not move is ever named)
<= alpha. Averaging the S martingales would promise too much: each is one only given its own past, and p-values of one
signal need not be uniform given another's (Choe & Ramdas 2024, "Combining evidence across filtrations").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..instances import Instances
from .exchangeability import Array, Evidence
from .state import State

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


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))
