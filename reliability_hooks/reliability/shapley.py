"""Exact Shapley values of a few groups of inputs."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial

import torch
from torch import Tensor

MOST = 14
"""Groups: 16,384 coalitions."""


def coalitions(groups: int) -> Tensor:
    """(2^G, G) bool: every set of groups; row k holds group g where bit g of k is set.

    Raises:
        ValueError: More groups than can be counted out.
    """
    if not 0 <= groups <= MOST:
        raise ValueError(f"exact Shapley values are for at most {MOST} groups, not {groups}: join some")
    return (torch.arange(2**groups)[:, None] >> torch.arange(groups)) & 1 == 1


def shapley(value: Callable[[Tensor], Tensor], groups: int) -> Tensor:
    """(G, N) float64: what each group adds, averaged over all orders (Shapley 1953).

    They sum to the value with all groups minus that with none.

    Args:
        value: (2^G, G) bool coalitions -> (2^G, N) values of N things.
        groups: G.

    Raises:
        ValueError: Too many groups.
    """
    sets = coalitions(groups)
    values = value(sets).double()
    sizes = sets.sum(1)
    shares = []
    for g in range(groups):
        without = (~sets[:, g]).nonzero()[:, 0]
        weight = torch.tensor(
            [factorial(k) * factorial(groups - k - 1) / factorial(groups) for k in sizes[without].tolist()],
            dtype=torch.float64,
        )
        shares.append(weight @ (values[without + 2**g] - values[without]))
    return torch.stack(shares) if shares else values.new_zeros(0, values.shape[1])
