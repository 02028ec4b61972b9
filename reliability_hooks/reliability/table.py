"""Signal columns to a robustly standardised matrix without NaN, as the models want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from .calibrators import Platt, as_scores, logit
from .state import State

SCORE, CLASS_PRIOR = "score", "class_prior"
TAIL = 0.005
"""Share of rows at either end that is winsorised; a rarer value or gap is no evidence to learn from."""


def _real(size: int = 0) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """What was learnt about each column, and the way from columns to the matrix (N, F).

    The features are, in order: `score` (its logit), the columns `names`, one 0/1 indicator for each column of
    `indicators` (1 = not available), and, if fitted with labels, `class_prior`. 0 always means "nothing
    unusual": the median of the calibration data, available, a class like the others.

    Attributes:
        names: columns that enter by their value.
        indicators: columns of which a part was missing in the fit.
        dropped: columns that cannot be used, with the reason.
        center, scale, low, high: (1 + len(names),) median, robust scale and winsorising range; entry 0 is
            the score.
        classes: (C,) int64 sorted labels seen; None if fitted without labels.
        prior: (C,) float64 log-odds of each class relative to its detections' calibrated confidence.
    """

    names: tuple[str, ...] = ()
    indicators: tuple[str, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)
    center: Tensor = field(default_factory=lambda: _real(1))
    scale: Tensor = field(default_factory=lambda: _real(1) + 1)
    low: Tensor = field(default_factory=lambda: _real(1) - torch.inf)
    high: Tensor = field(default_factory=lambda: _real(1) + torch.inf)
    classes: Tensor | None = None
    prior: Tensor = field(default_factory=_real)

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that `transform` needs."""
        return tuple(dict.fromkeys(self.names + self.indicators))

    @property
    def owners(self) -> tuple[str, ...]:
        """For each feature (F) the input it comes from: a column, `score` or `class_prior`."""
        return (SCORE, *self.names, *self.indicators, *(() if self.classes is None else (CLASS_PRIOR,)))

    @property
    def features(self) -> tuple[str, ...]:
        """The name of each feature (F)."""
        end = 1 + len(self.names)
        middle = tuple(f"missing:{name}" for name in self.indicators)
        return self.owners[:end] + middle + self.owners[end + len(middle) :]

    @classmethod
    def fit(
        cls,
        columns: Mapping[str, Tensor],
        scores: Tensor,
        labels: Tensor | None = None,
        correct: Tensor | None = None,
        groups: Tensor | None = None,
        *,
        pseudo_counts: float = 20.0,
        seed: int = 0,
    ) -> tuple[FeatureTable, Tensor]:
        """Learn the table; return it with the matrix (N, F) float64 of the very rows it was fitted on.

        That matrix is not `transform` of the same rows: its class prior was computed for each row from images
        of other folds, else a model trained on it would see its own labels.

        Args:
            columns: each (N,), NaN or infinite where not available.
            scores: (N,) in [0, 1].
            labels: (N,) int64, for the class prior; with it correct and groups are needed.
            correct: (N,) bool.
            groups: (N,) int64 image index.
            pseudo_counts: rows of average behaviour that each class starts from (empirical Bayes).
            seed: of the assignment of images to folds.

        Raises:
            ValueError: zero rows, a wrong shape, a reserved column name, or labels without correct and
                groups.
        """
        s = as_scores(scores)
        if len(s) == 0:
            raise ValueError("a table needs labelled detections to learn from, got 0")
        if reserved := {SCORE, CLASS_PRIOR} & set(columns):
            raise ValueError(
                f"the column names {sorted(reserved)} are taken by the table itself: rename them"
            )
        every = tuple(columns)
        raw = torch.cat([logit(s)[:, None], _matrix(columns, every, len(s))], 1)
        q = torch.tensor([TAIL, 0.25, 0.5, 0.75, 1 - TAIL], dtype=torch.float64)
        # Column by column: torch.nanquantile refuses inputs above 16 million elements.
        low, q1, center, q3, high = torch.stack([torch.nanquantile(column, q) for column in raw.T], 1)
        center[0], high[0] = center[0].nan_to_num(0.0), logit(torch.ones((), dtype=torch.float64))
        low[0] = -high[0]  # the clipped logit is bounded already, and stays a feature even if constant
        # The share of the range keeps a column with a tight middle and long tails within about +-6.
        scale = torch.maximum((q3 - q1) / 1.349, (high - low) / 6)

        share = raw.isnan().to(torch.float64).mean(0)
        # False for NaN (a column that is never available); the quantiles of a constant differ by rounding.
        varies = high - low > 1e-9 * torch.maximum(low.abs(), high.abs())
        gaps = (share >= TAIL) & (share <= 1 - TAIL)
        reasons = {}
        for name, v, g, missing in zip(
            every, varies[1:].tolist(), gaps[1:].tolist(), share[1:].tolist(), strict=True
        ):
            if not (v or g):
                reasons[name] = "constant" if missing < 1 else "never available"
        table = cls(
            names=tuple(compress(every, varies[1:].tolist())),
            indicators=tuple(compress(every, gaps[1:].tolist())),
            dropped=reasons,
            center=center[varies],
            scale=scale[varies],
            low=low[varies],
            high=high[varies],
        )
        features = table.transform(columns, scores)
        if labels is None:
            return table, features
        if correct is None or groups is None:
            raise ValueError("a class prior needs correct and groups beside the labels")
        classes, own, prior = _class_prior(
            s, labels.detach().cpu(), correct.detach().cpu(), groups.detach().cpu(), pseudo_counts, seed
        )
        table = cls(**{**vars(table), "classes": classes, "prior": prior})
        return table, torch.cat([features, own[:, None]], 1)

    def transform(
        self, columns: Mapping[str, Tensor], scores: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Columns of N rows to float64 (N, F) on the CPU, finite throughout; a NaN score counts as the
        median.

        Raises:
            ValueError: a required column or the labels are absent, or a shape is wrong.
        """
        s = as_scores(scores)
        if absent := [name for name in self.required if name not in columns]:
            makers = sorted({name.split("/")[0] for name in absent})
            raise ValueError(
                f"the columns {absent} are absent: switch on the signals {makers} that make them,"
                " as in the fit, or fit again"
            )
        required = self.required
        x = _matrix(columns, required, len(s))
        where = {name: j for j, name in enumerate(required)}
        raw = torch.cat([logit(s)[:, None], x[:, [where[name] for name in self.names]]], 1)
        parts = [
            ((raw.clamp(self.low, self.high) - self.center) / self.scale).nan_to_num(0.0),
            x[:, [where[name] for name in self.indicators]].isnan().to(torch.float64),
        ]
        if self.classes is not None:
            if labels is None or labels.shape != s.shape:
                raise ValueError("the table was fitted with class labels: give labels (N,) as well")
            parts.append(_look_up(labels.detach().cpu(), self.classes, self.prior)[:, None])
        return torch.cat(parts, 1)

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        meta: dict[str, Any] = {
            "names": list(self.names),
            "indicators": list(self.indicators),
            "dropped": self.dropped,
        }
        return tensors, meta

    @classmethod
    def from_state(cls, state: State) -> FeatureTable:
        """Rebuild from `state()`."""
        tensors, meta = state
        names, indicators = tuple(meta["names"]), tuple(meta["indicators"])
        return cls(names=names, indicators=indicators, dropped=dict(meta["dropped"]), **tensors)


def _matrix(columns: Mapping[str, Tensor], names: Sequence[str], rows: int) -> Tensor:
    """The named columns as float64 (rows, len(names)) on the CPU, infinite turned to NaN, in one transfer."""
    if not names:
        return torch.zeros(rows, 0, dtype=torch.float64)
    picked = [columns[name].detach() for name in names]
    if wrong := {name: tuple(c.shape) for name, c in zip(names, picked, strict=True) if c.shape != (rows,)}:
        raise ValueError(f"every column must have shape ({rows},) like the scores, got {wrong}")
    dtype = reduce(torch.promote_types, {c.dtype for c in picked}, torch.float32)
    device = picked[0].device
    x = torch.stack([c.to(device, dtype) for c in picked], 1).cpu().to(torch.float64)
    return x.masked_fill_(~x.isfinite(), torch.nan)


def _look_up(labels: Tensor, classes: Tensor, values: Tensor) -> Tensor:
    """The value of each label's class, 0 for a class that is not among the sorted classes."""
    if len(classes) == 0:
        return _real(len(labels))
    at = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return torch.where(classes[at] == labels, values[at], 0.0)


def _class_prior(
    s: Tensor, labels: Tensor, correct: Tensor, groups: Tensor, k: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted classes (C,), the out-of-fold value of each row (N,), and the value of each class (C,) from all
    rows.

    With n detections of a class, r of them right and e expected right by one Platt map for all classes, and
    m the overall rate, the value is logit((r + k m) / (n + k)) - logit((e + k m) / (n + k)): how much better
    the class does than its scores say. The rows' own values are out of fold over images, not leave-one-out:
    within a class the latter fall with the row's own label, which trees find out.
    """
    classes, index = torch.unique(labels.to(torch.int64), return_inverse=True)
    known = (~s.isnan()).to(torch.float64)
    y = correct.to(torch.float64)
    expected = Platt.fit(s, y).predict(s).nan_to_num(0.0)
    mean = float(((y * known).sum() + 1) / (known.sum() + 2))

    images, image = torch.unique(groups, return_inverse=True)
    folds = min(5, len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    fold = (order % folds)[image]

    def counts(values: Tensor) -> Tensor:
        return (
            torch.zeros(folds * len(classes), dtype=torch.float64)
            .index_add_(0, fold * len(classes) + index, values)
            .view(folds, -1)
        )

    held = torch.stack([counts(known), counts(y * known), counts(expected)])

    def value(sums: Tensor) -> Tensor:
        n, right, hoped = sums
        return logit((right + k * mean) / (n + k)) - logit((hoped + k * mean) / (n + k))

    others = held.sum(1, keepdim=True) - held
    return classes, value(others)[fold, index], value(held.sum(1))
