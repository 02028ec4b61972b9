"""What each place of an image does to an answer, from few random masks: Bayesian linear regression on the places.

The answer w to a mask M (places that are kept) is c + sum_p beta_p (M_p - mean M_p) + noise. A Gaussian process is the
prior of beta: shapes that the effect may well have, each times a number of its own, and a smooth remainder whose
amplitude differs from place to place,

    beta = sum_s b_s phi_s + a * g,   b_s ~ N(0, tau),   g ~ GP(0, exp(-d^2 / 2 l^2)),   noise ~ N(0, s).

Amplitude a, length l, tau and s are those of the highest evidence (Rasmussen and Williams 2006, equations 2.25, 2.26
and 2.30), the common scale in closed form. What is left unsure is the posterior variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .places import bell

LENGTHS = (1 / 25, 1 / 12)
"""Tried for l: shares of a side of the map."""
TAUS = (0.3, 3.0)
"""Tried for tau: variance of the answers that a shape makes, over that which the remainder makes."""
NOISES = tuple(10 ** (k / 4) for k in range(-8, 3))
"""Tried for s, over the same."""
NUMBERS = 1 << 25
"""Of the products of masks and amplitudes that are held at once, which bounds the memory."""
SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class Effects:
    """Posterior of R answers on maps of (h, w) places.

    Attributes:
        mean: (R, h, w) change of the answer when a place goes from hidden to kept; 0 for an answer that never
            changes, NaN for one that is not finite.
        error: (R, h, w) its posterior standard deviation.
        evidence: (R,) log evidence of what was chosen, without constants.
    """

    mean: Tensor
    error: Tensor
    evidence: Tensor


def effects(answers: Tensor, masks: Tensor, amplitudes: Sequence[Tensor], shapes: Tensor) -> Effects:
    """Effects of places on answers.

    Args:
        answers: (N, R) to N masks.
        masks: (N, h, w), how far each place was kept; the kernels are made in their precision.
        amplitudes: Of the remainder: each (R, h, w) >= 0, up to a factor; the evidence chooses.
        shapes: (R, S, h, w), up to a factor; one that is 0 everywhere takes no part.
    """
    n, rows = answers.shape
    step = max(1, NUMBERS // max(1, n * masks.shape[1] * masks.shape[2]))
    away = masks - masks.mean(0)
    parts = [
        _few(answers[:, k : k + step].T.double(), away, [a[k : k + step] for a in amplitudes], shapes[k : k + step])
        for k in range(0, rows, step)
    ]
    if not parts:
        none = masks.new_zeros(0, *masks.shape[1:], dtype=torch.float32)
        return Effects(none, none, none.flatten(1).sum(1))
    return Effects(*(torch.cat([getattr(p, name) for p in parts]).float() for name in ("mean", "error", "evidence")))


def _few(answers: Tensor, away: Tensor, amplitudes: Sequence[Tensor], shapes: Tensor) -> Effects:
    (rows, n), (_, h, w) = answers.shape, away.shape
    known = answers.isfinite().all(1)
    centred = (answers - answers.mean(1, keepdim=True)).masked_fill(~known[:, None], 0.0)
    shapes, made = _answering(shapes.to(away.dtype).flatten(2), away)
    tried = list(product(range(len(amplitudes)), LENGTHS))
    best = answers.new_full((rows,), -torch.inf)
    chosen: list[tuple[int, float, float, float]] = [(0, LENGTHS[0], TAUS[0], NOISES[0])] * rows
    for which, length in tried:
        kernel = _Remainder(away, amplitudes[which].to(away.dtype), length).kernel()
        evidence, at = _evidence(kernel, made, centred).flatten(1).max(1)
        better = (evidence > best) & known
        best = torch.where(better, evidence, best)
        for k in better.nonzero()[:, 0].tolist():
            tau, noise = divmod(int(at[k]), len(NOISES))
            chosen[k] = (which, length, TAUS[tau], NOISES[noise])
    found = [answers.new_full((rows, h * w), torch.nan) for _ in range(2)]
    for k in known.nonzero()[:, 0].tolist():
        which, length, tau, noise = chosen[k]
        rest = _Remainder(away, amplitudes[which][k : k + 1].to(away.dtype), length)
        shape, answer = shapes[k].double(), made[k]
        across = rest.across()[0] + tau * answer.mT @ shape  # (N, P) cov(answer, beta)
        variance = rest.variance()[0] + tau * shape.square().sum(0)
        covariance = rest.kernel()[0] + tau * answer.mT @ answer
        factor = torch.linalg.cholesky(covariance + noise * torch.eye(n, dtype=covariance.dtype, device=away.device))
        turned, back = (
            torch.linalg.solve_triangular(factor, x, upper=False) for x in (centred[k][:, None], across)
        )
        scale = turned.square().mean()
        found[0][k] = (turned.mT @ back)[0]
        found[1][k] = (scale * (variance - back.square().sum(0)).clamp(min=0)).sqrt()
    still = known & (centred.abs().amax(1) <= SMALL)
    mean, error = (x.masked_fill(still[:, None], 0.0).view(rows, h, w) for x in found)
    return Effects(mean, error, best)


def _answering(shapes: Tensor, away: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes (R, S, P), scaled so that the answers (R, S, N) that each makes have variance 1, and these; 0 for none."""
    made = (shapes @ away.flatten(1).T).double()
    size = made.square().mean(2, keepdim=True).sqrt()
    usable = size > 1e-6 * shapes.abs().amax(2, keepdim=True).clamp(min=SMALL)
    shapes, made = (torch.where(usable, x / size.clamp(min=SMALL), 0.0) for x in (shapes, made))
    return shapes, made


def _evidence(kernel: Tensor, made: Tensor, answers: Tensor) -> Tensor:
    """(R, taus, noises) log evidence of answers (R, N), with the common scale at its best.

    The kernel (R, N, N) is taken apart once; the shapes' answers (R, S, N) come in by the matrix inversion lemma.
    """
    n, s = answers.shape[1], made.shape[1]
    values, vectors = torch.linalg.eigh(kernel)
    turned, along = (vectors.mT @ x for x in (answers[..., None], made.mT))  # (R, N, 1), (R, N, S)
    spread = values.clamp(min=0)[:, None] + answers.new_tensor(NOISES)[:, None]  # (R, noises, N)
    less = along[:, None] / spread[..., None]
    inner, seen = (less.mT @ x[:, None] for x in (along, turned))  # (R, noises, S, S), (R, noises, S, 1)
    square = (turned[:, None, :, 0].square() / spread).sum(2)
    volume = spread.log().sum(2)
    one = torch.eye(s, dtype=kernel.dtype, device=kernel.device)
    out = []
    for tau in TAUS:
        both = one + tau * inner
        explained = tau * (seen.mT @ torch.linalg.solve(both, seen))[..., 0, 0] if s else 0.0
        scale = ((square - explained) / n).clamp(min=SMALL**2)
        out.append(-0.5 * (volume + torch.linalg.slogdet(both)[1] + n * scale.log()))
    return torch.stack(out, 1)


class _Remainder:
    """The smooth part of R rows, scaled so that the answers that it makes have variance 1 in the mean."""

    def __init__(self, away: Tensor, amplitude: Tensor, length: float) -> None:
        down, across = (bell(side, length, away) for side in away.shape[1:])
        amplitude = amplitude / amplitude.flatten(1).amax(1)[:, None, None].clamp(min=SMALL)
        shaped = away * amplitude[:, None]  # (R, N, h, w)
        self.spread = (down @ shaped @ across).flatten(2)
        self.gram = (self.spread @ shaped.flatten(2).mT).double()
        self.scale = self.gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=SMALL)
        self.amplitude = amplitude.flatten(1)

    def kernel(self) -> Tensor:
        """(R, N, N) covariance of the answers."""
        return self.gram / self.scale[:, None, None]

    def across(self) -> Tensor:
        """(R, N, P) covariance of answers and effects."""
        return (self.spread * self.amplitude[:, None]).double() / self.scale[:, None, None]

    def variance(self) -> Tensor:
        """(R, P) of the effects."""
        return self.amplitude.double().square() / self.scale[:, None]
