"""ASH-S and SCALE: the energy once the activations have been sharpened by how much of their sum the largest hold."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Info, Rows, Score, column
from .last_layer import head_energy, linear

ASH_PRUNED = 0.9
SCALE_PRUNED = 0.85
"""Shares of the activations outside the largest; customary with ImageNet."""


def sharpening(inputs: Tensor, pruned: float) -> tuple[Tensor, Tensor]:
    """The largest activations of each row and the factor exp(sum of all / sum of the largest).

    Both papers assume activations >= 0. With negative ones (SiLU) the formula is kept: the sum of all may be the
    smaller one, even negative, and the factor then lies in (0, e). It never exceeds exp(D / k). Where the k largest
    have no positive sum the quotient has no meaning; the factor is 0, its limit as their sum falls to 0, and what
    is left of the logits is the bias. A row of zeros is the same whatever its factor.

    Args:
        inputs: (N, D), not changed.
        pruned: Share of the activations that are not among the largest, in [0, 1); k = D - round(D * pruned), at least
            one.

    Returns:
        (N, k) int64 columns of the largest and (N,) factor.

    Raises:
        ValueError: `pruned` out of range.
    """
    if not 0 <= pruned < 1:
        raise ValueError(f"pruned must lie in [0, 1), not {pruned}")
    width = inputs.shape[1]
    values, largest = inputs.topk(max(width - round(width * pruned), min(width, 1)), 1)
    top = values.sum(1)
    positive = top > 0
    quotient = inputs.sum(1) / torch.where(positive, top, 1)
    return largest, torch.where(positive, quotient.exp(), 0)


def ash_s(inputs: Tensor, pruned: float = ASH_PRUNED) -> Tensor:
    """(N, D): all but the largest set to 0, these times the factor (Djurisic et al. 2023, ASH-S)."""
    largest, factor = sharpening(inputs, pruned)
    kept = torch.zeros_like(inputs).scatter(1, largest, inputs.gather(1, largest))
    return kept * factor[:, None]


def scale(inputs: Tensor, pruned: float = SCALE_PRUNED) -> Tensor:
    """(N, D): all activations times the factor (Xu et al. 2024)."""
    return inputs * sharpening(inputs, pruned)[1][:, None]


class ASH(Score):
    """Energy of the largest activations alone, sharpened (JointEnergy for a sigmoid head)."""

    name = "ood/ash"
    info = Info(
        "ASH-S",
        "Djurisic et al. 2023, Extremely Simple Activation Shaping for Out-of-Distribution Detection",
        "the classifier's inputs and weights",
        "energy: negated log-sum-exp; JointEnergy for a sigmoid head",
    )
    evidence = ("logits", "classifier")
    columns: ClassVar = column(name)

    def shape(self, inputs: Tensor) -> Tensor:
        """(N, D) activations as the last layer is to see them."""
        return ash_s(inputs)

    def score(self, rows: Rows) -> Tensor:
        inputs, weight, bias, which = rows.require("inputs", "weight", "bias", "which")
        assert rows.head is not None
        return head_energy(linear(self.shape(inputs), weight, bias, which), rows.head)


class SCALE(ASH):
    """Energy of all activations, sharpened by the same factor (JointEnergy for a sigmoid head)."""

    name = "ood/scale"
    info = Info(
        "SCALE",
        "Xu et al. 2024, Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement",
        "the classifier's inputs and weights",
        "energy: negated log-sum-exp; JointEnergy for a sigmoid head",
    )
    columns: ClassVar = column(name)

    def shape(self, inputs: Tensor) -> Tensor:
        return scale(inputs)
