"""Evidence to P(correct) and E[IoU]: candidates cross-validated over images, the simplest good one kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .calibrators import CALIBRATORS, EPS, Isotonic, Platt, as_scores, logit, recalibration
from .linear import Linear
from .state import State, StateError, pack, unpack
from .table import SCORE, FeatureTable
from .trees import Trees, one_thread_if_small

CANDIDATES = ("platt", "isotonic", "logistic", "boosting", "blend")
"""In order of complexity; `blend` is the mean of the logits of `logistic` and `boosting`."""
MIN_ROWS, MIN_IMAGES, MIN_PER_CLASS = 100, 10, 10
"""Below any of these only the confidence is used: more evidence would be fitted to noise."""
FOLDS = 5

Part = Platt | Isotonic | Linear | Trees
_PARTS: dict[str, Any] = {"platt": Platt, "isotonic": Isotonic, "linear": Linear, "trees": Trees}
# What cross-validation chooses among: C, alpha, number of trees; a member that is not here has no choice.
_GRIDS: dict[str, tuple[Any, ...]] = {
    "logistic": (0.0001, 0.001, 0.01, 0.1, 1.0),
    "ridge": (10.0, 100.0, 1000.0, 10000.0),
    "boosting": (25, 50, 100, 150),
}
_MEMBERS = {"blend": ("logistic", "boosting")}  # every other candidate is its own only member
_CELLS = 1 << 22  # features per pass of `contributions`


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted answer: the mean of its parts, then slope and intercept, then a probability or an IoU.

    Attributes:
        parts: fitted models by name.
        is_probability: P(correct), combined on the logit scale; else E[IoU], combined as it is.
        slope, intercept: recalibration of the logits; 1 and 0 where there was no need.
    """

    parts: dict[str, Part]
    is_probability: bool
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def needs_columns(self) -> bool:
        """Whether anything but the score is used."""
        return any(isinstance(part, Linear | Trees) for part in self.parts.values())

    def __call__(self, x: Tensor, scores: Tensor) -> Tensor:
        """The matrix (N, F) and scores (N,) to (N,): a probability in [EPS, 1 - EPS], or an IoU in [0, 1]."""
        raw = torch.stack([_raw(part, x, scores, self.is_probability) for part in self.parts.values()]).mean(
            0
        )
        if not self.is_probability:
            return raw.clamp(0.0, 1.0)
        return torch.sigmoid(self.slope * raw + self.intercept).clamp(EPS, 1 - EPS)

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors, parts = pack({name: part.state() for name, part in self.parts.items()})
        own = {"is_probability": self.is_probability, "slope": self.slope, "intercept": self.intercept}
        return tensors, {**own, "parts": parts}

    @classmethod
    def from_state(cls, state: State) -> Head:
        """Rebuild from `state()`."""
        tensors, meta = state
        held = {name: unpack((tensors, meta["parts"]), name) for name in meta["parts"]}
        if unknown := {part[1]["kind"] for part in held.values()} - set(_PARTS):
            raise StateError(
                f"unknown kinds of model {sorted(unknown)}: upgrade reliability_hooks, or fit again"
            )
        parts = {name: _PARTS[part[1]["kind"]].from_state(part) for name, part in held.items()}
        return cls(parts, meta["is_probability"], meta["slope"], meta["intercept"])


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

        The one-standard-error rule decides: of all candidates the simplest whose loss (log loss; squared
        error for the IoU) is not worse than the best one's by more than a standard error, paired and
        clustered by image.

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
        s, every = as_scores(scores), _FitRows.checked(columns, scores, labels, correct, iou, groups)
        keep = ~s.isnan()
        data = every.take(keep)
        notes = [] if bool(keep.all()) else [f"{int((~keep).sum())} rows without a score were left out"]
        names, note = _affordable(data, candidates)
        notes += note
        with one_thread_if_small(len(data.scores) * max(1, len(columns))):
            return cls._fit(data, names, notes, keep, scores.device, seed)

    @classmethod
    def _fit(
        cls,
        data: _FitRows,
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
        folds = _folds(data, seed)
        if not folds:
            notes.append("all rows come from one image: nothing could be cross-validated; label more images")
        members = dict.fromkeys(member for name in names for member in _MEMBERS.get(name, (name,)))
        overlaps = ["ridge" if member == "logistic" else member for member in members]
        tasks = {
            "reliability": _Task(data, data.correct.to(torch.float64), True, seed),
            "expected_iou": _Task(data, data.iou, False, seed),
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
                notes.append("no column improves on the confidence alone by more than a standard error")
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


@dataclass(frozen=True, eq=False)
class _FitRows:
    """The checked rows of a fit, on the CPU; groups as (N,) int64 image index."""

    columns: dict[str, Tensor]
    scores: Tensor
    labels: Tensor | None
    correct: Tensor
    iou: Tensor
    groups: Tensor

    @classmethod
    def checked(
        cls,
        columns: Mapping[str, Tensor],
        scores: Tensor,
        labels: Tensor | None,
        correct: Tensor,
        iou: Tensor,
        groups: Tensor | Sequence[Any],
    ) -> _FitRows:
        import numpy as np

        ids = np.asarray(groups.detach().cpu() if isinstance(groups, Tensor) else groups)
        index = torch.from_numpy(np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.int64))
        inputs = {**columns, "correct": correct, "iou": iou, "groups": index}
        if labels is not None:
            inputs["labels"] = labels
        if wrong := {name: tuple(t.shape) for name, t in inputs.items() if t.shape != scores.shape}:
            raise ValueError(
                f"every input must have shape {tuple(scores.shape)} like the scores, got {wrong}"
            )
        overlap = iou.detach().cpu().to(torch.float64)
        if bool((~((overlap >= 0) & (overlap <= 1))).any()):
            raise ValueError("iou must lie in [0, 1]: 0 for a detection without a match")
        right = correct.detach().cpu()
        if bool(((right != 0) & (right != 1)).any()):
            raise ValueError("correct must be bool")
        held = {name: c.detach().cpu() for name, c in columns.items()}
        known = None if labels is None else labels.detach().cpu()
        return cls(held, scores.detach().cpu(), known, right.to(torch.bool), overlap, index)

    def take(self, rows: Tensor) -> _FitRows:
        labels = None if self.labels is None else self.labels[rows]
        held = {name: c[rows] for name, c in self.columns.items()}
        return _FitRows(
            held, self.scores[rows], labels, self.correct[rows], self.iou[rows], self.groups[rows]
        )

    def table(self, seed: int) -> tuple[FeatureTable, Tensor]:
        """The table learnt from these rows, and their matrix for training."""
        return FeatureTable.fit(self.columns, self.scores, self.labels, self.correct, self.groups, seed=seed)


@dataclass(frozen=True, eq=False)
class _Fold:
    train: Tensor
    test: Tensor
    x_train: Tensor
    x_test: Tensor


@dataclass(frozen=True, eq=False)
class _Choice:
    """What cross-validation chose for one task: a candidate, its members' settings, a recalibration."""

    name: str
    settings: dict[str, Any]
    slope: float
    intercept: float
    cross_fitted: Tensor
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Task:
    """One of the two questions: P(correct), by log loss on logits, or E[IoU], by squared error."""

    data: _FitRows
    target: Tensor
    is_probability: bool
    seed: int

    def fit(self, member: str, setting: Any, x: Tensor, rows: Tensor) -> Part:
        """One member on the given rows, of which x is the matrix."""
        target = self.target[rows]
        if member in CALIBRATORS:
            return CALIBRATORS[member].fit(self.data.scores[rows], target)
        if member == "logistic":
            return Linear.fit_logistic(x, target, setting)
        if member == "ridge":
            return Linear.fit_ridge(x, target, setting)
        return Trees.fit(x, target, iterations=setting, classify=self.is_probability, seed=self.seed)

    def refit(self, choice: _Choice, x: Tensor) -> Head:
        """The chosen members, with their chosen settings, on all rows."""
        rows = torch.arange(len(self.target))
        parts = {member: self.fit(member, setting, x, rows) for member, setting in choice.settings.items()}
        return Head(parts, self.is_probability, choice.slope, choice.intercept)

    def out_of_fold(self, member: str, folds: list[_Fold]) -> Tensor:
        """(N, V): raw predictions for rows of images not trained on, for each of the member's V settings."""
        grid = _GRIDS.get(member, (None,))
        found = torch.full((len(self.target), len(grid)), torch.nan, dtype=torch.float64)
        for fold in folds:
            if member == "boosting":  # the longest fit holds all shorter ones
                longest = self.fit(member, max(grid), fold.x_train, fold.train)
                assert isinstance(longest, Trees)
                found[fold.test] = longest.raw_staged(fold.x_test, grid)
                continue
            parts = [self.fit(member, setting, fold.x_train, fold.train) for setting in grid]
            scores = self.data.scores[fold.test]
            found[fold.test] = torch.stack(
                [_raw(p, fold.x_test, scores, self.is_probability) for p in parts], 1
            )
        return found

    def loss(self, raw: Tensor) -> Tensor:
        """Raw predictions (N,) to the log loss, or squared error, of the clipped output (N,)."""
        if not self.is_probability:
            return (raw.clamp(0.0, 1.0) - self.target).square()
        return binary_cross_entropy_with_logits(logit(raw.sigmoid()), self.target, reduction="none")

    def choose(self, names: Sequence[str], folds: list[_Fold]) -> _Choice:
        """Cross-validate the candidates, pick one, and recalibrate it if that helps."""
        if not folds:
            name = next((n for n in names if n in CALIBRATORS), "platt")
            unknown = torch.full_like(self.target, torch.nan)
            return _Choice(
                name, {name: None}, 1.0, 0.0, unknown, {"candidates": {}, "slope": 1.0, "intercept": 0.0}
            )
        settings: dict[str, Any] = {}
        raw: dict[str, Tensor] = {}
        members = {name: _MEMBERS.get(name, (name,)) for name in names}
        for member in dict.fromkeys(m for held in members.values() for m in held):
            tried = self.out_of_fold(member, folds)
            best = int(torch.stack([self.loss(z).mean() for z in tried.T]).argmin())
            settings[member], raw[member] = _GRIDS.get(member, (None,))[best], tried[:, best]
        outputs = {name: torch.stack([raw[m] for m in held]).mean(0) for name, held in members.items()}
        losses = {name: self.loss(z) for name, z in outputs.items()}
        leader = min(losses, key=lambda name: float(losses[name].mean()))
        groups = self.data.groups
        behind = {name: _mean_and_error(loss - losses[leader], groups) for name, loss in losses.items()}
        chosen = next(name for name in names if behind[name][0] <= behind[name][1])

        criterion = "log_loss" if self.is_probability else "mse"
        candidates: dict[str, dict[str, Any]] = {}
        for name, z in outputs.items():
            row: dict[str, Any] = {
                "settings": {m: settings[m] for m in members[name] if settings[m] is not None}
            }
            row[criterion], row[f"{criterion}_se"] = _mean_and_error(losses[name], groups)
            if self.is_probability:
                brier = (z.sigmoid().clamp(EPS, 1 - EPS) - self.target).square()
                row["brier"], row["brier_se"] = _mean_and_error(brier, groups)
            row["behind_best"], row["behind_best_se"] = behind[name]
            candidates[name] = row
        z, slope, intercept = outputs[chosen], 1.0, 0.0
        if self.is_probability:
            z, slope, intercept = self.recalibrate(z, folds)
        report = {"criterion": criterion, "candidates": candidates, "slope": slope, "intercept": intercept}
        final = z.sigmoid().clamp(EPS, 1 - EPS) if self.is_probability else z.clamp(0.0, 1.0)
        return _Choice(chosen, {m: settings[m] for m in members[chosen]}, slope, intercept, final, report)

    def recalibrate(self, z: Tensor, folds: list[_Fold]) -> tuple[Tensor, float, float]:
        """Logits, slope, intercept: changed only if that, cross-fitted, gains more than its error."""
        moved = z.clone()
        for fold in folds:
            slope, intercept = recalibration(z[fold.train], self.target[fold.train])
            moved[fold.test] = slope * z[fold.test] + intercept
        gain, error = _mean_and_error(self.loss(z) - self.loss(moved), self.data.groups)
        return (moved, *recalibration(z, self.target)) if gain > error else (z, 1.0, 0.0)


def _raw(part: Part, x: Tensor, scores: Tensor, is_probability: bool) -> Tensor:
    """(N,) on the scale on which parts are averaged: logits, or IoU."""
    if isinstance(part, Linear | Trees):
        return part.raw(x)
    value = part.predict(scores)
    return logit(value) if is_probability else value


def _affordable(data: _FitRows, candidates: Sequence[str]) -> tuple[list[str], list[str]]:
    """The candidates that so many rows can carry, by complexity, and a note where some were left out."""
    names = [name for name in CANDIDATES if name in candidates]
    n, images, right = len(data.scores), len(torch.unique(data.groups)), int(data.correct.sum())
    if n == 0:
        raise ValueError(f"the fit needs labelled detections, got 0: label {MIN_IMAGES} images or more")
    if n >= MIN_ROWS and images >= MIN_IMAGES and min(right, n - right) >= MIN_PER_CLASS:
        return names, []
    return [name for name in names if name in CALIBRATORS] or ["platt"], [
        f"few data ({n} detections in {images} images, {right} right, {n - right} wrong): only the"
        f" confidence is calibrated; other evidence takes at least {MIN_ROWS} detections, {MIN_IMAGES} images,"
        f" {MIN_PER_CLASS} right and {MIN_PER_CLASS} wrong"
    ]


def _folds(data: _FitRows, seed: int) -> list[_Fold]:
    """Splits by image, the table learnt from the training side alone; none with fewer than two images."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    k = min(FOLDS, len(torch.unique(data.groups)))
    if k < 2:
        return []
    y, groups = data.correct.numpy(), data.groups.numpy()
    rarer = min(int(y.sum()), int((~y).sum()))
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed) if rarer >= k else GroupKFold(k)
    folds = []
    for train, test in splitter.split(y, y, groups):
        if len(test) == 0:  # stratification may leave a fold without any image
            continue
        a, b = torch.from_numpy(train), torch.from_numpy(test)
        table, x = data.take(a).table(seed)
        held = data.take(b)
        folds.append(_Fold(a, b, x, table.transform(held.columns, held.scores, held.labels)))
    return folds


def _mean_and_error(values: Tensor, groups: Tensor) -> tuple[float, float]:
    """Mean over rows and its standard error, the rows of one image taken together (cluster-robust)."""
    mean = values.mean()
    images, index = torch.unique(groups, return_inverse=True)
    sums = torch.zeros(len(images), dtype=values.dtype).index_add_(0, index, values - mean)
    error = (sums.square().sum() * len(images) / max(len(images) - 1, 1)).sqrt() / len(values)
    return float(mean), float(error)


def _like(values: Tensor, scores: Tensor) -> Tensor:
    return values.to(torch.float32).to(scores.device)
