"""GEN of the largest probabilities only, as its authors use it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from . import scores
from .base import Info, Rows, Score, column


class GENTop(Score):
    """GEN with gamma = .1 over the tenth of the classes with the largest probabilities, at least one (M = K / 10).

    The authors take 100 of ImageNet's 1,000 classes; `ood/logits/gen` takes all.
    """

    name = "ood/gen_top"
    info = Info("GEN, top tenth", "Liu et al. 2023, GEN: Pushing the limits of softmax-based OOD detection", "logits")
    evidence: ClassVar = ("logits",)
    columns = column(name)

    def score(self, rows: Rows) -> Tensor:
        (logits,) = rows.require("logits")
        assert rows.head is not None
        return scores.gen(logits, rows.head, top=max(1, round(logits.shape[1] / 10)))
