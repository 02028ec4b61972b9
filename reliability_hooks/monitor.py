"""The one composition point: settings -> signals + reliability; fit, apply, save, load."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .clip.embed import Embed
from .evaluation.datasets import GroundTruth
from .evaluation.labels import Pairs, with_mask_iou, with_truth
from .frame import Frame
from .instances import Instances
from .reasons import Reason, lowering, shares
from .reliability.drift import DriftTest
from .reliability.judge import Judge, Terms, unknown
from .reliability.model import ReliabilityModel
from .reliability.state import StateError, load_state, pack, save_state, unpack
from .signals.base import Signal, create

if TYPE_CHECKING:
    from .clip.encoder import Encoder

log = logging.getLogger(__name__)


class Monitor:
    """Signals and the reliability that is made of them.

    Args:
        signals: Registered names, presets of them (`cheap`, `full`), or signals of one's own.
        clip: The open_clip model of those that read one (`clip.encoder.load`); loaded when it is first needed.
        **terms: Fields of `reliability.judge.Terms`: `iou_threshold`, `target`, `delta`, `groups`, `taus`, `seed`.

    Attributes:
        judge: Columns -> reliability, interval, verdict, ...; None until fitted.
        drift: Whether the world is still that of the calibration images: hand it each image's instances with
            `drift.update(instances)`. None until fitted.
        fingerprint: The detector that it was fitted on.
        seconds: Time spent in each signal so far (on a GPU that of starting its work); clear it as you like.
    """

    def __init__(
        self, signals: Sequence[str | Signal] = ("cheap",), *, clip: str = "condition-clip", **terms: Any
    ) -> None:
        self.signals = [s for given in signals for s in (create([given]) if isinstance(given, str) else [given])]
        names = [s.name for s in self.signals]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"signals listed twice: {', '.join(sorted(doubled))}")
        self.clip = clip
        asked: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in terms.items()}
        self.terms = Terms(**asked)
        self.judge: Judge | None = None
        self.drift: DriftTest | None = None
        self.fingerprint: dict[str, Any] | None = None
        self._lessons: Iterator[GroundTruth | None] | None = None
        self._taught: set[str] = set()
        self._skipped: set[str] = set()
        self.seconds: dict[str, float] = {}

    def apply(self, frame: Frame) -> Instances:
        """The frame's instances with every signal's columns, `reliability`, `expected_iou` and `verdict`.

        Raises:
            ValueError: The model was fitted with a column that this frame cannot give.
        """
        if self.encoder is not None and frame.view is not None:
            frame = replace(frame, embed=Embed(self.encoder, frame.view, frame.instances))
        if self._lessons is not None:
            truth = next(self._lessons, None)
            told = frame if truth is None else frame.with_instances(with_truth(frame.instances, truth))
            for signal in self._usable(told):
                if signal.learns:
                    signal.update(told)
                    self._taught.add(signal.name)
            return without_answer(frame.instances)
        instances = frame.instances
        columns: dict[str, Tensor] = {}
        for signal in self._usable(frame):
            start = time.perf_counter()
            columns.update(signal(frame))
            self.seconds[signal.name] = self.seconds.get(signal.name, 0.0) + time.perf_counter() - start
        if len(instances) == 0:  # evidence may be missing where there is nothing: the schema stays
            none = torch.zeros(0, device=instances.device)
            columns = {name: none for signal in self.signals for name in signal.columns}
        seen = instances.with_columns(columns)
        return without_answer(seen) if self.judge is None else seen.with_columns(self.judge(seen))

    @cached_property
    def encoder(self) -> Encoder | None:
        """The CLIP that the signals read; None where none of them does."""
        if not any("clip" in signal.requires for signal in self.signals):
            return None
        from .clip.encoder import load

        return load(self.clip)

    @contextmanager
    def learning(self, truths: Iterable[GroundTruth | None] = ()) -> Iterator[None]:
        """While it is open, frames teach the signals that learn instead of being scored.

        Args:
            truths: What is really there in each of the frames that will come, in their order, where it is known:
                signals that can then learn from the detections that are right (the column `truth`).
        """
        self._lessons, self._taught = iter(truths), set()
        try:
            yield
        finally:
            self._lessons = None
        for signal in self.signals:
            if signal.name in self._taught:  # what a host gives no evidence for is skipped, here as later
                signal.finish()

    @property
    def learns(self) -> bool:
        """Whether a signal has to see in-distribution frames first (`learning`)."""
        return any(signal.learns for signal in self.signals)

    def fit(
        self,
        pairs: Pairs,
        groups: Sequence[Any] | None = None,
        fingerprint: dict[str, Any] | None = None,
        *,
        usual: Sequence[bool] | None = None,
        parents: Mapping[int, int] | None = None,
    ) -> ReliabilityModel:
        """Fit the reliability on labelled images.

        Args:
            pairs: For each image what `apply` gave and what is really there. Logits and features are not used; masks
                (or the column of `evaluation.labels.with_mask_iou`) give the expected mask IoU.
            groups: For each image what it is a version of, so that copies of one photograph are never on both sides
                of cross-validation; each image by itself without it.
            fingerprint: Of the detector (`handle.host.fingerprint()`); a loaded monitor refuses any other.
            usual: For each image whether it shows the world as it is (and not a synthetic condition): what `drift`
                compares with. The first of each group without it.
            parents: class -> group of classes (`DetectionDataset.parents`), to which one with few detections is drawn.

        Returns:
            The model; its `report` says what was chosen and why.
        """
        if any(i.masks is not None for i, _ in pairs):
            pairs = [(with_mask_iou(i, t), t) for i, t in pairs]
        groups = list(range(len(pairs))) if groups is None else list(groups)
        columns = [name for signal in self.signals for name in signal.columns]
        self.judge = Judge.fit(self.terms, columns, pairs, groups, parents)
        self.fingerprint = fingerprint
        first = {g: i for i, g in reversed(list(enumerate(groups)))}
        chosen = first.values() if usual is None else [i for i, u in enumerate(usual) if u]
        self.drift = self._drift([pairs[i][0] for i in sorted(chosen)])
        return self.judge.model

    def _drift(self, images: Sequence[Instances]) -> DriftTest | None:
        if len(images) < 2:
            return None
        # What a signal has learnt may come from these very images, to which no later one is then alike
        phrases = {n: words for s in self.signals if not s.learns for n, words in s.columns.items()}
        watched = [name for name in phrases if all(name in i.columns for i in images)]
        return DriftTest.fit(images, columns=watched, phrases=phrases, seed=self.terms.seed)

    def reasons(self, instances: Instances, top: int = 2) -> list[list[Reason]]:
        """For each instance the `top` columns that lower its reliability most (or raise it least), in words."""
        return lowering(self.judge, self._phrases(), instances, top)

    def shares(self, instances: Instances) -> list[list[Reason]]:
        """For each instance what every signal adds to its reliability (`reasons.shares`), the greatest first."""
        return shares(self.judge, self._phrases(), instances)

    def _phrases(self) -> dict[str, tuple[str, str]]:
        return {name: phrase for signal in self.signals for name, phrase in signal.columns.items()}

    def check(self, fingerprint: Callable[[], dict[str, Any]]) -> None:
        """Refuse another detector than the one fitted on.

        Raises:
            StateError: It differs; the message names in what.
        """
        if self.fingerprint is None:
            return
        given = fingerprint()
        differ = [k for k in sorted(self.fingerprint | given) if self.fingerprint.get(k) != given.get(k)]
        if differ:
            raise StateError(
                f"this monitor was fitted on another detector (different: {', '.join(differ)}); "
                "run `reliability-hooks calibrate` for this one, or attach the detector that it was fitted on"
            )

    def save(self, directory: str | Path) -> None:
        """Write `state.safetensors` and `monitor.json`; what was there before stays whole until both are written.

        Raises:
            ValueError: Nothing was fitted.
        """
        if self.judge is None:
            raise ValueError("this monitor is not fitted; call fit() before save()")
        parts = {"judge": self.judge.state(), **{s.name: s.state() for s in self.signals}}
        if self.drift is not None:
            parts["drift"] = self.drift.state()
        tensors, meta = pack(parts)
        settings = {**asdict(self.terms), "clip": self.clip, "signals": [s.name for s in self.signals]}
        encoder = self.encoder.fingerprint if self.encoder else None
        save_state(directory, tensors, {
            "settings": settings, "fingerprint": self.fingerprint, "encoder": encoder, "parts": meta
        })  # fmt: skip

    @classmethod
    def load(cls, directory: str | Path, signals: Sequence[str | Signal] | None = None) -> Monitor:
        """A fitted monitor.

        Args:
            directory: Where `save` put it.
            signals: Needed only where a signal of one's own is among them.

        Raises:
            StateError: Missing, damaged, or written by a later version; the message says what to do.
        """
        tensors, meta = load_state(directory)
        try:
            settings, parts = dict(meta["settings"]), (tensors, meta["parts"])
            fitted = settings.pop("signals")
            monitor = cls(fitted if signals is None else signals, **settings)
            names = [s.name for s in monitor.signals]
            if names != fitted:
                raise StateError(f"{directory} was fitted with the signals {fitted}, not {names}")
            monitor.fingerprint = meta["fingerprint"]
            if monitor.encoder is not None and monitor.encoder.fingerprint != meta["encoder"]:
                raise StateError(
                    f"{directory} was fitted with another {monitor.clip}: its weights have changed; calibrate again"
                )
            monitor.judge = Judge.from_state(monitor.terms, unpack(parts, "judge"))
            if "drift" in meta["parts"]:
                monitor.drift = DriftTest.from_state(unpack(parts, "drift"))
            for signal in monitor.signals:
                signal.load_state(*unpack(parts, signal.name))
        except KeyError as e:
            raise StateError(f"{directory} is no complete monitor: {e} is missing; calibrate again") from e
        return monitor

    def _usable(self, frame: Frame) -> Iterator[Signal]:
        for signal in self.signals:
            missing = signal.missing(frame)
            if not missing:
                yield signal
            elif len(frame.instances) and signal.name not in self._skipped:
                self._skipped.add(signal.name)
                log.warning("signal %s is skipped: this detector gives no %s", signal.name, " and no ".join(missing))


def without_answer(instances: Instances) -> Instances:
    """The instances with reliability NaN and verdict unknown."""
    return instances.with_columns(unknown(len(instances), instances.device))
