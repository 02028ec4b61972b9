"""What may be a weak spot: detections grouped by what could be wrong with them. See `weak_spots` for the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .causes import WRONG
from .checks import Floats, Indices
from .shortcuts import Suspect, words
from .weak_spots import BINS, INSIDE, OUTLINE, SIZES, SURE, TIGHT, Group, Judged, right

Names = Mapping[int, str]
FALL = 0.05
"""Share of the class score that a place must cost, beyond an equal area beside it, to be called a shortcut."""
COCO_AREAS = (32**2, 96**2)
NEAREST = 30
"""Detections of other classes, next in size, that one is compared with."""


def failure_groups(judged: Judged, names: Names) -> list[Group]:
    """Wrong detections by class, cause and, where it is taken for another, the class that it really is."""
    truth = np.where(judged.partner >= 0, np.append(judged.gt_labels, -1)[judged.partner], -1)
    out = []
    for cause in WRONG:
        own = judged.caused(cause)
        mixed = cause.startswith("class")
        keys = np.stack([judged.labels, np.where(mixed, truth, -1)], 1)
        for label, other in np.unique(keys[own], axis=0).tolist():
            rows = np.flatnonzero(own & (keys == [label, other]).all(1))
            called, real = named(label, names), named(other, names) if other >= 0 else "an unknown class"
            text = {
                "localisation": f"{called}: box too loose or shifted (IoU below the threshold)",
                "class": f"{real} taken for {called}",
                "duplicate": f"{called} found twice",
                "background": f"{called} where none is annotated",
                "class and place": f"{called} near {real}, neither class nor box right",
            }[cause]
            reliable = judged.reliability[rows]
            told = {
                "cause": cause, "mean_confidence": float(judged.scores[rows].mean()),
                "confident": int((judged.scores[rows] >= SURE).sum()),
                "mean_reliability": float(reliable.mean()) if np.isfinite(reliable).all() else None,
                "share_of_errors": len(rows) / max(1, int((judged.kept & ~right(judged)).sum())),
                "worst_condition": _commonest(judged, rows),
            }  # fmt: skip
            out.append(Group("failure", text, int(label), rows, judged.scores[rows], told=told))
    return out


def total_groups(judged: Judged) -> list[Group]:
    """All classes together: wrong detections by cause, and outlines by size. They hold the spots, and are no rivals."""
    out = []
    for cause in WRONG:
        rows = np.flatnonzero(judged.caused(cause))
        out.append(Group("failure", cause, -1, rows, judged.scores[rows]))
    rows, value, lost, kind = _outlines(judged)
    size = np.digitize(judged.area, COCO_AREAS)
    for step, name in enumerate(SIZES):
        own = rows[size[rows] == step]
        out.append(Group(kind, name, -1, own, value[own], told={"share_lost": _mean(lost[own])}))
    return [g for g in out if len(g.rows)]


def context_groups(judged: Judged, names: Names) -> list[Group]:
    """Confident detections of each class, by how much of their class saliency lies outside of the object."""
    beyond = {target: excess(judged, values) for target, values in judged.outside.items()}
    if "class" not in beyond:
        return []
    sure, is_right, out = judged.kept & (judged.scores >= SURE), right(judged), []
    for label in np.unique(judged.labels[sure]).tolist():
        own = judged.kept & (judged.labels == label)
        rows = np.flatnonzero(own & sure)
        told = {
            **{f"outside_{t}": _mean(v[rows]) for t, v in judged.outside.items()},
            **{f"excess_{t}": _mean(v[rows]) for t, v in beyond.items()},
            "outside_true": _mean(judged.outside_true[rows]),
            "outside_others": _mean((judged.outside["class"] - beyond["class"])[rows]),
            "wrong_less_right": difference(beyond["class"], own & ~is_right, own & is_right, judged),
        }  # fmt: skip
        known = np.isfinite(beyond["class"][rows]).any()
        refuted = "" if known else "no saliency, or nothing of its size in other classes"
        out.append(Group("context", f"{named(label, names)}: rests on what is outside of it", int(label), rows,
                         beyond["class"][rows], tested=True, told=told, refuted=refuted))  # fmt: skip
    return out


def outline_groups(judged: Judged, names: Names) -> list[Group]:
    """Masks whose outline is lost though their interior is right, by class and size; without masks, loose boxes."""
    rows, value, lost, kind = _outlines(judged)
    text = "outline lost" if kind == "boundary" else f"IoU below {TIGHT:g}"
    size, out = np.digitize(judged.area, COCO_AREAS), []
    for label, step in np.unique(np.stack([judged.labels, size], 1)[rows], axis=0).tolist():
        own = rows[(judged.labels[rows] == label) & (size[rows] == step)]
        rest = rows[(judged.labels[rows] != label) & (size[rows] == step)]
        told = {
            "size": SIZES[step], "share_lost": _mean(lost[own]), "share_lost_others": _mean(lost[rest]),
            "mask_iou": _mean(judged.mask_iou[own]), "boundary_iou": _mean(judged.boundary_iou[own]),
            "box_iou": _mean(judged.iou[own]),
        }  # fmt: skip
        out.append(Group(kind, f"{named(label, names)}, {SIZES[step]}: {text}", int(label), own, value[own], told=told))
    return out


def condition_groups(judged: Judged, names: Names) -> list[Group]:
    """Confident detections by their worst condition (P >= .5), and how much more often they are wrong."""
    rows = np.flatnonzero(judged.kept & (judged.scores >= SURE))
    wrong, at, out = (~right(judged)).astype(np.float64), worst(judged), []
    for k, phrase in enumerate(judged.conditions):
        own, rest = rows[at[rows] == k], rows[at[rows] != k]
        if len(own):
            usual = _mean(wrong[rest])
            told = {"share_wrong": _mean(wrong[own]), "share_wrong_others": usual}
            out.append(Group("condition", f"wrong when {phrase}", -1, own, wrong[own] - usual, tested=True, told=told))
    return out


def shortcut_groups(
    found: Sequence[Suspect], checks: Mapping[int, Mapping[int, Floats]], fills: Sequence[str],
    company: Mapping[int, Mapping[str, Mapping[int, float]]], judged: Judged, names: Names,
) -> list[Group]:
    """Suspects, and what filling the place does to the class score.

    Confirmed is one whose place stands out (p <= .05), costs at least `FALL` of the class score more than an
    equal area beside it (see `shortcuts.holes`), costs more under each fill, and has an interval above 0.

    Args:
        found: Of `shortcuts.suspects`.
        checks: Label -> row -> (F, 2) of `shortcuts.drops`; labels that were not checked are not there.
        fills: Their F names.
        company: Label -> `there` and `mirrored` -> label -> share, of `shortcuts.company`.
        judged: All detections.
        names: Of the classes.
    """
    out = []
    for s in found:
        rows = np.flatnonzero(judged.kept & (judged.labels == s.label))
        own = checks.get(s.label, {})
        both = np.array([own.get(int(r), np.full((len(fills), 2), np.nan)) for r in rows]).reshape(-1, len(fills), 2)
        extra = both[..., 0] - both[..., 1]
        each = [_mean(extra[:, k]) for k in range(len(fills))]
        values = extra.mean(1) if len(fills) else np.full(len(rows), np.nan)
        effect = _mean(values)
        refuted = ""
        if s.p <= 0.05:
            if not np.isfinite(values).any():
                refuted = "there is no equal area beside it to compare it with"
            elif not effect >= FALL or not min(each) > 0:
                refuted = f"filling it lowers the class score by {effect:+.2f} more than an equal area beside it"
        there = {
            side: {named(k, names): share for k, share in list(shares.items())[:3]}
            for side, shares in company.get(s.label, {}).items()
        }
        told = {
            "place": words(s.rect), "rect": list(s.rect), "statistic": s.statistic, "share": s.share,
            "share_others": s.others, "top": s.top, "images_tested": s.images,
            "checked": int(np.isfinite(values).sum()),
            "fall": {f: _mean(both[:, k, 0]) for k, f in enumerate(fills)},
            "fall_compared": {f: _mean(both[:, k, 1]) for k, f in enumerate(fills)}, "company": there,
        }  # fmt: skip
        text = f"{named(s.label, names)}: " + (
            f"rests on what is {words(s.rect)}" if s.statistic > 0 else "no place beside it stands out"
        )
        out.append(Group("shortcut", text, s.label, rows, values, p=s.p, told=told, refuted=refuted))
    return out


def excess(judged: Judged, values: Floats) -> Floats:
    """(N,) less what the other classes have at that size: a line through the `NEAREST` of them in log size.

    The line is fitted with tricube weights (Cleveland 1979, LOWESS), since coarse maps spill over small objects of
    whatever class. NaN where fewer are there, and for sizes that no other class has.
    """
    known = np.isfinite(values) & judged.kept & (judged.size > 0)
    x, out = np.log(np.where(known, judged.size, 1.0)), np.full(len(values), np.nan)
    for label in np.unique(judged.labels[known]).tolist():
        own, rest = known & (judged.labels == label), known & (judged.labels != label)
        if rest.sum() < NEAREST:
            continue
        apart = x[rest] - x[own][:, None]
        reach = np.partition(np.abs(apart), NEAREST - 1, 1)[:, NEAREST - 1 : NEAREST] * 1.01 + 1e-6
        weight = (1 - (np.abs(apart) / reach).clip(max=1) ** 3) ** 3
        weight /= weight.sum(1, keepdims=True)
        middle, level = (weight * apart).sum(1), weight @ values[rest]
        spread = (weight * (apart - middle[:, None]) ** 2).sum(1)
        slope = (weight * (apart - middle[:, None]) * values[rest]).sum(1) / spread.clip(min=1e-12)
        usual = level - middle * np.where(spread > 1e-9, slope, 0.0)
        within = (x[own] >= x[rest].min()) & (x[own] <= x[rest].max())
        out[own] = np.where(within, values[own] - usual, np.nan)
    return out


def size_bins(judged: Judged) -> NDArray[np.int64]:
    """(N,) up to `BINS` of equally many detections, each with 20 at least."""
    count = max(1, min(BINS, len(judged.size) // 20))
    cuts = np.quantile(judged.size, np.arange(1, count) / count) if len(judged.size) else np.zeros(0)
    return np.digitize(judged.size, cuts).astype(np.int64)


def difference(
    values: Floats, a: NDArray[np.bool_], b: NDArray[np.bool_], judged: Judged, draws: int = 500
) -> list[float] | None:
    """[mean over a - mean over b, low, high], over images drawn with replacement; None where one has fewer than 3."""
    from .bootstrap import image_bootstrap

    a, b = a & np.isfinite(values), b & np.isfinite(values)
    if min(a.sum(), b.sum()) < 3:
        return None

    def apart(v: Floats, of_a: Floats, weight: Floats | None = None) -> float:
        w = np.ones(len(v)) if weight is None else weight
        first, second = w * of_a, w * (1 - of_a)
        if not first.sum() > 0 or not second.sum() > 0:
            return float("nan")
        return float((first * v).sum() / first.sum() - (second * v).sum() / second.sum())

    some = a | b
    found = image_bootstrap({"d": apart}, judged.image[some], values[some], a[some].astype(float), draws=draws)["d"]
    return [found.value, found.low, found.high]


def worst(judged: Judged) -> Indices:
    """(N,) number of the most probable condition; -1 where none is above .5."""
    if not judged.conditions:
        return np.full(len(judged.image), -1)
    table = np.nan_to_num(np.stack(list(judged.conditions.values()), 1), nan=0.0)
    out: Indices = np.where(table.max(1) > 0.5, table.argmax(1), -1)
    return out


def named(label: int, names: Names) -> str:
    """Its name, or its number."""
    return names.get(int(label), f"class {label}")


def _outlines(judged: Judged) -> tuple[Indices, Floats, NDArray[np.bool_], str]:
    """Rows with the right interior, v_i and whether the outline is lost (N,), kind."""
    masks = np.isfinite(judged.boundary_iou)
    if masks.any():
        lost = judged.boundary_iou < OUTLINE
        value = np.where(lost, judged.mask_iou - judged.boundary_iou, 0.0)
        return np.flatnonzero(masks & (judged.mask_iou >= INSIDE)), value, lost, "boundary"
    loose = judged.iou < TIGHT
    return np.flatnonzero(right(judged)), np.where(loose, 1 - judged.iou, 0.0), loose, "loose box"


def _commonest(judged: Judged, rows: Indices) -> dict[str, float]:
    at, phrases = worst(judged)[rows], list(judged.conditions)
    return {phrases[k]: float((at == k).mean()) for k in np.unique(at[at >= 0]).tolist()}


def _mean(values: NDArray[np.generic]) -> float:
    kept = np.asarray(values, np.float64)
    kept = kept[np.isfinite(kept)]
    return float(kept.mean()) if len(kept) else float("nan")
