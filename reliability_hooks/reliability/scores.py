"""Scores, logits and labelled rows: what every calibrator starts from."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-4
"""Scores and probabilities enter logarithms no closer to 0 and 1 than this."""


def as_scores(scores: Tensor) -> Tensor:
    """Scores (N,) as float64 on the CPU, NaN kept. Raises ValueError for a wrong shape or range."""
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape (N,), got {tuple(scores.shape)}")
    s = scores.detach().cpu().to(torch.float64)
    if bool(((s < -EPS) | (s > 1 + EPS)).any()):
        raise ValueError("scores must lie in [0, 1]: give probabilities, not logits")
    return s.clamp(0.0, 1.0)


def logit(p: Tensor) -> Tensor:
    """log(p / (1 - p)) with p clipped to [EPS, 1 - EPS]; NaN stays NaN."""
    p = p.clamp(EPS, 1 - EPS)
    return p.log() - (-p).log1p()


def labelled_rows(scores: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with a known score and positive weight, as float64 on the CPU.

    Args:
        scores: (N,) in [0, 1], NaN where unknown.
        target: (N,) bool, or float in [0, 1].
        weight: (N,) not negative, or None for ones.

    Raises:
        ValueError: shapes or ranges are wrong, or no row is left.
    """
    s = as_scores(scores)
    t = target.detach().cpu().to(torch.float64)
    w = torch.ones_like(s) if weight is None else weight.detach().cpu().to(torch.float64)
    if t.shape != s.shape or w.shape != s.shape:
        raise ValueError(
            f"scores {tuple(s.shape)}, target {tuple(t.shape)} and weight {tuple(w.shape)} must be (N,) alike"
        )
    if bool((~((t >= 0) & (t <= 1))).any()) or bool((~((w >= 0) & w.isfinite())).any()):
        raise ValueError("target must lie in [0, 1] and weight must be finite and not negative")
    rows = ~s.isnan() & (w > 0)
    if not bool(rows.any()):
        raise ValueError(
            "a calibrator needs at least 1 labelled detection (about 100 to be of use), got 0: label images"
        )
    return s[rows], t[rows], w[rows]


def image_codes(image: Tensor | None, n: int, what: str = "image") -> Tensor:
    """Any integer ids (N,) as 0, 1, ..., on the CPU; None: each row by itself. Raises ValueError for a wrong shape."""
    if image is None:
        return torch.arange(n)
    if image.shape != (n,):
        raise ValueError(f"{what} must have shape ({n},), one id for each detection, got {tuple(image.shape)}")
    codes: Tensor = torch.unique(image.detach().cpu(), return_inverse=True)[1]
    return codes


def smoothed_rate(target: Tensor, weight: Tensor) -> Tensor:
    """Laplace's rule of succession: one right and one wrong row are added."""
    return ((weight * target).sum() + 1) / (weight.sum() + 2)


def is_flat(values: Tensor) -> bool:
    """Whether all values (N,), N >= 1, are the same."""
    return bool(values.min() == values.max())
