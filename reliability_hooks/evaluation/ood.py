"""How well a score tells out-of-distribution (OOD) from in-distribution (ID): areas, FPR95, intervals.

Convention: **a higher score means more out-of-distribution**. Every metric takes `score` (N,), any real score; `is_ood`
(N,) of 0 and 1; `weight` (N,), non-negative multiplicities. Rows of equal score are one decision. A metric that lacks
one of the two kinds is NaN; NaN in `score` raises ValueError, but `ood_summary` leaves such rows out and counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import Estimate, Metric, image_bootstrap
from .checks import Floats, column, ratio
from .selective import aupr, auroc, fpr_at_tpr


def ood_auroc(score: ArrayLike, is_ood: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve: P(score of OOD > score of ID), ties counted half; the same whichever is positive.

    Raises:
        ValueError: shapes differ, the score has NaN, `is_ood` is not of 0 and 1, or a weight is negative.
    """
    return auroc(*_trust(score, is_ood), weight=weight)


def ood_aupr_out(score: ArrayLike, is_ood: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Average precision with OOD as the positive, the highest scores first; a guess gives the share of OOD.

    Raises:
        ValueError: as `ood_auroc`.
    """
    return aupr(*_trust(score, is_ood), positive="error", weight=weight)


def ood_aupr_in(score: ArrayLike, is_ood: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Average precision with ID as the positive, the lowest scores first; a guess gives the share of ID.

    Raises:
        ValueError: as `ood_auroc`.
    """
    return aupr(*_trust(score, is_ood), positive="correct", weight=weight)


def fpr95_id_positive(score: ArrayLike, is_ood: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Share of OOD that passes as ID at the first threshold that passes 95 % of ID (Liang et al. 2018).

    Raises:
        ValueError: as `ood_auroc`.
    """
    return fpr_at_tpr(*_trust(score, is_ood), positive="correct", weight=weight)


def fpr95_ood_positive(score: ArrayLike, is_ood: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Share of ID that is alarmed at the first threshold that alarms for 95 % of OOD (as in pytorch-ood).

    Raises:
        ValueError: as `ood_auroc`.
    """
    return fpr_at_tpr(*_trust(score, is_ood), positive="error", weight=weight)


#: The metrics of (score, is_ood).
OOD_METRICS: dict[str, Metric] = {
    f.__name__: f for f in (ood_auroc, ood_aupr_in, ood_aupr_out, fpr95_id_positive, fpr95_ood_positive)
}

_CONVENTION = {
    "ood_auroc": "P(score of OOD > score of ID), ties half",
    "ood_aupr_in": "average precision, ID positive",
    "ood_aupr_out": "average precision, OOD positive",
    "fpr95_id_positive": "share of OOD called ID where 95 % of ID is called ID",
    "fpr95_ood_positive": "share of ID called OOD where 95 % of OOD is called OOD",
}


def ood_summary(
    score: ArrayLike,
    is_ood: ArrayLike,
    image_ids: ArrayLike,
    *,
    all_images: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Estimate]:
    """`OOD_METRICS` with intervals over images; images of ID and of OOD are drawn each among themselves.

    They are separate samples, so the share of OOD is not left to chance. Rows whose score is NaN, where it is not
    defined, are left out and counted. The score is sorted once, not in every draw.

    Args:
        score: (N,) higher is more out-of-distribution; NaN where it is not defined.
        is_ood: (N,) of 0 and 1.
        image_ids: (N,) integers or strings, different in the ID and in the OOD set.
        all_images: ids of all images looked at, where some have no row; needs `strata`.
        strata: the sample from which each of `all_images` (of `image_ids` where that is None) comes. None: `is_ood`.
            Give one value to all where one sample of images shows both kinds.
        draws: of the bootstrap.
        level: coverage of the intervals.
        seed: of the bootstrap.
        protocol: what the caller knows: name of the score, data sets, score cut, ...

    Returns:
        name -> `Estimate`; its protocol has the convention, `n_id`, `n_ood` and `undefined`, `undefined_ood`: the rows
        left out, and those of OOD among them.

    Raises:
        ValueError: lengths differ, `is_ood` is not of 0 and 1, an image is of two strata, or `all_images` comes alone.
    """
    value, out = np.asarray(score, np.float64), _binary(is_ood)
    if value.ndim != 1 or value.shape != out.shape:
        raise ValueError(f"score and is_ood must be vectors of one length, got {value.shape} and {out.shape}")
    ids, defined = column("image_ids", image_ids, len(value)), ~np.isnan(value)
    if strata is None and all_images is not None:
        raise ValueError("all_images needs strata: the sample (ID or OOD) that each of these images comes from")
    if all_images is None:  # a row without a score still is part of its image's sample
        all_images, strata = ids, out if strata is None else strata
    rows = np.flatnonzero(defined)
    rows = rows[np.argsort(value[rows], kind="stable")]
    metrics = _ranked(value[rows], out[rows])
    found = image_bootstrap(metrics, ids[rows], value[rows], out[rows], draws=draws, level=level, seed=seed,
                            all_images=all_images, strata=strata)
    said = {
        "score": "higher is more out-of-distribution",
        "n_id": int((out[rows] == 0).sum()),
        "n_ood": int(out[rows].sum()),
        "undefined": int((~defined).sum()),
        "undefined_ood": int(out[~defined].sum()),
        **(protocol or {}),
    }
    return {
        name: replace(e, protocol={"convention": _CONVENTION[name], **said, **e.protocol}) for name, e in found.items()
    }


def _trust(score: ArrayLike, is_ood: ArrayLike) -> tuple[Floats, Floats]:
    """(p, y) of `selective`: trust is the opposite of the score, and what is right is in-distribution."""
    value = np.asarray(score, np.float64)
    if np.isnan(value).any():
        raise ValueError(f"score is NaN in {int(np.isnan(value).sum())} rows: drop them or give them a value first")
    return -value, 1 - _binary(is_ood)


def _binary(is_ood: ArrayLike) -> Floats:
    out = np.asarray(is_ood, np.float64)
    if not ((out == 0) | (out == 1)).all():
        raise ValueError("is_ood must hold only 0 and 1 (or False and True)")
    return out


def _ranked(score: Floats, out: Floats) -> dict[str, Metric]:
    """`OOD_METRICS` of rows in ascending order of their score, for many whole weights: nothing is sorted again.

    The weights of ID and of OOD at each distinct score, and up to it, are made once for all metrics of a draw.
    """
    starts = np.flatnonzero(np.diff(np.unique(score, return_inverse=True)[1], prepend=-1))
    last: list[Any] = [out, None]  # a weight that nobody gives, and its counts

    def counts(weight: Floats | None) -> tuple[Floats, Floats, Floats, Floats]:
        if last[0] is not weight:
            mass = np.ones(len(score)) if weight is None else weight
            parts = (mass - mass * out, mass * out)
            if 0 < len(starts) < len(score):
                parts = (np.add.reduceat(parts[0], starts), np.add.reduceat(parts[1], starts))
            last[:] = weight, (*parts, np.cumsum(parts[0]), np.cumsum(parts[1]))
        found: tuple[Floats, Floats, Floats, Floats] = last[1]
        return found

    def metric(formula: Callable[[Floats, Floats, Floats, Floats], float]) -> Metric:
        return lambda score, is_ood, weight=None: formula(*counts(weight)) if len(starts) else float("nan")

    return {
        "ood_auroc": metric(lambda i, o, ids, outs: ratio((o * (ids - i / 2)).sum(), ids[-1] * outs[-1])),
        "ood_aupr_in": metric(lambda i, o, ids, outs: _precision(i, ids, outs)),
        "ood_aupr_out": metric(lambda i, o, ids, outs: _precision(o, _above(o, outs), _above(i, ids))),
        "fpr95_id_positive": metric(lambda i, o, ids, outs: _fpr95(ids, outs)),
        "fpr95_ood_positive": metric(lambda i, o, ids, outs: _fpr95(_above(o, outs)[::-1], _above(i, ids)[::-1])),
    }


def _above(mass: Floats, up_to: Floats) -> Floats:
    """Weight at each score or above it."""
    above: Floats = up_to[-1] - up_to + mass
    return above


def _precision(gain: Floats, hit: Floats, miss: Floats) -> float:
    """Average precision of flagging up to each score: `hit` and `miss` so far, `gain` of which at this score."""
    flagged = hit + miss
    return ratio((np.divide(hit, flagged, np.zeros(len(hit)), where=flagged > 0) * gain).sum(), gain.sum())


def _fpr95(hit: Floats, miss: Floats) -> float:
    """Share of `miss` where `hit`, ascending, first comes to 95 %."""
    return ratio(miss[np.argmax(hit / hit[-1] >= 0.95)], miss[-1]) if hit[-1] else float("nan")
