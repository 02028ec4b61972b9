"""What is wrong with the picture of an object, named: the condition that stands out most from what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..instances import Instances
from ..reliability.judge import Judge

OF_OBJECT = ("occlusion", "truncation", "clutter")
"""Conditions of an object by itself. Any other is one of the picture, of which its other objects are witnesses too."""
LEAST_USUAL = 0.05
"""What is taken for usual at least, and where a monitor does not know."""
ABOVE = 1.0
"""Excess, in log-odds, from which a condition is named: of an object that is doubted."""
CLEAR = 2.5
"""The same of any object, where most conditions are as they should be."""
LEAD = 1.0
"""Log-odds by which a condition of an object by itself must exceed one of the picture to be named before it: a bad
picture makes objects look hidden or crowded, and all of them are witnesses of what is wrong with it."""
SURE = 1e-3
"""Probabilities closer to 0 or 1 count as this close."""


@dataclass(frozen=True)
class Cause:
    """A condition of one object.

    Attributes:
        name: As in `assets/conditions.yaml`.
        phrase: In words.
        excess: Log-odds of it less the log-odds of what is usual.
    """

    name: str
    phrase: str
    excess: float


def causes(
    judge: Judge | None, words: Mapping[str, tuple[str, str]], instances: Instances, above: float = ABOVE
) -> list[list[Cause]]:
    """For each object the conditions that it shows more than is usual, the greatest excess first (but see `LEAD`).

    The log-odds of a condition of the picture are the mean of the object's own and of all objects of the image, these
    weighted by the side of their boxes; an object that is too small to judge has those of the others.

    Args:
        judge: Whose calibration data say what is usual.
        words: Column -> phrases for a low and a high value, of `signals.condition.words_of`.
        instances: All N objects of one image, with the columns of `signals.condition.Condition`; without, none is
            named.
        above: See `ABOVE`; -inf names all of them.
    """
    columns = [c for c in words if c in instances.columns]
    if not columns or len(instances) == 0:
        return [[] for _ in range(len(instances))]
    names = [c.partition("/")[2] for c in columns]
    own = torch.stack([instances.columns[c] for c in columns], 1).double().cpu().logit(SURE)
    sides = (instances.boxes[:, 2:] - instances.boxes[:, :2]).clamp(min=1).prod(1).sqrt().double().cpu()[:, None]
    seen = own.isfinite()
    together = (own.nan_to_num() * sides * seen).sum(0) / (sides * seen).sum(0).clamp(min=1e-9)
    own = torch.where(seen, own, together)
    shared = torch.tensor([name not in OF_OBJECT for name in names])
    excess = torch.where(shared, (own + together) / 2, own) - _usual(judge, columns).logit(SURE)
    excess[:, ~seen.any(0)] = -torch.inf
    order = (excess + LEAD * shared).argsort(dim=1, descending=True, stable=True)
    return [
        [Cause(names[j], words[columns[j]][1], float(row[j])) for j in ranks if row[j] > above]
        for row, ranks in zip(excess, order.tolist(), strict=True)
    ]


def clearest(judge: Judge | None, words: Mapping[str, tuple[str, str]], instances: Instances) -> list[str]:
    """For each object the phrase of its first cause, empty where none is clear; arguments as of `causes`."""
    return [row[0].phrase if row else "" for row in causes(judge, words, instances, CLEAR)]


def _usual(judge: Judge | None, columns: list[str]) -> Tensor:
    known: dict[str, float] = {}
    if judge is not None:
        table = judge.model.table
        known = dict(zip(table.names, table.center[1:].tolist(), strict=True))
    return torch.tensor([known.get(c, LEAST_USUAL) for c in columns], dtype=torch.float64).clamp(min=LEAST_USUAL)
