"""Open-set detection: what a detector of known classes makes of unknown objects, and what rejecting changes.

All boxes are known-class boxes; one whose OOD score is *above* a threshold is called unknown instead, and is then no
error as a known one. Where a box lies is said by `open_set_rows`. Every metric takes columns of its rows and `weight`
(E,), non-negative multiplicities; columns of different lengths, NaN for a threshold and a negative weight raise
ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import Estimate, Metric, image_bootstrap
from .checks import Floats, Indices, column, ratio, tied_masses
from .open_set_rows import KNOWN, MISSED_UNKNOWN, ON_BACKGROUND, ON_UNKNOWN, TRUE_KNOWN, UNKNOWN, OpenSetRows
from .pairs import Bools


def aose(
    outcome: ArrayLike, ood: ArrayLike, threshold: float | None = None, weight: ArrayLike | None = None
) -> float:
    """Absolute open-set error (Miller et al., ICRA 2018): number of known-class boxes on unknown objects.

    Every such box counts, as in ORE (Joseph et al. 2021), also several on one object.

    Args:
        outcome: (E,) as in `OpenSetRows`.
        ood: (E,) see `outcome`.
        threshold: boxes of an OOD score above it are called unknown; None: none is.
        weight: (E,) multiplicities.
    """
    return _errors(outcome, ood, ON_UNKNOWN, threshold, weight)


def nose(
    outcome: ArrayLike, ood: ArrayLike, threshold: float | None = None, weight: ArrayLike | None = None
) -> float:
    """100 AOSE / number of unknown objects (FMIYC, arXiv 2506.14008); above 100 where boxes are many, NaN without any.

    Arguments as in `aose`.
    """
    kind, w = _weighted(outcome, weight)
    return 100 * ratio(aose(outcome, ood, threshold, weight), w[kind >= UNKNOWN].sum())


def e_bk(
    outcome: ArrayLike, ood: ArrayLike, threshold: float | None = None, weight: ArrayLike | None = None
) -> float:
    """Number of known-class boxes on background: on no object that is labelled, be it known or unknown.

    Known objects that nobody annotated count against the detector here. Arguments as in `aose`.
    """
    return _errors(outcome, ood, ON_BACKGROUND, threshold, weight)


def missed_unknown(outcome: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Number of unknown objects on which no box lies; rejecting cannot change it, as it adds no box."""
    kind, w = _weighted(outcome, weight)
    return float(w[kind == MISSED_UNKNOWN].sum())


@dataclass(frozen=True)
class OpenSetErrors:
    """The three errors kept apart.

    Attributes:
        missed_unknown: objects, see `missed_unknown`.
        unknown_as_known: boxes, see `aose`.
        background_as_known: boxes, see `e_bk`.
    """

    missed_unknown: float
    unknown_as_known: float
    background_as_known: float


def open_set_errors(
    outcome: ArrayLike, ood: ArrayLike, threshold: float | None = None, weight: ArrayLike | None = None
) -> OpenSetErrors:
    """The three errors before rejecting (threshold None) or after. Arguments as in `aose`."""
    return OpenSetErrors(
        missed_unknown(outcome, weight), aose(outcome, ood, threshold, weight), e_bk(outcome, ood, threshold, weight)
    )


def wilderness_impact(
    outcome: ArrayLike,
    scores: ArrayLike,
    ood: ArrayLike,
    recall: float = 0.8,
    threshold: float | None = None,
    weight: ArrayLike | None = None,
) -> float:
    """P_K / P_KuU - 1 = FP_o / (TP_K + FP_K) at a recall of known objects (Dhamija et al., WACV 2020); 0 is best.

    FP_o are the known-class boxes on unknown objects, TP_K + FP_K all others, at the highest confidence that finds the
    share `recall` of the known objects, all classes together. ORE (Joseph et al. 2021) takes a confidence for each
    class, that of the nearest recall, even a recall far below, and leaves FP_o among the others.

    Args:
        outcome: (E,) as in `OpenSetRows`.
        scores: (E,) confidence, see `outcome`.
        ood: (E,) see `outcome`.
        recall: in (0, 1].
        threshold: as in `aose`.
        weight: (E,) multiplicities.

    Returns:
        >= 0; NaN where the recall is never reached.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall must lie in (0, 1], got {recall}")
    kind, w = _weighted(outcome, weight)
    score, kept = column("scores", scores, len(kind)), np.flatnonzero(_kept(kind, ood, threshold))
    made = kept[np.argsort(-score[kept], kind="stable")]  # the most confident first
    ends = np.flatnonzero(np.r_[score[made][1:] != score[made][:-1], len(made) > 0])  # equal scores enter together
    hit, unknown = (np.cumsum(w[made] * (kind[made] == k))[ends] for k in (TRUE_KNOWN, ON_UNKNOWN))
    objects = w[kind == KNOWN].sum()
    if not objects or not (hit / objects >= recall).any():
        return float("nan")
    at = np.argmax(hit / objects >= recall)
    return ratio(unknown[at], np.cumsum(w[made])[ends][at] - unknown[at])


def ap_u(outcome: ArrayLike, ood: ArrayLike, finds: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Average precision of finding unknown objects, all boxes ranked by the OOD score.

    A box is true if it takes an unknown object for itself. The area is that under the interpolated curve at all points
    (Pascal VOC 2010 on), equal scores entering together; FMIYC ranks by confidence what is called unknown.

    Args:
        outcome: (E,) as in `OpenSetRows`, as are `ood`, `finds`.
        ood: see `outcome`.
        finds: see `outcome`.
        weight: (E,) multiplicities.

    Returns:
        In [0, 1]; 0 without boxes, NaN without unknown objects.
    """
    kind, w = _weighted(outcome, weight)
    box = kind < KNOWN
    found = column("finds", finds, len(kind))[box]
    _, right, wrong = tied_masses(column("ood", ood, len(kind))[box], found, w[box])
    hit, gain = np.cumsum(right[::-1]), right[::-1]
    made = hit + np.cumsum(wrong[::-1])
    precision = np.divide(hit, made, np.zeros(len(hit)), where=made > 0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return ratio((envelope * gain).sum(), w[kind >= UNKNOWN].sum())


def p_u(
    outcome: ArrayLike, ood: ArrayLike, finds: ArrayLike, threshold: float, weight: ArrayLike | None = None
) -> float:
    """Share of the boxes called unknown (OOD score > threshold) that take an unknown object; NaN if none is called so.

    A second box on one object is false. Arguments as in `ap_u`.
    """
    kind, w = _weighted(outcome, weight)
    called = (kind < KNOWN) & ~_kept(kind, ood, threshold)
    return ratio(w[called & column("finds", finds, len(kind))].sum(), w[called].sum())


def r_u(
    outcome: ArrayLike, ood: ArrayLike, finds: ArrayLike, threshold: float, weight: ArrayLike | None = None
) -> float:
    """Share of the unknown objects that a box called unknown takes; NaN without any. Arguments as in `ap_u`."""
    kind, w = _weighted(outcome, weight)
    called = (kind < KNOWN) & ~_kept(kind, ood, threshold)
    return ratio(w[called & column("finds", finds, len(kind))].sum(), w[kind >= UNKNOWN].sum())


def open_set_summary(
    rows: OpenSetRows,
    threshold: float,
    *,
    recall: float = 0.8,
    all_images: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Estimate]:
    """All metrics with intervals over images, before rejecting by the threshold and (`..._rejected`) after.

    Args:
        rows: of `open_set_rows`.
        threshold: boxes of an OOD score above it are called unknown.
        recall: of the wilderness impact.
        all_images: as in `bootstrap.image_bootstrap`, as is `strata`; None: those with a box or an object.
        strata: see `all_images`; one for each row where that is None.
        draws: of the bootstrap.
        level: coverage of the intervals.
        seed: of the bootstrap.
        protocol: what the caller knows: name of the score, how the threshold was chosen, data sets, ...

    Returns:
        name -> `Estimate`: `aose`, `nose`, `e_bk`, `wilderness_impact`, each also `..._rejected`, `missed_unknown`,
        `ap_u`, `p_u`, `r_u`. The `n` of an estimate is the number of boxes and objects.

    Raises:
        ValueError: as the metrics and `bootstrap.image_bootstrap`.
    """
    said = {
        "on_object": rows.rule,
        "ignored_in_crowds": rows.ignored,
        "boxes": int((rows.outcome < KNOWN).sum()),
        "known_objects": int((rows.outcome == KNOWN).sum()),
        "unknown_objects": int((rows.outcome >= UNKNOWN).sum()),
        **(protocol or {}),
    }

    if all_images is None:
        all_images = rows.image_ids

    def measure(metrics: Mapping[str, Metric], by: Floats, *arrays: ArrayLike) -> dict[str, Estimate]:
        order = np.argsort(-by, kind="stable")  # once: what is sorted is quickly sorted again in each draw
        columns = [np.asarray(array)[order] for array in (rows.outcome, *arrays)]
        return image_bootstrap(metrics, rows.image_ids[order], *columns, draws=draws, level=level, seed=seed,
                               all_images=all_images, strata=strata, protocol=said)

    counts: dict[str, Metric] = {"aose": aose, "nose": nose, "e_bk": e_bk}
    impact: dict[str, Metric] = {"wilderness_impact": partial(wilderness_impact, recall=recall)}
    found: dict[str, Metric] = {
        "p_u": partial(p_u, threshold=float(threshold)), "r_u": partial(r_u, threshold=float(threshold))
    }
    return {
        **measure(counts | _rejecting(counts, threshold), rows.ood, rows.ood),
        **measure(impact | _rejecting(impact, threshold), rows.scores, rows.scores, rows.ood),
        **measure({"missed_unknown": missed_unknown}, rows.ood),
        **measure({"ap_u": ap_u, **found}, rows.ood, rows.ood, rows.finds),
    }


def _rejecting(metrics: Mapping[str, Metric], threshold: float) -> dict[str, Metric]:
    return {f"{name}_rejected": partial(metric, threshold=float(threshold)) for name, metric in metrics.items()}


def _errors(outcome: ArrayLike, ood: ArrayLike, which: int, threshold: float | None, weight: ArrayLike | None) -> float:
    kind, w = _weighted(outcome, weight)
    return float(w[(kind == which) & _kept(kind, ood, threshold)].sum())


def _kept(kind: Indices, ood: ArrayLike, threshold: float | None) -> Bools:
    """(E,) bool: a box that is not called unknown."""
    value = column("ood", ood, len(kind))
    if threshold is not None and np.isnan(threshold):
        raise ValueError("threshold must not be NaN")
    return (kind < KNOWN) & (np.ones(len(kind), bool) if threshold is None else value <= threshold)


def _weighted(outcome: ArrayLike, weight: ArrayLike | None) -> tuple[Indices, Floats]:
    kind = np.asarray(outcome).astype(np.int64)
    w = np.ones(len(kind)) if weight is None else column("weight", weight, len(kind)).astype(np.float64)
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    return kind, w
