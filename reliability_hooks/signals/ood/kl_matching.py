"""KL matching: is the distribution over the classes one that known objects of some class have?"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...instances import Head
from .base import Info, Rows, Score, column
from .scores import probabilities

FLOOR = math.log(torch.finfo(torch.float32).tiny)
"""Least log of a typical probability: one that is 0 in float32 keeps the divergence finite."""


def posteriors(logits: Tensor, head: Head) -> Tensor:
    """(N, K) softmax probabilities; for a sigmoid head (N, 2K): of yes, then of no, each without rounding 1 - p."""
    p = probabilities(logits, head)
    return torch.cat([p, (-logits.float()).sigmoid()], 1) if head == "sigmoid" else p


def kl_matching(logits: Tensor, head: Head, log_typical: Tensor) -> Tensor:
    """min_k KL(p, d_k) >= 0 (Hendrycks et al. 2022, "Scaling OOD detection for real-world settings").

    For a sigmoid head, whose probabilities are no distribution over the classes, KL is the mean over the classes of
    the divergence of the two Bernoulli distributions.

    Args:
        logits: (N, K).
        head: How they become probabilities.
        log_typical: (C, K) logs of the mean softmax probabilities d_k of C classes; (C, 2K) of the mean `posteriors`
            for a sigmoid head.

    Raises:
        ValueError: No typical distribution, or one of another width.
    """
    p = posteriors(logits, head)
    if len(log_typical) == 0 or log_typical.shape[1] != p.shape[1]:
        raise ValueError(f"typical distributions must be (C, {p.shape[1]}), C > 0, not {tuple(log_typical.shape)}")
    divergence = -torch.special.entr(p).sum(1) - (p @ log_typical.T).amax(1)
    least: Tensor = divergence.clamp(min=0)  # rounding alone makes it negative
    return least / logits.shape[1] if head == "sigmoid" else least


class KLMatching(Score):
    """Divergence from the nearest of the mean probabilities of the objects *predicted* to be of each class.

    The prediction is the detector's label. A class that was never predicted while learning has no typical distribution
    and is not matched with. The mean is over all objects, so it takes (K, K) numbers, (K, 2K) for a sigmoid head.
    """

    name = "ood/kl_matching"
    info = Info(
        "KL matching",
        "Hendrycks et al. 2022, Scaling Out-of-Distribution Detection for Real-World Settings",
        "logits; learns the mean probabilities of each predicted class",
    )
    evidence = ("logits",)
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self._total = self._count = torch.zeros(0, dtype=torch.float64)

    def learn(self, rows: Rows) -> None:
        (logits,) = rows.require("logits")
        assert rows.head is not None
        known = rows.classes >= 0
        p, own = posteriors(logits[known], rows.head).detach().cpu().double(), rows.classes[known].cpu()
        if len(self._count) == 0:
            self._count = p.new_zeros(logits.shape[1])
            self._total = p.new_zeros(logits.shape[1], p.shape[1])
        self._total.index_add_(0, own, p)
        self._count.index_add_(0, own, p.new_ones(len(p)))

    def finish(self) -> None:
        seen = self._count > 0
        if not bool(seen.any()):
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        typical = self._total[seen] / self._count[seen, None]
        self.tensors = {"log_typical": typical.log().clamp(min=FLOOR).float()}
        self._total = self._count = torch.zeros(0, dtype=torch.float64)

    def score(self, rows: Rows) -> Tensor:
        (logits,) = rows.require("logits")
        assert rows.head is not None
        return kl_matching(logits, rows.head, self.learnt("log_typical", logits))
