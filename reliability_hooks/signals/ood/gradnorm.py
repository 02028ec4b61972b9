"""GradNorm: how hard would the last layer have to be pulled to make the object look like no class?"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ...instances import Head
from .base import Info, Rows, Score, column
from .scores import probabilities


def gradnorm(logits: Tensor, inputs: Tensor, head: Head) -> Tensor:
    """-|z|_1 |p - u|_1 (Huang et al. 2021): the L1 norm of a gradient of the last layer's weights, negated.

    Softmax: the loss is the cross-entropy to the uniform distribution u = 1/K, -(1/K) sum_c log p_c. Its gradient is
    p - u by the logits, so by the weights of `f = W z + b` the outer product (p - u) z', whose L1 norm is the
    product of both norms. Nothing has to be differentiated.

    Sigmoid: the analogue is the sum of the binary cross-entropies to 1/2, -(1/2) sum_c [log s_c + log(1 - s_c)] with
    s = sigmoid(f). By the logits its gradient is s - 1/2, so the score is -|z|_1 sum_c |s_c - 1/2|. Where no class is
    likely every term is near 1/2, as it is for one sure class of many: what is left there is mostly |z|_1.

    Args:
        logits: (N, K).
        inputs: (N, D) z, what the last layer sees.
        head: How logits become probabilities.

    Returns:
        (N,) float32 <= 0.
    """
    p = probabilities(logits, head)
    away = (p - 0.5) if head == "sigmoid" else (p - 1 / p.shape[1])
    return -inputs.float().abs().sum(1) * away.abs().sum(1)


class GradNorm(Score):
    """Norm of the gradient that would make the classes uniform, negated, in closed form for the last layer."""

    name = "ood/gradnorm"
    info = Info(
        "GradNorm",
        "Huang et al. 2021, On the Importance of Gradients for Detecting Distributional Shifts in the Wild",
        "logits and the classifier's inputs",
        "negated",
    )
    evidence = ("logits", "classifier")
    columns: ClassVar = column(name)

    def score(self, rows: Rows) -> Tensor:
        logits, inputs = rows.require("logits", "inputs")
        assert rows.head is not None
        return gradnorm(logits, inputs, rows.head)
