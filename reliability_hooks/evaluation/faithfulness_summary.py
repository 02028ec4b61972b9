"""How methods of explanation compare: means of their scores over the same instances, paired over images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import Estimate, image_bootstrap, paired_bootstrap
from .checks import column, ratio

#: method -> score -> (N,) values of the N instances.
Scores = Mapping[str, Mapping[str, ArrayLike]]


def mean(values: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Weighted mean; NaN where there is nothing."""
    x = np.asarray(values, np.float64)
    w = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
    return ratio(float((w * x).sum()), float(w.sum()))


def faithfulness_summary(
    scores: Scores,
    image_ids: ArrayLike,
    *,
    against: str | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Estimate]]:
    """Means of each score with intervals over images, and differences from one method, paired.

    A score is taken over the instances for which every method has it (f0 = 0, for one, leaves none): otherwise a method
    would gain from what it cannot answer. How many were left out stands in the protocol, as `left_out`.

    Args:
        scores: method -> score -> (N,) numbers or booleans, such as `{"D-RISE": {"area OA": faithfulness.oa, ...}}`;
            the same scores for each method. Tensors on another device come as `.cpu()`.
        image_ids: (N,) image of each instance.
        against: a method; its differences come as score "area OA - D-RISE" of every other method.
        draws: of the bootstrap.
        level: of the intervals, in (0, 1).
        seed: of the bootstrap.
        protocol: of the scores, such as `Faithfulness.protocol`.

    Returns:
        method -> score -> `Estimate`.

    Raises:
        ValueError: methods have different scores, lengths differ, or `against` is no method.
    """
    ids = np.asarray(image_ids)
    if against is not None and against not in scores:
        raise ValueError(f"against={against!r} is none of the methods {', '.join(scores)}")
    names = list(next(iter(scores.values()), {}))
    for method, own in scores.items():
        if set(own) != set(names):
            raise ValueError(f"all methods need the same scores: {method} has {sorted(own)}, not {sorted(names)}")
    out: dict[str, dict[str, Estimate]] = {method: {} for method in scores}
    for name in names:
        value = {m: column(f"{m}: {name}", own[name], len(ids)).astype(np.float64) for m, own in scores.items()}
        keep = np.logical_and.reduce([np.isfinite(v) for v in value.values()])
        said = {**(protocol or {}), "left_out": int((~keep).sum())}
        kept = {m: v[keep] for m, v in value.items()}
        for method, v in kept.items():
            found = image_bootstrap({name: mean}, ids[keep], v, draws=draws, level=level, seed=seed, protocol=said)
            out[method] |= found
            if against is not None and method != against:
                out[method][f"{name} - {against}"] = paired_bootstrap(
                    mean, ids[keep], [v], [kept[against]], draws, level, seed,
                    protocol={**said, "against": against},
                )  # fmt: skip
    return out
