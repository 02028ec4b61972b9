"""Does a map depend on the model, repeat with another seed, and do its error bars hold?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 21  # numbers that are ranked at once: bounds the memory to some hundred megabytes


def randomisation(maps: Tensor, randomised: Tensor, absolute: bool = False) -> Tensor:
    """Rank correlation with the maps of the model with random parameters (Adebayo et al., NeurIPS 2018); low is good.

    Args:
        maps: (N, h, w) of the model.
        randomised: (N, h, w), or (L, N, h, w) for L stages of a cascade of layers.
        absolute: compare absolute values.

    Returns:
        (N,) or (L, N), Spearman's correlation in [-1, 1]; ties take their mean rank, NaN is least salient. NaN where
        one of the two maps is constant.

    Raises:
        ValueError: shapes differ.
    """
    if maps.ndim != 3 or randomised.ndim not in (3, 4) or randomised.shape[-3:] != maps.shape:
        raise ValueError(f"randomised maps must be like the maps {tuple(maps.shape)}, got {tuple(randomised.shape)}")
    stages = randomised.unsqueeze(0) if randomised.ndim == 3 else randomised
    a, b = (maps.abs(), stages.abs()) if absolute else (maps, stages)
    out = _correlations([a, *b])[:, 0, 1:].T
    return out[0] if randomised.ndim == 3 else out


def seed_stability(runs: Sequence[Tensor]) -> Tensor:
    """Mean rank correlation over all pairs of runs that differ in their seed only; high is good.

    Args:
        runs: at least two of (N, h, w).

    Returns:
        (N,) in [-1, 1]; NaN where a run's map is constant.

    Raises:
        ValueError: fewer than two runs, or shapes differ.
    """
    if len(runs) < 2 or any(run.ndim != 3 or run.shape != runs[0].shape for run in runs):
        raise ValueError(f"at least two runs of one shape (N, h, w) are needed, got {[tuple(r.shape) for r in runs]}")
    upper = torch.triu_indices(len(runs), len(runs), 1)
    return _correlations(runs)[:, upper[0], upper[1]].mean(1)


def coverage(
    mean: Tensor, error: Tensor, reference: Tensor, level: float = 0.9, reference_error: Tensor | None = None
) -> Tensor:
    """Share of a map's cells whose reference lies within the error bar of the level; good is the level itself.

    Args:
        mean: (N, ...) the map's cells.
        error: (N, ...) its standard error, >= 0, taken as that of a normal distribution.
        reference: (N, ...) the same map from many more passes; cells of NaN are left out.
        level: of the two-sided interval, in (0, 1).
        reference_error: (N, ...) standard error of the reference, independent of the map's: without it the reference
            is taken as exact, and coverage reads too low.

    Returns:
        (N,) in [0, 1]; a NaN in mean or error is not covered; NaN where no cell is left.

    Raises:
        ValueError: shapes differ, `level` is outside (0, 1), or an error is negative.
    """
    others = [error, reference, *([] if reference_error is None else [reference_error])]
    if mean.ndim < 1 or any(other.shape != mean.shape for other in others):
        raise ValueError(f"mean {tuple(mean.shape)}, error and reference must have one shape: "
                         f"got {[tuple(o.shape) for o in others]}")  # fmt: skip
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if (error < 0).any() or (reference_error is not None and (reference_error < 0).any()):
        raise ValueError("a standard error is negative")
    wide = error if reference_error is None else torch.hypot(error, reference_error)
    z = torch.special.ndtri(mean.new_tensor((1 + level) / 2))
    held = ((reference - mean).abs() <= z * wide).unsqueeze(-1).flatten(1)
    counts = ~reference.isnan().unsqueeze(-1).flatten(1)
    share: Tensor = (held & counts).sum(1) / counts.sum(1)
    return share


def _correlations(runs: Sequence[Tensor]) -> Tensor:
    """Spearman's correlation (N, S, S) between S runs of (N, h, w), some instances at a time."""
    n, height, width = runs[0].shape
    at_once = max(1, _CHUNK // max(1, len(runs) * height * width))
    out = torch.empty((n, len(runs), len(runs)), dtype=torch.float64, device=runs[0].device)
    for begin in range(0, n, at_once):
        some = slice(begin, begin + at_once)
        z = _mean_ranks(torch.stack([run[some].flatten(1) for run in runs], 1))
        z = z - z.mean(2, keepdim=True)
        z = z / torch.linalg.vector_norm(z, dim=2, keepdim=True)  # 0 / 0 = NaN: a constant map has no order
        out[some] = (z @ z.mT).clamp(-1, 1)
    return out


def _mean_ranks(x: Tensor) -> Tensor:
    """Ranks (..., P) float64 along the last dimension, from 0; equal values share the mean of their places."""
    value, order = x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).sort(-1)
    place = torch.arange(x.shape[-1], device=x.device).expand_as(order)
    starts = torch.ones_like(value, dtype=torch.bool)
    starts[..., 1:] = value[..., 1:] != value[..., :-1]
    ends = starts.roll(-1, -1)  # the last place ends a group, as the first one starts one
    first = torch.where(starts, place, 0).cummax(-1).values
    last = torch.where(ends, place, x.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return torch.empty(x.shape, dtype=torch.float64, device=x.device).scatter_(-1, order, (first + last).double() / 2)
