"""Out-of-distribution scores from the logits of each object. Higher = more out-of-distribution.

Functions of (N, K) logits, with the background's column already dropped; each gives (N,) float32. They take the kind
of head, because a softmax over a head that was trained as K separate yes/no questions has no meaning: a score asked
of a head for which it is not defined raises ValueError and names the one that is. A row with a NaN gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ...instances import Head

F = TypeVar("F", bound=Callable[..., Tensor])
CELLS = 1 << 19
"""Numbers in the parts that many logits are taken in on a CPU: what is made of them on the way stays in the cache."""


def _in_parts(score: F) -> F:
    @wraps(score)
    def whole(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _check(logits)
        rows = max(1, CELLS // logits.shape[1])
        if len(logits) <= rows or logits.device.type != "cpu":
            return score(logits, *args, **kwargs)
        return torch.cat([score(part, *args, **kwargs) for part in torch.split(logits, rows)])

    return cast(F, whole)


def probabilities(logits: Tensor, head: Head) -> Tensor:
    """(N, K) logits -> float32 probabilities: softmax over the given columns, or a sigmoid for each."""
    _check(logits)
    return logits.float().sigmoid() if head == "sigmoid" else logits.float().softmax(-1)


@_in_parts
def msp(logits: Tensor, head: Head) -> Tensor:
    """Maximum softmax probability, negated: -max p in [-1, 0] (Hendrycks & Gimpel 2017).

    For a sigmoid head p is the sigmoid: -max_c sigmoid(f_c), the same ranking as `max_logit`.
    """
    return -probabilities(logits, head).amax(-1)


def max_logit(logits: Tensor) -> Tensor:
    """-max_c f_c (Hendrycks et al. 2022, "Scaling OOD detection for real-world settings"); any head."""
    _check(logits)
    return -logits.float().amax(-1)


@_in_parts
def energy(logits: Tensor, head: Head = "softmax", temperature: float = 1.0) -> Tensor:
    """-T log sum_c exp(f_c / T) (Liu et al. 2020, eq. 4); softmax heads only.

    Raises:
        ValueError: A sigmoid head, or a temperature that is not positive.
    """
    _check(logits)
    if head == "sigmoid":
        raise ValueError("energy is defined by a softmax head; for a sigmoid head use joint_energy")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    return (logits.float() / temperature).logsumexp(-1).mul(-temperature)


@_in_parts
def joint_energy(logits: Tensor, head: Head = "sigmoid") -> Tensor:
    """-sum_c log(1 + exp f_c) (Wang et al. 2021, "Can multi-label classification networks know what they don't know?").

    Raises:
        ValueError: A softmax head.
    """
    _check(logits)
    if head != "sigmoid":
        raise ValueError("joint_energy is defined by a sigmoid head; for a softmax head use energy")
    total: Tensor = softplus(logits.float()).sum(-1)
    return -total


@_in_parts
def entropy(logits: Tensor, head: Head = "softmax") -> Tensor:
    """-sum_c p_c log p_c in nats, in [0, log K]; softmax heads only.

    Raises:
        ValueError: A sigmoid head.
    """
    if head == "sigmoid":
        raise ValueError("entropy over classes is defined by a softmax head; for a sigmoid head use binary_entropy")
    return _entr(probabilities(logits, head)).sum(-1)


@_in_parts
def binary_entropy(logits: Tensor, head: Head = "sigmoid") -> Tensor:
    """Sum of the entropies of the K yes/no answers, in nats, in [0, K log 2]; sigmoid heads only.

    Raises:
        ValueError: A softmax head.
    """
    _check(logits)
    if head != "sigmoid":
        raise ValueError("binary_entropy is defined by a sigmoid head; for a softmax head use entropy")
    f = logits.float()
    return (_entr(f.sigmoid()) + _entr((-f).sigmoid())).sum(-1)


@_in_parts
def gen(logits: Tensor, head: Head, gamma: float = 0.1, top: int | None = None) -> Tensor:
    """Generalised entropy: sum over the `top` largest p of p^gamma (1 - p)^gamma (Liu et al. 2023, GEN, eq. 2 and 3).

    Summed as published, not averaged. Works with logarithms: at gamma = 0.1 a p of 1 - 1e-9, which is 1 in float32,
    still adds 0.13, and a clamp would bend the score. For a sigmoid head p are the sigmoids.

    Args:
        logits: (N, K).
        head: How they become probabilities.
        gamma: In (0, 1).
        top: Number of largest probabilities; None for all (the paper takes 100 of 1,000 classes).

    Raises:
        ValueError: gamma or top out of range.
    """
    _check(logits)
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must lie in (0, 1), not {gamma}")
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1 or None for all, not {top}")
    f = logits.float()
    ordered = f if top is None or top >= f.shape[-1] else f.topk(top).values
    if head == "sigmoid":
        log_both = logsigmoid(ordered) + logsigmoid(-ordered)
    else:
        log_p = ordered - f.logsumexp(-1, keepdim=True)
        log_both = log_p + _log1mexp(log_p)
        best = f.argmax(-1, keepdim=True)
        others = f.scatter(-1, best, -torch.inf).logsumexp(-1, keepdim=True) - f.logsumexp(-1, keepdim=True)
        at = best if ordered is f else torch.zeros_like(best)
        log_both = log_both.scatter(-1, at, log_p.gather(-1, at) + others)  # 1 - p of the largest, without rounding
    return (gamma * log_both).exp().sum(-1)


def _entr(p: Tensor) -> Tensor:
    """-p log p, 0 at 0: safe where p underflows."""
    value: Tensor = torch.special.entr(p)
    return value


def _log1mexp(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)) for log_p <= log(1/2); what rounding leaves above is overwritten by the caller."""
    return (-log_p.exp()).log1p()


def _check(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (N, K) with at least one class, not {tuple(logits.shape)}")
