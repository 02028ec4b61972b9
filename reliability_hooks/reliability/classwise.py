"""Calibration per class that borrows strength: class -> group of classes -> all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .calibrators import METHODS, Calibrator
from .scaling import recalibration
from .scores import as_scores, labelled_rows, logit
from .state import State, StateError, pack, unpack


@dataclass(frozen=True, eq=False)
class Classwise:
    """One calibrator for all classes, then a slope and an intercept on its logit for each group and class.

    Each level is a penalised fit around the level above (`recalibration`: the MAP estimate under a normal
    prior centred on "as above"), so that a class with few detections follows its group, a group with few
    follows the whole, and nobody is dropped. A class not seen in the fit follows its group, where `parents`
    names one, else the whole.

    Attributes:
        base: the calibrator of all rows.
        classes: (C,) int64, sorted: the classes seen in the fit and those in `parents`.
        slope, intercept: (C,) the two levels taken together.
        rows: (C,) int64, labelled detections of each class in the fit.
    """

    base: Calibrator
    classes: Tensor
    slope: Tensor
    intercept: Tensor
    rows: Tensor

    @classmethod
    def fit(
        cls,
        scores: Tensor,
        target: Tensor,
        labels: Tensor,
        *,
        method: str = "platt",
        parents: Mapping[int, int] | None = None,
        strength: float = 10.0,
    ) -> Classwise:
        """Fit the three levels.

        Args:
            scores: (N,) in [0, 1]; rows with NaN are left out.
            target: (N,) bool, or float in [0, 1] such as an IoU; NaN where it is not defined for the row.
            labels: (N,) int64 predicted classes.
            method: name out of `METHODS` for the calibrator of all rows.
            parents: class -> group, such as COCO's supercategories; None: classes shrink to the whole.
            strength: detections that the level above is worth.

        Raises:
            ValueError: no labelled row, a wrong shape or range, or an unknown method.
        """
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: choose from {list(METHODS)}")
        if labels.shape != scores.shape or target.shape != scores.shape:
            raise ValueError(
                f"scores {tuple(scores.shape)}, target {tuple(target.shape)} and labels {tuple(labels.shape)}"
                " must be (N,) alike"
            )
        known = ~(scores.isnan() | target.isnan()).detach().cpu()
        s, t, _ = labelled_rows(scores.detach().cpu()[known], target.detach().cpu()[known], None)
        label = labels.detach().cpu().to(torch.int64)[known]
        base = METHODS[method].fit(s, t)
        z = logit(base.predict(s))

        family = dict(parents or {})
        classes = torch.unique(torch.cat([label, torch.tensor(list(family), dtype=torch.int64)]))
        group_maps: dict[int, tuple[float, float]] = {}
        for group in sorted(set(family.values())):
            mine = torch.isin(label, torch.tensor([c for c, g in family.items() if g == group]))
            group_maps[group] = recalibration(z[mine], t[mine], strength)
        maps, rows = [], []
        for c in classes.tolist():
            mine = label == c
            above = group_maps[family[c]] if c in family else (1.0, 0.0)
            own = recalibration(above[0] * z[mine] + above[1], t[mine], strength)
            maps.append((own[0] * above[0], own[0] * above[1] + own[1]))
            rows.append(int(mine.sum()))
        slope, intercept = torch.tensor(maps, dtype=torch.float64).unbind(1)
        return cls(base, classes, slope.clone(), intercept.clone(), torch.tensor(rows))

    def predict(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Scores (N,) and labels (N,) int64 to float64 (N,) in [0, 1], on the CPU; NaN for a NaN score."""
        s = as_scores(scores)
        if labels.shape != s.shape:
            raise ValueError(f"labels must have shape {tuple(s.shape)} like the scores, got {tuple(labels.shape)}")
        label = labels.detach().cpu().to(torch.int64)
        at = torch.searchsorted(self.classes, label).clamp(max=len(self.classes) - 1)
        seen = self.classes[at] == label
        whole = self.base.predict(s)
        own = torch.sigmoid(self.slope[at] * logit(whole) + self.intercept[at])
        return torch.where(seen, own, whole)

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors, parts = pack({"base": self.base.state()})
        own = {"classes": self.classes, "slope": self.slope, "intercept": self.intercept, "rows": self.rows}
        return {**tensors, **own}, {"kind": "classwise", "parts": parts}

    @classmethod
    def from_state(cls, state: State) -> Classwise:
        """Rebuild from `state()`. Raises StateError for a kind of calibrator that this version does not know."""
        tensors, meta = state
        base = unpack((tensors, meta["parts"]), "base")
        if base[1]["kind"] not in METHODS:
            raise StateError(f"unknown calibrator {base[1]['kind']!r}: upgrade reliability_hooks, or fit again")
        own = {name: tensors[name] for name in ("classes", "slope", "intercept", "rows")}
        return cls(METHODS[base[1]["kind"]].from_state(base), **own)


@dataclass(frozen=True, eq=False)
class TargetCalibrators:
    """A `Classwise` for each question of `targets.targets`: is the class right, what IoU, a TP at which tau."""

    by_name: dict[str, Classwise]

    @classmethod
    def fit(
        cls, scores: Mapping[str, Tensor] | Tensor, targets: Mapping[str, Tensor], labels: Tensor, **options: Any
    ) -> TargetCalibrators:
        """Fit every target on its own.

        Args:
            scores: (N,) in [0, 1] for all targets, or by name, such as a detector's separate mask score.
            targets: name -> (N,), NaN where not defined.
            labels: (N,) int64 predicted classes.
            **options: of `Classwise.fit`.
        """
        given = {name: scores if isinstance(scores, Tensor) else scores[name] for name in targets}
        return cls({name: Classwise.fit(given[name], t, labels, **options) for name, t in targets.items()})

    def predict(self, scores: Mapping[str, Tensor] | Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each target's float64 (N,) in [0, 1]; P(TP) never rises with tau (a running minimum sees to it)."""
        found = {
            name: each.predict(scores if isinstance(scores, Tensor) else scores[name], labels)
            for name, each in self.by_name.items()
        }
        least: dict[str, Tensor] = {}
        for name in sorted(n for n in found if "tp_" in n):  # "tp_50" < "tp_75", "mask_tp_50" < "mask_tp_75"
            kind = name.rpartition("_")[0]
            found[name] = least[kind] = torch.minimum(found[name], least.get(kind, found[name]))
        return found

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors, parts = pack({name: each.state() for name, each in self.by_name.items()})
        return tensors, {"kind": "targets", "parts": parts}

    @classmethod
    def from_state(cls, state: State) -> TargetCalibrators:
        """Rebuild from `state()`."""
        tensors, meta = state
        held = (tensors, meta["parts"])
        return cls({name: Classwise.from_state(unpack(held, name)) for name in meta["parts"]})
