"""NNGuide: the energy, believed as far as known objects of like features had much of it too."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...instances import Head
from .base import Info, Rows, Score, column
from .last_layer import head_energy
from .reservoir import Reservoir

CAPACITY = 5_000
NEIGHBOURS = 10
CHUNK = 1_024
"""Rows compared with the bank at once."""


def bank_rows(logits: Tensor, features: Tensor, head: Head) -> Tensor:
    """(N, D) unit features of known objects, each times its negated energy."""
    return normalize(features.float(), dim=1) * -head_energy(logits, head)[:, None]


def nnguide(logits: Tensor, features: Tensor, head: Head, bank: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """-S(x) * mean of the k largest <zn, S_i zn_i> (Park et al. 2023), S = log sum exp f.

    For a sigmoid head S is the negated JointEnergy. A bank of fewer than k rows is used whole; a feature of length 0
    has no guidance and the score 0.

    Args:
        logits: (N, K).
        features: (N, D) z; zn = z / |z|.
        head: How logits become probabilities.
        bank: (B, D) of `bank_rows`.
        neighbours: k.

    Raises:
        ValueError: An empty bank, or k < 1.
    """
    if len(bank) == 0 or neighbours < 1:
        raise ValueError(f"nnguide needs a bank and neighbours >= 1, not {len(bank)} rows and {neighbours}")
    k = min(neighbours, len(bank))
    parts = torch.split(normalize(features.float(), dim=1), CHUNK)
    guidance = torch.cat([(part @ bank.T).topk(k, 1).values.mean(1) for part in parts])
    return guidance * head_energy(logits, head)


class NNGuide(Score):
    """Energy times the likeness to known objects, each weighted by its own energy; negated.

    The bank is a uniform sample of at most `CAPACITY` objects.
    """

    name = "ood/nnguide"
    info = Info(
        "NNGuide",
        "Park et al. 2023, Nearest Neighbor Guidance for Out-of-Distribution Detection",
        "logits and features; learns a bank of features",
        "negated; JointEnergy for a sigmoid head",
    )
    evidence = ("logits", "features")
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self._bank = Reservoir(CAPACITY)

    def learn(self, rows: Rows) -> None:
        logits, features = rows.require("logits", "features")
        assert rows.head is not None
        self._bank.update(bank_rows(logits, features, rows.head))

    def finish(self) -> None:
        if self._bank.seen == 0:
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        self.tensors = {"bank": self._bank.rows}
        self._bank = Reservoir(CAPACITY)

    def score(self, rows: Rows) -> Tensor:
        logits, features = rows.require("logits", "features")
        assert rows.head is not None
        return nnguide(logits, features, rows.head, self.learnt("bank", features))
