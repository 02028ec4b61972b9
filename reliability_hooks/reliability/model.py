"""Evidence to P(correct) and E[IoU]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .calibrators import CALIBRATORS, as_scores
from .heads import Head
from .selection import CANDIDATES, MEMBERS, FitRows, Task, affordable, make_folds
from .shapley import shapley
from .state import State, pack, unpack
from .table import SCORE, FeatureTable
from .trees import one_thread_if_small

_CELLS = 1 << 22  # features per pass of `contributions`


@dataclass(frozen=True, eq=False)
class ReliabilityModel:
    """Columns, score and label of each detection to its calibrated P(correct) and expected IoU.

    Attributes:
        table: the way from columns to features.
        correctness, overlap: the two fitted answers.
        report: JSON-able record of the fit: rows, images, rates, cross-validated losses of every candidate
            with standard errors over images, what was chosen, columns used and dropped, notes.
        cross_fitted, cross_fitted_iou: (N,) float32 predictions for the fit's own rows, each made without
            the row's image (NaN for a NaN score, or with fewer than two images). The settings (C, number of
            trees) and the candidate were chosen on the same folds. Not saved.
    """

    table: FeatureTable
    correctness: Head
    overlap: Head
    report: dict[str, Any]
    cross_fitted: Tensor | None = None
    cross_fitted_iou: Tensor | None = None

    @property
    def notes(self) -> list[str]:
        """What the caller should know about this fit, in sentences."""
        return list(self.report["notes"])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `predict` needs."""
        return self.table.required

    @classmethod
    def fit(
        cls,
        columns: Mapping[str, Tensor],
        scores: Tensor,
        labels: Tensor | None,
        correct: Tensor,
        iou: Tensor,
        groups: Tensor | Sequence[Any],
        seed: int = 0,
        candidates: Sequence[str] = CANDIDATES,
    ) -> ReliabilityModel:
        """Choose by cross-validation over images, then refit on all rows.

        The candidate of lowest loss (log loss; squared error for the IoU) is taken, but the confidence alone where the
        other evidence saves less than `MIN_GAIN` of it.
        Preferring a simpler one within a standard error, as is common, costs a third of the gain here: with few
        images that error is large, and the regularised blend is the safe choice already.

        Args:
            columns: each (N,), NaN or infinite where not available.
            scores: (N,) in [0, 1]; rows with NaN are left out.
            labels: (N,) int64 predicted classes for the class prior, or None.
            correct: (N,) bool.
            iou: (N,) in [0, 1], the IoU with the matched object, 0 without one.
            groups: (N,) image ids (numbers or strings); rows of one image never lie on both sides of a split.
            seed: of the folds and the trees.
            candidates: names out of `CANDIDATES`.

        Raises:
            ValueError: no labelled detection, a wrong shape or range, or an unknown candidate.
        """
        if unknown := set(candidates) - set(CANDIDATES):
            raise ValueError(f"unknown candidates {sorted(unknown)}: choose from {list(CANDIDATES)}")
        if not candidates:
            raise ValueError(f"no candidate given: choose from {list(CANDIDATES)}")
        s, every = as_scores(scores), FitRows.checked(columns, scores, labels, correct, iou, groups)
        keep = ~s.isnan()
        data = every.take(keep)
        notes = [] if bool(keep.all()) else [f"{int((~keep).sum())} rows without a score were left out"]
        names, note = affordable(data, candidates)
        notes += note
        with one_thread_if_small(len(data.scores) * max(1, len(columns))):
            return cls._fit(data, names, notes, keep, scores.device, seed)

    @classmethod
    def _fit(
        cls,
        data: FitRows,
        names: list[str],
        notes: list[str],
        keep: Tensor,
        device: torch.device,
        seed: int,
    ) -> ReliabilityModel:
        evidence = any(name not in CALIBRATORS for name in names)
        if not evidence:
            data = replace(data, columns={}, labels=None)
        table, x = data.table(seed)
        folds = make_folds(data, seed)
        if not folds:
            notes.append("all rows come from one image: nothing could be cross-validated; label more images")
        members = dict.fromkeys(member for name in names for member in MEMBERS.get(name, (name,)))
        overlaps = ["ridge" if member == "logistic" else member for member in members]
        tasks = {
            "reliability": Task(data, data.correct.to(torch.float64), True, seed),
            "expected_iou": Task(data, data.iou, False, seed),
        }
        choices = {
            "reliability": tasks["reliability"].choose(names, folds),
            "expected_iou": tasks["expected_iou"].choose(overlaps, folds),
        }
        heads = {name: task.refit(choices[name], x) for name, task in tasks.items()}
        dropped = dict(table.dropped)
        if not any(head.needs_columns for head in heads.values()):
            table = replace(data, columns={}, labels=None).table(seed)[0]
            if evidence:
                notes.append("no column improves on the confidence alone")
        report = {
            "rows": len(data.scores),
            "images": len(torch.unique(data.groups)),
            "base_rate": float(data.correct.to(torch.float64).mean()),
            "mean_iou": float(data.iou.mean()),
            "folds": len(folds),
            "seed": seed,
            "chosen": choices["reliability"].name,
            "chosen_iou": choices["expected_iou"].name,
            **{name: choice.report for name, choice in choices.items()},
            "columns": {"used": list(table.required), "dropped": dropped},
            "notes": notes,
        }
        honest = {}
        for name, choice in choices.items():
            whole = torch.full(keep.shape, torch.nan)
            whole[keep] = choice.cross_fitted.to(torch.float32)
            honest[name] = whole.to(device)
        fitted = (heads["reliability"], heads["expected_iou"])
        return cls(table, *fitted, report, honest["reliability"], honest["expected_iou"])

    def predict(
        self, columns: Mapping[str, Tensor], scores: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """P(correct) and E[IoU] of N detections.

        Returns:
            `reliability` and `expected_iou`, each (N,) float32 in [0, 1] on the device of the scores; NaN
            where the score is NaN.

        Raises:
            ValueError: a column that the model uses, or the labels, are absent.
        """
        s = as_scores(scores)
        x = self.table.transform(columns, scores, labels)
        values = {"reliability": self.correctness(x, s), "expected_iou": self.overlap(x, s)}
        return {name: _like(v.masked_fill(s.isnan(), torch.nan), scores) for name, v in values.items()}

    def contributions(
        self, columns: Mapping[str, Tensor], scores: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """How much each input raises or lowers the reliability of each detection.

        Returns:
            For every given column, `score`, and `class_prior` where the model has one: (N,) float32, the
            reliability minus what it would be with that one input at its calibration median (the class prior
            at that of an average class). 0 for a column that the model does not use; NaN where the score is
            NaN.
        """
        s = as_scores(scores)
        x = self.table.transform(columns, scores, labels)
        owners = self.table.owners
        inputs = list(dict.fromkeys(owners))
        mine = torch.tensor([[owner == name for owner in owners] for name in inputs])
        middle = torch.sigmoid(self.table.center[0])
        is_score = torch.tensor([[name == SCORE] for name in inputs])
        found = []
        for rows in torch.split(torch.arange(len(s)), max(1, _CELLS // mine.numel())):
            xs = torch.cat([x[rows][None], x[rows].masked_fill(mine[:, None], 0.0)])
            ss = torch.cat([s[rows][None], torch.where(is_score, middle, s[rows])])
            value = self.correctness(xs.flatten(0, 1), ss.flatten()).view(len(xs), -1)
            found.append(value[0] - value[1:])
        change = dict(zip(inputs, torch.cat(found, 1), strict=True))
        nothing, unknown = torch.zeros_like(s), s.isnan()
        names = dict.fromkeys([*columns, *inputs])
        return {n: _like(change.get(n, nothing).masked_fill(unknown, torch.nan), scores) for n in names}

    def shares(
        self, columns: Mapping[str, Tensor], scores: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Exact Shapley values of the signals: reliability minus that of a typical detection, shared out.

        Returns:
            For each signal with columns in the model, `score`, and `class_prior` where there is one: (N,) float32; they
            sum to the reliability minus that with every input at its calibration median. NaN where the score is NaN.
        """
        s = as_scores(scores)
        x = self.table.transform(columns, scores, labels)
        owners = [owner.rpartition("/")[0] or owner for owner in self.table.owners]
        names = list(dict.fromkeys(owners))
        member = torch.tensor([[owner == name for owner in owners] for name in names])
        middle = torch.sigmoid(self.table.center[0])
        own = names.index(SCORE)

        def value(sets: Tensor) -> Tensor:
            given = (sets[:, :, None] & member).any(1)  # (2^G, F)
            parts = []
            for rows in torch.split(torch.arange(len(s)), max(1, _CELLS // given.numel())):
                xs = torch.where(given[:, None], x[rows], 0.0)
                ss = torch.where(sets[:, own, None], s[rows], middle)
                parts.append(self.correctness(xs.flatten(0, 1), ss.flatten()).view(len(sets), -1))
            return torch.cat(parts, 1) if parts else x.new_zeros(len(sets), 0)

        found = shapley(value, len(names)).masked_fill(s.isnan(), torch.nan)
        return {name: _like(share, scores) for name, share in zip(names, found, strict=True)}

    def state(self) -> State:
        """Tensors and JSON-able meta, for `save_state` and `from_state`."""
        tensors, parts = pack(
            {
                "table": self.table.state(),
                "correctness": self.correctness.state(),
                "overlap": self.overlap.state(),
            }
        )
        return tensors, {"parts": parts, "report": self.report}

    @classmethod
    def from_state(cls, state: State) -> ReliabilityModel:
        """Rebuild from `state()`; predictions are bit-identical. Raises StateError if it is incomplete."""
        tensors, meta = state
        held = (tensors, meta["parts"])
        table = FeatureTable.from_state(unpack(held, "table"))
        return cls(
            table,
            Head.from_state(unpack(held, "correctness")),
            Head.from_state(unpack(held, "overlap")),
            meta["report"],
        )


def _like(values: Tensor, scores: Tensor) -> Tensor:
    return values.to(torch.float32).to(scores.device)
