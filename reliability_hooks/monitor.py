"""The one composition point: settings -> signals + reliability; fit, apply, save, load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .evaluation.datasets import GroundTruth
from .evaluation.labels import labelled
from .frame import Frame
from .instances import Instances
from .reliability.groups import Groups, size_codes
from .reliability.guarantee import Guarantee
from .reliability.interval import Interval
from .reliability.model import ReliabilityModel
from .reliability.state import StateError, load_state, pack, save_state, unpack
from .signals.base import Signal, create

log = logging.getLogger(__name__)

FACTORS: dict[str, Callable[[Instances], Tensor]] = {
    "class": lambda instances: instances.labels,
    "size": lambda instances: size_codes((instances.boxes[:, 2:] - instances.boxes[:, :2]).clamp(min=0).prod(1)),
}
"""What detections can be grouped by, each with integer levels."""


@dataclass(frozen=True)
class Reason:
    """One piece of evidence for or against a detection.

    Attributes:
        column: The column that it comes from.
        phrase: What it says, in words.
        change: What it does to the reliability, against a typical value of the same column.
    """

    column: str
    phrase: str
    change: float


def unknown(instances: Instances) -> Instances:
    """The answer when there is none: reliability NaN, verdict unknown."""
    return instances.with_columns(_no_answer(instances))


def _no_answer(instances: Instances) -> dict[str, Tensor]:
    n, device = len(instances), instances.device
    nan = torch.full((n,), torch.nan, device=device)
    return {
        "reliability": nan,
        "reliability_interval": torch.full((n, 2), torch.nan, device=device),
        "expected_iou": nan,
        "verdict": torch.zeros(n, dtype=torch.int64, device=device),
    }


class Monitor:
    """Signals and the reliability that is made of them.

    Args:
        signals: Registered names, presets of them (`cheap`, `full`), or signals of one's own.
        iou_threshold: A detection is right when it overlaps an object of its class by at least this IoU.
        target: Precision that is promised of accepted detections (`reliability.guarantee.Guarantee`).
        delta: Probability with which the promise may fail.
        groups: Factors (`class`, `size`) whose every combination gets a promise of its own; one for all without.
        seed: Of cross-validation and of everything else that draws.

    Attributes:
        model: Columns -> reliability; None until fitted.
        interval: Reliability -> its 90 % interval; None until fitted, or with too little data.
        guarantee: Reliability -> verdict; None until fitted, or with too little data.
        fingerprint: The detector that it was fitted on.
    """

    def __init__(
        self,
        signals: Sequence[str | Signal] = ("cheap",),
        *,
        iou_threshold: float = 0.5,
        target: float = 0.9,
        delta: float = 0.1,
        groups: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.signals = [s for given in signals for s in (create([given]) if isinstance(given, str) else [given])]
        names = [s.name for s in self.signals]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"signals listed twice: {', '.join(sorted(doubled))}")
        if not 0 <= iou_threshold < 1:
            raise ValueError(f"iou_threshold must lie in [0, 1), not {iou_threshold}")
        if unknown_factors := set(groups) - FACTORS.keys():
            raise ValueError(f"unknown groups {sorted(unknown_factors)}; there are: {', '.join(FACTORS)}")
        self.settings: dict[str, Any] = {
            "iou_threshold": iou_threshold, "target": target, "delta": delta, "groups": list(groups), "seed": seed,
        }
        self.model: ReliabilityModel | None = None
        self.interval: Interval | None = None
        self.guarantee: Guarantee | None = None
        self._groups = Groups({})
        self.fingerprint: dict[str, Any] | None = None
        self._learning = False
        self._skipped: set[str] = set()

    def apply(self, frame: Frame) -> Instances:
        """The frame's instances with every signal's columns, `reliability`, `expected_iou` and `verdict`.

        Raises:
            ValueError: The model was fitted with a column that this frame cannot give.
        """
        if self._learning:
            for signal in self._usable(frame):
                if signal.learns:
                    signal.update(frame)
            return unknown(frame.instances)
        instances = frame.instances
        columns: dict[str, Tensor] = {}
        for signal in self._usable(frame):
            columns.update(signal(frame))
        if len(instances) == 0:  # evidence may be missing where there is nothing: the schema stays
            none = torch.zeros(0, device=instances.device)
            columns = {name: none for signal in self.signals for name in signal.columns}
        if self.model is None:
            return unknown(instances.with_columns(columns))
        answer = self.model.predict({**instances.columns, **columns}, instances.scores, instances.labels)
        reliability = answer["reliability"]
        if self.interval is not None:
            answer["reliability_interval"] = torch.stack(self.interval.predict(reliability), 1)
        if self.guarantee is not None:
            factors = self._factors(instances)
            answer["verdict"] = self.guarantee.apply(reliability, self._groups.codes(factors) if factors else None)
        return instances.with_columns({**columns, **_no_answer(instances), **answer})

    @contextmanager
    def learning(self) -> Iterator[None]:
        """While it is open, frames teach the signals that learn instead of being scored."""
        self._learning = True
        try:
            yield
        finally:
            self._learning = False
        for signal in self.signals:
            if signal.learns:
                signal.finish()

    @property
    def learns(self) -> bool:
        """Whether a signal has to see in-distribution frames first (`learning`)."""
        return any(signal.learns for signal in self.signals)

    def fit(
        self,
        pairs: Iterable[tuple[Instances, GroundTruth]],
        groups: Sequence[Any] | None = None,
        fingerprint: dict[str, Any] | None = None,
    ) -> ReliabilityModel:
        """Fit the reliability on labelled images.

        Args:
            pairs: For each image what `apply` gave and what is really there. Masks, logits and features are not used.
            groups: For each image what it is a version of, so that copies of one photograph are never on both sides
                of cross-validation; each image by itself without it.
            fingerprint: Of the detector (`handle.host.fingerprint()`); a loaded monitor refuses any other.

        Returns:
            The model; its `report` says what was chosen and why.
        """
        pairs = list(pairs)
        rows, correct, iou, image = labelled(pairs, self.settings["iou_threshold"])
        groups = list(range(len(pairs))) if groups is None else list(groups)
        codes = {g: i for i, g in enumerate(dict.fromkeys(groups))}
        group = torch.tensor([codes[g] for g in groups], dtype=torch.int64)[image]
        evidence = {n: rows.columns[n] for s in self.signals for n in s.columns if n in rows.columns}
        seed = self.settings["seed"]
        self.model = ReliabilityModel.fit(evidence, rows.scores, rows.labels, correct, iou, group, seed=seed)
        self.fingerprint = fingerprint
        honest = self.model.cross_fitted
        self.interval = self.guarantee = None
        if honest is not None and bool(honest.isfinite().any()):
            self.interval = Interval.fit(honest, correct, group, seed=seed)
            factors = self._factors(rows)
            self._groups = Groups.fit(factors)
            cells = self._groups.codes(factors) if factors else None
            self.guarantee = Guarantee.fit(
                honest, correct, group, cells, frame=image, seed=seed, names=self._groups.name,
                target=self.settings["target"], delta=self.settings["delta"],
            )
        return self.model

    def reasons(self, instances: Instances, top: int = 2) -> list[list[Reason]]:
        """For each instance the `top` columns that lower its reliability most (or raise it least), in words."""
        if self.model is None or len(instances) == 0:
            return [[] for _ in range(len(instances))]
        phrases = {name: phrase for signal in self.signals for name, phrase in signal.columns.items()}
        changes = self.model.contributions(instances.columns, instances.scores, instances.labels)
        typical = dict(zip(self.model.table.names, self.model.table.center[1:].tolist(), strict=True))
        names = [name for name in changes if name in phrases and name in typical]
        if not names:
            return [[] for _ in range(len(instances))]
        change = torch.stack([changes[n] for n in names], 1).nan_to_num()
        value = torch.stack([instances.columns[n].double() for n in names], 1)
        high = (value > value.new_tensor([typical[n] for n in names])).long().tolist()
        order = change.argsort(1)[:, :top].tolist()
        return [
            [Reason(names[j], phrases[names[j]][high[i][j]], float(change[i, j])) for j in chosen]
            for i, chosen in enumerate(order)
        ]

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
        if self.model is None:
            raise ValueError("this monitor is not fitted; call fit() before save()")
        parts = {"model": self.model.state(), **{s.name: s.state() for s in self.signals}}
        if self.interval is not None and self.guarantee is not None:
            parts |= {"interval": self.interval.state(), "guarantee": self.guarantee.state()}
            parts["groups"] = self._groups.state()
        tensors, meta = pack(parts)
        settings = {**self.settings, "signals": [s.name for s in self.signals]}
        save_state(directory, tensors, {"settings": settings, "fingerprint": self.fingerprint, "parts": meta})

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
            monitor.model = ReliabilityModel.from_state(unpack(parts, "model"))
            if "guarantee" in meta["parts"]:
                monitor.interval = Interval.from_state(unpack(parts, "interval"))
                monitor.guarantee = Guarantee.from_state(unpack(parts, "guarantee"))
                monitor._groups = Groups.from_state(unpack(parts, "groups"))
            for signal in monitor.signals:
                signal.load_state(*unpack(parts, signal.name))
        except KeyError as e:
            raise StateError(f"{directory} is no complete monitor: {e} is missing; calibrate again") from e
        return monitor

    def _factors(self, instances: Instances) -> dict[str, Tensor]:
        return {name: FACTORS[name](instances) for name in self.settings["groups"]}

    def _usable(self, frame: Frame) -> Iterator[Signal]:
        for signal in self.signals:
            missing = signal.missing(frame)
            if not missing:
                yield signal
            elif len(frame.instances) and signal.name not in self._skipped:
                self._skipped.add(signal.name)
                log.warning("signal %s is skipped: this detector gives no %s", signal.name, " and no ".join(missing))
