"""Why a reliability is what it is, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .instances import Instances
from .reliability.judge import Judge

WORDS = {
    "score": "the detector's score",
    "class_prior": "how often its class is right",
    "caution": "it may be an unknown object",
}
"""What stands in a model beside the signals."""


@dataclass(frozen=True)
class Reason:
    """One piece of evidence for or against a detection.

    Attributes:
        column: The column, or the signal, that it comes from.
        phrase: What it says, in words.
        change: What it does to the reliability, against a typical value of the same.
    """

    column: str
    phrase: str
    change: float


def lowering(
    judge: Judge | None, phrases: Mapping[str, tuple[str, str]], instances: Instances, top: int
) -> list[list[Reason]]:
    """For each instance the `top` columns that lower its reliability most (or raise it least).

    Args:
        judge: None: nothing was fitted, and there are no reasons.
        phrases: Column -> words for a low and for a high value.
        instances: With the columns.
        top: How many.
    """
    if judge is None or not _answered(instances):
        return [[] for _ in range(len(instances))]
    changes = judge.contributions(instances)
    typical = dict(zip(judge.model.table.names, judge.model.table.center[1:].tolist(), strict=True))
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


def shares(
    judge: Judge | None, phrases: Mapping[str, tuple[str, str]], instances: Instances
) -> list[list[Reason]]:
    """For each instance how much every signal adds to its reliability, the greatest first.

    The changes are Shapley values (`Judge.shares`); `Reason.column` is the signal or a key of `WORDS`. A signal is
    put in the words of its column that weighs most in the same direction.

    Args:
        judge: As for `lowering`.
        phrases: As for `lowering`.
        instances: As for `lowering`.
    """
    if judge is None or not _answered(instances):
        return [[] for _ in range(len(instances))]
    found = judge.shares(instances)
    values = torch.stack(list(found.values()), 1).nan_to_num().tolist()
    out = []
    for each, changes in zip(lowering(judge, phrases, instances, len(phrases)), values, strict=True):
        said: dict[tuple[str, bool], str] = {}
        for reason in sorted(each, key=lambda r: -abs(r.change)):
            said.setdefault((reason.column.rpartition("/")[0], reason.change > 0), reason.phrase)
        row = [Reason(n, said.get((n, c > 0), WORDS.get(n, n)), c) for n, c in zip(found, changes, strict=True)]
        out.append(sorted(row, key=lambda r: -abs(r.change)))
    return out


def _answered(instances: Instances) -> bool:
    """Whether there is a reliability to explain: after a fault of a hook no column is there."""
    return bool(instances.columns.get("reliability", instances.scores * torch.nan).isfinite().any())
