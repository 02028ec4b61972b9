"""The last layer of a classifier, which a head of several levels has once for each, and the energy of what it gives."""

from __future__ import annotations

import torch
from torch import Tensor

from ...instances import Head
from . import scores
from .base import Rows, Score


def linear(inputs: Tensor, weight: Tensor, bias: Tensor, which: Tensor) -> Tensor:
    """`weight[which] @ inputs + bias[which]` without a copy of the weights for each row.

    Args:
        inputs: (N, D).
        weight: (L, K, D).
        bias: (L, K).
        which: (N,) int64 in [0, L).

    Returns:
        (N, K) logits.
    """
    if len(weight) == 1:
        return inputs @ weight[0].T + bias[0]
    logits = inputs.new_empty(len(inputs), weight.shape[1])
    for level in range(len(weight)):
        own = which == level
        logits[own] = inputs[own] @ weight[level].T + bias[level]
    return logits


def head_energy(logits: Tensor, head: Head) -> Tensor:
    """(N,) what the head defines: JointEnergy for a sigmoid head (Wang et al. 2021), else Energy (Liu et al. 2020)."""
    return scores.joint_energy(logits) if head == "sigmoid" else scores.energy(logits, head)


class LevelMean:
    """Streaming mean of the inputs of each level, in float64."""

    def __init__(self) -> None:
        self.count = torch.zeros(0, dtype=torch.float64)
        self.total = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, inputs: Tensor, which: Tensor, levels: int) -> None:
        """Take in (N, D) inputs of the levels (N,) out of `levels`."""
        rows, level = inputs.detach().cpu().double(), which.cpu()
        if len(self.count) == 0:
            self.count = rows.new_zeros(levels)
            self.total = rows.new_zeros(levels, rows.shape[1])
        self.count.index_add_(0, level, rows.new_ones(len(rows)))
        self.total.index_add_(0, level, rows)

    @property
    def mean(self) -> Tensor:
        """(L, D) float64; a level without rows has the mean of all rows, and zeros where there are none at all."""
        own = self.total / self.count.clamp(min=1)[:, None]
        of_all = self.total.sum(0) / self.count.sum().clamp(min=1)
        return torch.where(self.count[:, None] > 0, own, of_all)


class OfMeanInputs(Score):
    """A score that learns from the mean inputs of each level and the weights. A subclass overrides `made`."""

    evidence = ("logits", "classifier")
    learns = True

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self._forget()

    def learn(self, rows: Rows) -> None:
        inputs, self._weight, which = rows.require("inputs", "weight", "which")
        self._mean.update(inputs, which, len(self._weight))

    def finish(self) -> None:
        if len(self._weight) == 0:
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        self.tensors = self.made(self._mean.mean.float(), self._weight.detach().cpu().float())
        self._forget()

    def made(self, mean: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """What is kept, by name.

        Args:
            mean: (L, D) float32 mean inputs of each level.
            weight: (L, K, D) float32.
        """
        raise NotImplementedError

    def _forget(self) -> None:
        self._mean, self._weight = LevelMean(), torch.zeros(0, 0, 0)
