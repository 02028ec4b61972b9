"""Candidates cross-validated over images; the best is kept, unless the confidence alone is as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .calibrators import CALIBRATORS, EPS, logit, recalibration
from .heads import Head, Part, raw_of
from .linear import Linear
from .table import FeatureTable
from .trees import Trees

CANDIDATES = ("platt", "isotonic", "logistic", "boosting", "blend")
"""In order of complexity; `blend` is the mean of the logits of `logistic` and `boosting`."""
MIN_ROWS, MIN_IMAGES, MIN_PER_CLASS = 100, 10, 10
"""Below any of these only the confidence is used: more evidence would be fitted to noise."""
MIN_GAIN = 0.005
"""Share of the loss that other evidence must save over the confidence alone: less is not worth depending on it."""
FOLDS = 5
# What cross-validation chooses among: C, alpha, number of trees; a member that is not here has no choice.
GRIDS: dict[str, tuple[Any, ...]] = {
    "logistic": (0.0001, 0.001, 0.01, 0.1, 1.0),
    "ridge": (10.0, 100.0, 1000.0, 10000.0),
    "boosting": (25, 50, 100, 150),
}
MEMBERS = {"blend": ("logistic", "boosting")}  # every other candidate is its own only member


@dataclass(frozen=True, eq=False)
class FitRows:
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
    ) -> FitRows:
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

    def take(self, rows: Tensor) -> FitRows:
        labels = None if self.labels is None else self.labels[rows]
        held = {name: c[rows] for name, c in self.columns.items()}
        return FitRows(
            held, self.scores[rows], labels, self.correct[rows], self.iou[rows], self.groups[rows]
        )

    def table(self, seed: int) -> tuple[FeatureTable, Tensor]:
        """The table learnt from these rows, and their matrix for training."""
        return FeatureTable.fit(self.columns, self.scores, self.labels, self.correct, self.groups, seed=seed)


@dataclass(frozen=True, eq=False)
class Fold:
    """Row indices of both sides of a split and their matrices; the table was learnt from `train` alone."""

    train: Tensor
    test: Tensor
    x_train: Tensor
    x_test: Tensor


@dataclass(frozen=True, eq=False)
class Choice:
    """What cross-validation chose for one task: a candidate, its members' settings, a recalibration."""

    name: str
    settings: dict[str, Any]
    slope: float
    intercept: float
    cross_fitted: Tensor
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Task:
    """One of the two questions: P(correct), by log loss on logits, or E[IoU], by squared error."""

    data: FitRows
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

    def refit(self, choice: Choice, x: Tensor) -> Head:
        """The chosen members, with their chosen settings, on all rows."""
        rows = torch.arange(len(self.target))
        parts = {member: self.fit(member, setting, x, rows) for member, setting in choice.settings.items()}
        return Head(parts, self.is_probability, choice.slope, choice.intercept)

    def out_of_fold(self, member: str, folds: list[Fold]) -> Tensor:
        """(N, V): raw predictions for rows of images not trained on, for each of the member's V settings."""
        grid = GRIDS.get(member, (None,))
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
                [raw_of(p, fold.x_test, scores, self.is_probability) for p in parts], 1
            )
        return found

    def loss(self, raw: Tensor) -> Tensor:
        """Raw predictions (N,) to the log loss, or squared error, of the clipped output (N,)."""
        if not self.is_probability:
            return (raw.clamp(0.0, 1.0) - self.target).square()
        return binary_cross_entropy_with_logits(logit(raw.sigmoid()), self.target, reduction="none")

    def choose(self, names: Sequence[str], folds: list[Fold]) -> Choice:
        """Cross-validate the candidates, pick one, and recalibrate it if that helps."""
        if not folds:
            name = next((n for n in names if n in CALIBRATORS), "platt")
            unknown = torch.full_like(self.target, torch.nan)
            return Choice(
                name, {name: None}, 1.0, 0.0, unknown, {"candidates": {}, "slope": 1.0, "intercept": 0.0}
            )
        settings: dict[str, Any] = {}
        raw: dict[str, Tensor] = {}
        members = {name: MEMBERS.get(name, (name,)) for name in names}
        for member in dict.fromkeys(m for held in members.values() for m in held):
            tried = self.out_of_fold(member, folds)
            best = int(torch.stack([self.loss(z).mean() for z in tried.T]).argmin())
            settings[member], raw[member] = GRIDS.get(member, (None,))[best], tried[:, best]
        outputs = {name: torch.stack([raw[m] for m in held]).mean(0) for name, held in members.items()}
        losses = {name: self.loss(z) for name, z in outputs.items()}
        mean = {name: float(losses[name].mean()) for name in names}
        chosen = min(names, key=lambda name: mean[name])  # the first, and simplest, of a tie
        alone = min((name for name in names if name in CALIBRATORS), key=lambda name: mean[name], default=chosen)
        if mean[alone] <= mean[chosen] * (1 + MIN_GAIN):
            chosen = alone
        groups = self.data.groups
        behind = {name: mean_and_error(loss - losses[chosen], groups) for name, loss in losses.items()}

        criterion = "log_loss" if self.is_probability else "mse"
        candidates: dict[str, dict[str, Any]] = {}
        for name, z in outputs.items():
            row: dict[str, Any] = {
                "settings": {m: settings[m] for m in members[name] if settings[m] is not None}
            }
            row[criterion], row[f"{criterion}_se"] = mean_and_error(losses[name], groups)
            if self.is_probability:
                brier = (z.sigmoid().clamp(EPS, 1 - EPS) - self.target).square()
                row["brier"], row["brier_se"] = mean_and_error(brier, groups)
            row["behind_best"], row["behind_best_se"] = behind[name]
            candidates[name] = row
        z, slope, intercept = outputs[chosen], 1.0, 0.0
        if self.is_probability:
            z, slope, intercept = self.recalibrate(z, folds)
        report = {"criterion": criterion, "candidates": candidates, "slope": slope, "intercept": intercept}
        final = z.sigmoid().clamp(EPS, 1 - EPS) if self.is_probability else z.clamp(0.0, 1.0)
        return Choice(chosen, {m: settings[m] for m in members[chosen]}, slope, intercept, final, report)

    def recalibrate(self, z: Tensor, folds: list[Fold]) -> tuple[Tensor, float, float]:
        """Logits, slope, intercept: changed only if that, cross-fitted, gains more than its error."""
        moved = z.clone()
        for fold in folds:
            slope, intercept = recalibration(z[fold.train], self.target[fold.train])
            moved[fold.test] = slope * z[fold.test] + intercept
        gain, error = mean_and_error(self.loss(z) - self.loss(moved), self.data.groups)
        return (moved, *recalibration(z, self.target)) if gain > error else (z, 1.0, 0.0)


def affordable(data: FitRows, candidates: Sequence[str]) -> tuple[list[str], list[str]]:
    """The candidates that so many rows can carry, by complexity, and a note where some were left out."""
    names = [name for name in CANDIDATES if name in candidates]
    n, images, right = len(data.scores), len(torch.unique(data.groups)), int(data.correct.sum())
    if n == 0:
        raise ValueError(f"the fit needs labelled detections, got 0: label {MIN_IMAGES} images or more")
    if n >= MIN_ROWS and images >= MIN_IMAGES and min(right, n - right) >= MIN_PER_CLASS:
        return names, []
    return [name for name in names if name in CALIBRATORS] or ["platt"], [
        f"few data ({n} detections in {images} images, {right} right, {n - right} wrong): only the"
        f" confidence is calibrated; other evidence takes {MIN_ROWS} detections, {MIN_IMAGES} images,"
        f" {MIN_PER_CLASS} right and {MIN_PER_CLASS} wrong"
    ]


def make_folds(data: FitRows, seed: int) -> list[Fold]:
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
        folds.append(Fold(a, b, x, table.transform(held.columns, held.scores, held.labels)))
    return folds


def mean_and_error(values: Tensor, groups: Tensor) -> tuple[float, float]:
    """Mean over rows and its standard error, the rows of one image taken together (cluster-robust)."""
    mean = values.mean()
    images, index = torch.unique(groups, return_inverse=True)
    sums = torch.zeros(len(images), dtype=values.dtype).index_add_(0, index, values - mean)
    error = (sums.square().sum() * len(images) / max(len(images) - 1, 1)).sqrt() / len(values)
    return float(mean), float(error)
