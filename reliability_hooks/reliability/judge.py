"""All that is fitted on labelled detections, together: reliability, interval, verdict, further questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ..evaluation.labels import MASK_IOU, OBJECT_IOU, Pairs, labelled, truth_of
from ..instances import Instances
from .caution import Caution, chance_known
from .classwise import TargetCalibrators
from .groups import Groups, size_codes
from .guarantee import Guarantee
from .interval import Interval
from .model import ReliabilityModel
from .state import State, pack, unpack
from .targets import targets

FACTORS: dict[str, Callable[[Instances], Tensor]] = {
    "class": lambda instances: instances.labels,
    "size": lambda instances: size_codes((instances.boxes[:, 2:] - instances.boxes[:, :2]).clamp(min=0).prod(1)),
}
"""What detections can be grouped by, each with integer levels."""
NOVELTY = ("ood/box_gen/score", "ood/logits/gen")
"""Out-of-distribution scores, the one to be preferred first: README, results."""


@dataclass(frozen=True)
class Terms:
    """What is asked for.

    Attributes:
        iou_threshold: A detection is right when it overlaps an object of its class by at least this IoU.
        target: Precision that is promised of accepted detections.
        delta: Probability with which the promise may fail.
        groups: Names out of `FACTORS` whose every combination gets a promise of its own; one for all without.
        taus: Stricter IoU thresholds at which P(right) is given too.
        novelty: Column of the out-of-distribution score that `is_ood`, `ood_p_value` and the caution about unknown
            objects are made from; `auto` is the first of `NOVELTY` that is there, None is none of all this.
        false_alarm: Greatest share of known objects, in each class and size, that `is_ood` may take for unknown.
        caution: Share of the Brier score on known objects that may be paid for caution about unknown ones.
        seed: Of everything that draws.
    """

    iou_threshold: float = 0.5
    target: float = 0.9
    delta: float = 0.1
    groups: tuple[str, ...] = ()
    taus: tuple[float, ...] = (0.75,)
    novelty: str | None = "auto"
    false_alarm: float = 0.05
    caution: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.iou_threshold < 1:
            raise ValueError(f"iou_threshold must lie in [0, 1), not {self.iou_threshold}")
        if wrong := [t for t in self.taus if not self.iou_threshold < t < 1]:
            raise ValueError(f"taus must lie between iou_threshold ({self.iou_threshold}) and 1, not {wrong}")
        if not 0 < self.false_alarm < 1:
            raise ValueError(f"false_alarm is a rate in (0, 1), not {self.false_alarm}")
        if not self.caution >= 0:
            raise ValueError(f"caution is a share of the Brier score, >= 0, not {self.caution}")
        if unknown := set(self.groups) - FACTORS.keys():
            raise ValueError(f"unknown groups {sorted(unknown)}; there are: {', '.join(FACTORS)}")

    def factors(self, instances: Instances) -> dict[str, Tensor]:
        """The levels of each factor."""
        return {name: FACTORS[name](instances) for name in self.groups}


@dataclass(frozen=True, eq=False)
class Judge:
    """Columns of evidence -> columns of judgement.

    Attributes:
        terms: What was asked for.
        model: Reliability and expected IoU.
        interval: Reliability -> its 90 % interval; None with too little data, as the next.
        guarantee: Reliability -> verdict.
        groups: Levels of the factors.
        further: Reliability and class -> P(class right), P(right at each tau), expected mask IoU.
        caution: Out-of-distribution score, class and size -> p-value, `is_ood` and a lower reliability; None without
            such a score.
        novelty: Column of that score.
        cross_fitted: (N,) reliability of the fit's own rows, each made without the row's photograph. Not saved.
    """

    terms: Terms
    model: ReliabilityModel
    interval: Interval | None
    guarantee: Guarantee | None
    groups: Groups
    further: TargetCalibrators | None
    caution: Caution | None = None
    novelty: str = ""
    cross_fitted: Tensor | None = None

    @classmethod
    def fit(
        cls, terms: Terms, columns: Sequence[str], pairs: Pairs, groups: Sequence[Any],
        parents: Mapping[int, int] | None = None,
    ) -> Judge:
        """Fit everything.

        Args:
            terms: What is asked for.
            columns: Names of the columns that are evidence, where they are there.
            pairs: Instances with columns, and ground truth, of each image.
            groups: For each image what it is a version of.
            parents: class -> group of classes, to which a class with few detections is drawn.

        Raises:
            ValueError: No labelled image, or no detection.
        """
        rows, correct, iou, image = labelled(pairs, terms.iou_threshold)
        codes = {g: i for i, g in enumerate(dict.fromkeys(groups))}
        group = torch.tensor([codes[g] for g in groups], dtype=torch.int64)[image]
        evidence = {n: rows.columns[n] for n in columns if n in rows.columns}
        model = ReliabilityModel.fit(evidence, rows.scores, rows.labels, correct, iou, group, seed=terms.seed)
        honest = model.cross_fitted
        if honest is None or not bool(honest.isfinite().any()):
            return cls(terms, model, None, None, Groups({}), None)
        novelty, caution = _novelty(terms.novelty, columns, rows), None
        if novelty and bool((correct & rows.columns[novelty].isfinite()).any()):
            caution = Caution.fit(rows.columns[novelty], _cells(rows), honest, correct, group,
                                  allowance=terms.caution, alpha=terms.false_alarm, seed=terms.seed)
            honest = caution.cross_fitted
            assert honest is not None
        factors = terms.factors(rows)
        known = Groups.fit(factors)
        guarantee = Guarantee.fit(
            honest, correct, group, known.codes(factors) if factors else None, frame=image, seed=terms.seed,
            names=known.name, target=terms.target, delta=terms.delta,
        )
        asked = _further(terms, rows, image, pairs)
        further = TargetCalibrators.fit(honest, asked, rows.labels, parents=parents) if asked else None
        interval = Interval.fit(honest, correct, group, seed=terms.seed)
        return cls(terms, model, interval, guarantee, known, further, caution, novelty, honest)

    def __call__(self, instances: Instances) -> dict[str, Tensor]:
        """Every column of judgement: `unknown(n)` and those of `further`.

        Raises:
            ValueError: A column that the model was fitted with is absent.
        """
        answer = self.model.predict(instances.columns, instances.scores, instances.labels)
        if self.caution is not None and self.novelty in instances.columns:
            answer |= self.caution(answer["reliability"], instances.columns[self.novelty], _cells(instances))
        elif self.caution is not None:  # the host gave no such evidence for this image
            nan = torch.full_like(answer["reliability"], torch.nan)
            answer |= self.caution(answer["reliability"], nan, _cells(instances))
        reliability = answer["reliability"]
        if self.interval is not None:
            answer["reliability_interval"] = torch.stack(self.interval.predict(reliability), 1)
        if self.guarantee is not None:
            factors = self.terms.factors(instances)
            answer["verdict"] = self.guarantee.apply(reliability, self.groups.codes(factors) if factors else None)
        if self.further is not None:
            found = self.further.predict(reliability, instances.labels)
            for name, value in found.items():
                value = value.to(reliability.device, torch.float32)
                answer[SAID_AS.get(name, f"p_{name}")] = torch.minimum(value, reliability) if "tp_" in name else value
        return {**unknown(len(instances), instances.device), **answer}

    def contributions(self, instances: Instances) -> dict[str, Tensor]:
        """Column -> (N,) how much it raises or lowers the reliability, as `ReliabilityModel.contributions`.

        The caution about unknown objects scales what the model's evidence does; what it does itself, against a p-value
        of one half, is its column's.
        """
        found = self.model.contributions(instances.columns, instances.scores, instances.labels)
        if self.caution is None or "ood_p_value" not in instances.columns:
            return found
        factor = chance_known(instances.columns["ood_p_value"], self.caution.prior).to(instances.reliability)
        found = {name: change * factor for name, change in found.items()}
        usual = chance_known(torch.tensor([0.5]), self.caution.prior).to(factor)
        lost = instances.reliability * (1 - usual / factor)
        return {**found, self.novelty: found.get(self.novelty, 0.0) + lost}

    def shares(self, instances: Instances) -> dict[str, Tensor]:
        """Signal -> (N,) its exact Shapley value in the reliability, as `ReliabilityModel.shares`.

        What the caution about unknown objects takes off stands under `caution`; with it they sum to the reliability
        minus that of a typical detection.
        """
        found = self.model.shares(instances.columns, instances.scores, instances.labels)
        if self.caution is None or "ood_p_value" not in instances.columns:
            return found
        given = self.model.predict(instances.columns, instances.scores, instances.labels)["reliability"]
        return {**found, "caution": instances.reliability - given.to(instances.reliability)}

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        parts = {
            "model": self.model, "interval": self.interval, "guarantee": self.guarantee, "groups": self.groups,
            "further": self.further, "caution": self.caution,
        }
        tensors, meta = pack({name: part.state() for name, part in parts.items() if part is not None})
        return tensors, {**meta, "novelty": self.novelty}

    @classmethod
    def from_state(cls, terms: Terms, state: State) -> Judge:
        """Rebuild from `state()`; KeyError where a part is missing."""

        def part(kind: Any, name: str) -> Any:
            return kind.from_state(unpack(state, name)) if name in state[1] else None

        model, groups = ReliabilityModel.from_state(unpack(state, "model")), Groups.from_state(unpack(state, "groups"))
        interval, guarantee = part(Interval, "interval"), part(Guarantee, "guarantee")
        further, caution = part(TargetCalibrators, "further"), part(Caution, "caution")
        return cls(terms, model, interval, guarantee, groups, further, caution, state[1]["novelty"])


SAID_AS = {"mask_iou": "expected_mask_iou"}
"""Column of a question that is no probability; the others are called `p_...`."""


def unknown(n: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The columns of judgement when there is none: reliability NaN, verdict unknown."""
    nan = torch.full((n,), torch.nan, device=device)
    return {
        "reliability": nan,
        "reliability_interval": torch.full((n, 2), torch.nan, device=device),
        "expected_iou": nan,
        "verdict": torch.zeros(n, dtype=torch.int64, device=device),
    }


def _cells(instances: Instances) -> dict[str, Tensor]:
    return {name: FACTORS[name](instances) for name in ("class", "size")}


def _novelty(asked: str | None, columns: Sequence[str], rows: Instances) -> str:
    """The column asked for; empty for none, and where the detector gave none."""
    if asked is None:
        return ""
    if asked == "auto":
        return next((name for name in NOVELTY if name in columns and name in rows.columns), "")
    if asked not in columns:
        near = get_close_matches(asked, columns, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(columns)}"
        raise ValueError(f"no column {asked!r} to tell unknown objects by; {hint}")
    return asked if asked in rows.columns else ""


def _further(terms: Terms, rows: Instances, image: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    if OBJECT_IOU in rows.columns:
        return {f"tp_{round(100 * tau):02d}": (rows.columns[OBJECT_IOU] >= tau).double() for tau in terms.taus}
    taus = (terms.iou_threshold or 0.01, *terms.taus)
    found = targets(rows.boxes, rows.scores, rows.labels, image, *truth_of(pairs), taus=taus)
    asked = ["class_right", *(f"tp_{round(100 * tau):02d}" for tau in terms.taus)]
    out = {name: found[name] for name in asked}
    if MASK_IOU in rows.columns:
        out["mask_iou"] = rows.columns[MASK_IOU].double()
    return {name: value for name, value in out.items() if bool(value.isfinite().any())}
