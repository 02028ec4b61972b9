"""ReAct and DICE: the energy once what is out of proportion in the last layer has been taken away."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...instances import Head
from .base import Info, Rows, Score, column
from .last_layer import OfMeanInputs, head_energy, linear
from .reservoir import Reservoir

CLIP = 0.9
"""ReAct: share of the known activations that stay as they are."""
DROP = 0.7
"""DICE: share of the weights that are dropped; its authors' choice with ImageNet."""
VALUES = 100_000
"""ReAct: activations kept of each level; the 0.9-quantile's rank is then off by about 0.1 % of them."""


def react(inputs: Tensor, weight: Tensor, bias: Tensor, which: Tensor, head: Head, limit: Tensor) -> Tensor:
    """Energy of head(min(z, c)) (Sun et al. 2021, "ReAct"), JointEnergy for a sigmoid head.

    Args:
        inputs: (N, D) z.
        weight: (L, K, D).
        bias: (L, K).
        which: (N,) int64 in [0, L).
        head: How logits become probabilities.
        limit: (L,) c; infinity clips nothing.
    """
    return head_energy(linear(torch.minimum(inputs, limit[which, None]), weight, bias, which), head)


def dice(
    inputs: Tensor, weight: Tensor, bias: Tensor, which: Tensor, head: Head, mean: Tensor, threshold: Tensor
) -> Tensor:
    """Energy with the weights of small contributions set to 0 (Sun & Li 2022, "DICE").

    A weight stays where `mean * weight`, its mean contribution, is above the threshold; the bias stays. JointEnergy
    for a sigmoid head.

    Args:
        inputs: (N, D) z.
        weight: (L, K, D).
        bias: (L, K).
        which: (N,) int64 in [0, L).
        head: How logits become probabilities.
        mean: (L, D) of the known inputs.
        threshold: (L,).
    """
    kept = weight * (mean[:, None] * weight > threshold[:, None, None])
    return head_energy(linear(inputs, kept, bias, which), head)


class ReAct(Score):
    """Energy after the activations are clipped at a quantile of those of known objects.

    Each level of a head has a quantile of its own, of a uniform sample of its activations; one that none of the learnt
    objects came from gets the mean of the others'. Negative activations (SiLU) stay as they are.
    """

    name = "ood/react"
    info = Info(
        "ReAct",
        "Sun et al. 2021, ReAct: Out-of-distribution Detection With Rectified Activations",
        "the classifier's inputs and weights; learns a quantile of the inputs",
        "energy: negated log-sum-exp; JointEnergy for a sigmoid head",
    )
    evidence = ("logits", "classifier")
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self._values: list[Reservoir] = []

    def learn(self, rows: Rows) -> None:
        inputs, weight, which = rows.require("inputs", "weight", "which")
        if not self._values:
            self._values = [Reservoir(VALUES, seed=level) for level in range(len(weight))]
        for level, values in enumerate(self._values):
            values.update(inputs[which == level].reshape(-1, 1))

    def finish(self) -> None:
        seen = torch.tensor([v.seen > 0 for v in self._values], dtype=torch.bool)
        if not bool(seen.any()):
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        limit = torch.zeros(len(seen))
        limit[seen] = torch.stack([v.rows.quantile(CLIP) for v in self._values if v.seen])
        self.tensors = {"limit": torch.where(seen, limit, limit[seen].mean())}
        self._values = []

    def score(self, rows: Rows) -> Tensor:
        inputs, weight, bias, which = rows.require("inputs", "weight", "bias", "which")
        assert rows.head is not None
        return react(inputs, weight, bias, which, rows.head, self.learnt("limit", inputs))


class DICE(OfMeanInputs):
    """Energy of the weights that contribute most for known objects.

    Each level of a head is sparsified by itself; one that none of the learnt objects came from goes by the mean input
    of all of them.
    """

    name = "ood/dice"
    info = Info(
        "DICE",
        "Sun & Li 2022, DICE: Leveraging Sparsification for Out-of-Distribution Detection",
        "the classifier's inputs and weights; learns the mean of the inputs",
        "energy: negated log-sum-exp; JointEnergy for a sigmoid head",
    )
    columns: ClassVar = column(name)

    def made(self, mean: Tensor, weight: Tensor) -> dict[str, Tensor]:
        contribution = (mean[:, None] * weight).flatten(1).numpy()
        return {"mean": mean, "threshold": torch.from_numpy(np.quantile(contribution, DROP, axis=1)).float()}

    def score(self, rows: Rows) -> Tensor:
        inputs, weight, bias, which = rows.require("inputs", "weight", "bias", "which")
        assert rows.head is not None
        mean, threshold = self.learnt("mean", inputs), self.learnt("threshold", inputs)
        return dice(inputs, weight, bias, which, rows.head, mean, threshold)
