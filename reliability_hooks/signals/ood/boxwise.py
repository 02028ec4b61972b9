"""Scores of the logits of all raw boxes on an object: what suppression throws away is a second opinion."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...frame import Frame
from ..base import Requirement
from ..geometry import ious
from . import scores
from .base import Info, Rows, Score, column

OVERLAP = 0.5
"""IoU from which a raw box is taken to be of the same object."""


class BoxConditioned(Score):
    """A score of the mean logits of the raw boxes that overlap the kept one, itself included.

    A detector says the same of an object that it knows from every anchor or proposal on it. Where it does not know the
    object, each sees something else, and the mean spreads over more classes than any one of them. Ours; compared with
    the same score of the kept box alone in the README's results.
    """

    evidence: ClassVar = ("logits",)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        own: Any = self
        requires: tuple[Requirement, ...] = ("logits", "pool")
        own.requires = requires

    def rows(self, frame: Frame) -> Rows:
        found = super().rows(frame)
        if frame.pool is None or found.logits is None:
            raise ValueError("the frame has no raw boxes with logits: skip this signal")
        return Rows(classes=found.classes, logits=mean_logits(frame), head=found.head, scores=found.scores,
                    sizes=found.sizes)


class BoxConditionedGEN(BoxConditioned):
    """GEN (Liu et al. 2023) of the mean logits, averaged over every number of classes that it can take (`rank_gen`)."""

    name = "ood/box_gen"
    info = Info("Box-conditioned GEN", "ours, after Liu et al. 2023 (GEN)", "logits of the raw boxes")
    columns = column(name)

    def score(self, rows: Rows) -> Tensor:
        (logits,) = rows.require("logits")
        assert rows.head is not None
        return scores.rank_gen(logits, rows.head)


class BoxConditionedEnergy(BoxConditioned):
    """Energy (Liu et al. 2020), or JointEnergy (Wang et al. 2021) for a sigmoid head, of the mean logits."""

    name = "ood/box_energy"
    info = Info("Box-conditioned energy", "ours, after Liu et al. 2020 (Energy)", "logits of the raw boxes")
    columns = column(name)

    def score(self, rows: Rows) -> Tensor:
        (logits,) = rows.require("logits")
        return scores.joint_energy(logits) if rows.head == "sigmoid" else scores.energy(logits)


def mean_logits(frame: Frame) -> Tensor:
    """(N, K) float32 without the background's column: means over the raw boxes with IoU >= `OVERLAP`.

    NaN where the kept box's own logits are, and these themselves where no raw box lies so.
    """
    kept = frame.instances
    assert frame.pool is not None
    assert kept.logits is not None
    pool = frame.pool()
    near = ious(kept.boxes.float(), pool.boxes.to(kept.boxes)) >= OVERLAP
    own, weight = kept.logits.float(), near.float()
    count = weight.sum(1, keepdim=True)
    mean = (weight @ pool.logits.to(own).clamp(-1e4, 1e4)) / count.clamp(min=1)
    return kept.without_background(torch.where((count > 0) & ~own.isnan(), mean, own))
