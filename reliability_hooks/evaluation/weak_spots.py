"""Weak spots over a data set: what goes wrong, how much of it there is, and how sure that is; the worst first.

A spot touches some of the N detections (those on crowds left out), each with a value v_i in [-1, 1]:

| kind | touches | v_i |
|---|---|---|
| failure | wrong detections of a class with one cause (A taken for B, background, ...) | the confidence in it |
| context | detections of a class with confidence >= `SURE` | share of its class saliency outside of the object, less that of the other classes at equal size |
| boundary | masks of a class and size on the right object, mask IoU >= `INSIDE` | mask IoU - boundary IoU where that is below `OUTLINE`, else 0 |
| loose box | right boxes of a class and size, where there are no masks | 1 - IoU where the IoU is below `TIGHT`, else 0 |
| condition | detections with confidence >= `SURE` and one worst condition | wrong (1) or not (0), less the share wrong of the others |
| shortcut | detections of a class | the share by which the class score falls when the place is filled, less that of an equal area beside it (mirrored) |

**effect** = mean of v_i. **risk** = (number touched / N) x effect: the share of all detections that the spot costs, each
by its effect: an error of full confidence counts 1, a tenth of the evidence in the wrong place .1. The table is ranked
by it. Intervals are percentiles over images drawn with replacement.

A spot is established if it is seen in `IMAGES` images, the interval of its risk lies above 0 and, where chance alone
would make some (context, condition, shortcut), p <= .05 after Holm's correction for their number. A shortcut needs
more: see `shortcut_groups`. All others are listed with the reason why they are not.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import image_counts
from .causes import CAUSES, IGNORED, RIGHT
from .checks import Floats, Indices
from .shortcuts import holm

KINDS = ("failure", "context", "boundary", "loose box", "condition", "shortcut")
SURE, INSIDE, OUTLINE, TIGHT = 0.5, 0.75, 0.5, 0.75
IMAGES = 4
"""Of fewer, a draw of images leaves all out with a probability above e^-4 = .018."""
SIZES = ("small", "medium", "large")
BINS = 8
"""Of like size, within which frames of saliency are compared: coarse maps spill over small objects."""


@dataclass(frozen=True, eq=False)
class Judged:
    """N detections of labelled images and G annotated objects.

    Attributes:
        image, labels, scores, boxes: (N,) from 0, (N,), (N,), (N, 4) xyxy pixels.
        images: How many images were looked at.
        cause: (N,) index into `causes.CAUSES`.
        partner: (N,) row of the object that it is about, or -1.
        iou: (N,) IoU with it.
        size: (N,) root of the box's area over the longer side of the picture.
        area: (N,) pixels of the object that it is about, else of the detection.
        mask_iou, boundary_iou: (N,) NaN where there is none.
        outside: Target -> (N,) share of the saliency outside of the predicted mask or box; NaN if unknown.
        outside_true: (N,) of the class saliency outside of the annotated mask or box, for right detections.
        reliability: (N,) NaN where unknown.
        conditions: Phrase -> (N,) P(condition); empty without such columns.
        gt_boxes, gt_labels, gt_image: (G, 4), (G,), (G,).
    """

    image: Indices
    labels: Indices
    scores: Floats
    boxes: Floats
    images: int
    cause: Indices
    partner: Indices
    iou: Floats
    size: Floats
    area: Floats
    mask_iou: Floats
    boundary_iou: Floats
    outside: Mapping[str, Floats]
    outside_true: Floats
    reliability: Floats
    conditions: Mapping[str, Floats]
    gt_boxes: Floats
    gt_labels: Indices
    gt_image: Indices

    def caused(self, name: str) -> NDArray[np.bool_]:
        """(N,) bool."""
        out: NDArray[np.bool_] = self.cause == CAUSES.index(name)
        return out

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(N,) bool: not absorbed by a crowd."""
        return ~self.caused(IGNORED)


@dataclass(frozen=True, eq=False)
class Group:
    """Detections that may be a weak spot.

    Attributes:
        kind: Of `KINDS`.
        words: What it is.
        label: Class, -1 for all.
        rows: (n,) what it touches.
        values: (n,) v_i, NaN where it was not measured.
        tested: Chance alone makes some of the kind: corrected for their number.
        p: Of a test of its own, already corrected.
        told: More about it.
        refuted: Why it cannot be established, if so.
        order: (n,) by which examples are chosen, greatest first; the values without it.
    """

    kind: str
    words: str
    label: int
    rows: Indices
    values: Floats
    tested: bool = False
    p: float | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    refuted: str = ""
    order: Floats | None = None


@dataclass(frozen=True)
class Spot:
    """A group with its figures; see the module.

    Attributes:
        examples: Detections, of as many images as possible.
        why_not: Empty where it is established.
    """

    kind: str
    words: str
    label: int
    n: int
    images: int
    effect: float
    effect_low: float
    effect_high: float
    risk: float
    risk_low: float
    risk_high: float
    p: float
    why_not: str
    examples: tuple[int, ...]
    told: Mapping[str, Any]

    @property
    def established(self) -> bool:
        return not self.why_not


def ranked(
    groups: Sequence[Group], judged: Judged, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Spot]:
    """All groups as spots: established ones by risk, then the others by risk."""
    counts = np.stack(list(image_counts(judged.images, draws, seed))).astype(np.float64)
    every = counts @ _per_image(judged, np.flatnonzero(judged.kept))
    whole = int(judged.kept.sum())
    measured = [_measure(g, judged, counts, every, whole, (1 - level) / 2) for g in groups]
    p = {k: g.p for k, g in enumerate(groups) if g.p is not None}
    for kind in {g.kind for g in groups if g.tested}:
        some = [k for k, g in enumerate(groups) if g.kind == kind and g.tested and measured[k]["images"] >= IMAGES]
        p |= dict(zip(some, holm([measured[k]["chance"] for k in some]), strict=True))
    spots = []
    for k, (g, m) in enumerate(zip(groups, measured, strict=True)):
        m.pop("chance")
        value = p.get(k)
        reasons = {
            f"{counted(m['images'], 'image')}, fewer than {IMAGES}": m["images"] < IMAGES,
            g.refuted: bool(g.refuted),
            f"p = {value:.2g} after correction" if value is not None else "": value is not None and value > 0.05,
            "not measured": not np.isfinite(m["effect"]),
            "the interval reaches 0": not m["risk_low"] > 0,
        }
        why = next((reason for reason, holds in reasons.items() if holds), "")
        spots.append(Spot(g.kind, g.words, g.label, len(g.rows), p=float("nan") if value is None else value,
                          why_not=why, examples=_examples(g, judged), told=g.told, **m))  # fmt: skip
    return sorted(spots, key=lambda s: (not s.established, -np.nan_to_num(s.risk, nan=-1.0)))


def _measure(
    g: Group, judged: Judged, counts: Floats, every: Floats, whole: int, tail: float
) -> dict[str, Any]:
    """Effect and risk with intervals, number of images, share of draws in which the effect is not above 0."""
    known = np.isfinite(g.values)
    rows, values = g.rows[known], g.values[known]
    sums, number = counts @ _per_image(judged, rows, values), counts @ _per_image(judged, rows)
    touched = counts @ _per_image(judged, g.rows)
    effect = float(values.mean()) if len(values) else float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = sums / number
        risks = np.where(number > 0, touched / every * drawn, 0.0 if len(values) else np.nan)
    low, high = _quantiles(drawn, tail)
    risk_low, risk_high = _quantiles(risks, tail)
    # A draw without any of it says nothing for it.
    chance = float((1 + (~(drawn > 0)).sum()) / (1 + len(drawn)))
    return {
        "images": len(np.unique(judged.image[rows if len(rows) else g.rows])), "effect": effect, "effect_low": low,
        "effect_high": high, "risk": len(g.rows) / whole * effect if whole else float("nan"), "risk_low": risk_low,
        "risk_high": risk_high, "chance": chance,
    }  # fmt: skip


def _per_image(judged: Judged, rows: Indices, values: Floats | None = None) -> Floats:
    out: Floats = np.bincount(judged.image[rows], values, judged.images).astype(np.float64)
    return out


def _quantiles(values: Floats, tail: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < len(values) or not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def _examples(g: Group, judged: Judged, count: int = 8) -> tuple[int, ...]:
    """Rows by value, those of new images first; those that do not speak for it only where none does."""
    by = g.values if g.order is None else g.order
    order = np.argsort(-np.nan_to_num(by, nan=-np.inf), kind="stable")
    some = g.values > 0 if (g.values > 0).any() else np.isfinite(g.values)
    order = order[some[order] | (not some.any())]
    rows = g.rows[order]
    _, first = np.unique(judged.image[rows], return_index=True)
    again = np.setdiff1d(np.arange(len(rows)), first)
    return tuple(int(r) for r in rows[np.r_[np.sort(first), again][:count].astype(np.int64)])


def counted(n: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def right(judged: Judged) -> NDArray[np.bool_]:
    """(N,) bool."""
    return judged.caused(RIGHT)
