"""Out-of-distribution scores from the logits of each object. Higher = more out-of-distribution.

Functions of (N, K) logits, with the background's column already dropped; each gives (N,) float32. They take the kind
of head, because a softmax over a head that was trained as K separate yes/no questions has no meaning: a score asked
of a head for which it is not defined raises ValueError and names the one that is. A row with a NaN gives NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ...instances import Head

FAINT = 1e-30
"""A sum of probabilities under this may have lost some to underflow."""


def probabilities(logits: Tensor, head: Head) -> Tensor:
    """(N, K) logits -> float32 probabilities: softmax over the given columns, or a sigmoid for each."""
    _check(logits)
    return logits.float().sigmoid() if head == "sigmoid" else logits.float().softmax(-1)


def msp(logits: Tensor, head: Head) -> Tensor:
    """Maximum softmax probability, negated: -max p in [-1, 0] (Hendrycks & Gimpel 2017).

    For a sigmoid head p is the sigmoid: -max_c sigmoid(f_c), the same ranking as `max_logit`.
    """
    return -probabilities(logits, head).amax(-1)


def max_logit(logits: Tensor) -> Tensor:
    """-max_c f_c (Hendrycks et al. 2022, "Scaling OOD detection for real-world settings"); any head."""
    _check(logits)
    return -logits.float().amax(-1)


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
    f = logits.float()
    return -f.logsumexp(-1) if temperature == 1 else (f / temperature).logsumexp(-1).mul(-temperature)


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


def entropy(logits: Tensor, head: Head = "softmax") -> Tensor:
    """-sum_c p_c log p_c in nats, in [0, log K]; softmax heads only.

    Raises:
        ValueError: A sigmoid head.
    """
    if head == "sigmoid":
        raise ValueError("entropy over classes is defined by a softmax head; for a sigmoid head use binary_entropy")
    _check(logits)
    log_p = logits.float().log_softmax(-1).clamp(min=-1e4)  # p log p is 0 where p is, a class at -inf too
    return torch.einsum("nk,nk->n", log_p.exp(), log_p).neg().clamp(min=0)


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
    if top is not None and top < f.shape[-1]:
        return _gen_terms(f, head, gamma).gather(-1, f.topk(top).indices).sum(-1)
    return _gen_terms(f, head, gamma).sum(-1)


def rank_gen(logits: Tensor, head: Head, gamma: float = 0.1) -> Tensor:
    """GEN without the choice of M: the mean over M = 1 ... K of GEN of the M largest probabilities, divided by M.

    The class of rank r so has the weight (1/K) sum over M >= r of 1/M, about log(K / r) / K. Ours; the published score
    takes one M and sums (`gen`).

    Args:
        logits: (N, K).
        head: How they become probabilities.
        gamma: In (0, 1).

    Raises:
        ValueError: gamma out of range.
    """
    _check(logits)
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must lie in (0, 1), not {gamma}")
    f = logits.float()
    k = f.shape[-1]
    inverse = 1 / torch.arange(1, k + 1, device=f.device, dtype=torch.float64)
    weight = (inverse.flip(0).cumsum(0).flip(0) / k).float()
    order = f.argsort(-1, descending=True)
    return (_gen_terms(f, head, gamma).gather(-1, order) * weight).sum(-1)


def _gen_terms(f: Tensor, head: Head, gamma: float) -> Tensor:
    """(N, K) p^gamma (1 - p)^gamma of each class."""
    if head == "sigmoid":
        return (logsigmoid(f) + logsigmoid(-f)).mul_(gamma).exp_()
    log_p = f.log_softmax(-1)
    best = log_p.argmax(-1, keepdim=True)
    others = log_p.exp().scatter_(-1, best, 0.0)
    rest = others.sum(-1, keepdim=True)  # 1 - p of the largest, without rounding
    log_rest, faint = rest.log(), (rest < FAINT).squeeze(-1)
    if bool(faint.any()):
        log_rest[faint] = log_p[faint].scatter_(-1, best[faint], -torch.inf).logsumexp(-1, keepdim=True)
    return others.neg_().log1p_().scatter_(-1, best, log_rest).add_(log_p).mul_(gamma).exp_()


def _entr(p: Tensor) -> Tensor:
    """-p log p, 0 at 0: safe where p underflows."""
    value: Tensor = torch.special.entr(p)
    return value


def _check(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (N, K) with at least one class, not {tuple(logits.shape)}")
