"""Diagrams and tables of a report, each of data that are there."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .overlay import colour
from .page import Figure, Histogram, ReportImage, ReportInstance, Table
from .plots import BLUE, CYCLE, DASHES, GREY, SMALL, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

BINS = 24
RELIABILITY_BINS = 20


def as_figure(drawing: Drawing, title: str, alt: str, note: str = "") -> Figure:
    """A drawing of matplotlib as part of a page."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": title}):  # the same drawing gives the same bytes
        drawing.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return Figure(title, out.getvalue().encode(), alt, note)


def spread_figure(reliability: Sequence[float]) -> Figure | None:
    """How many detections have which reliability; None where all are unknown."""
    values = np.array([v for v in reliability if math.isfinite(v)])
    if not len(values):
        return None
    drawing, ax = _canvas()
    counts, edges = np.histogram(values, RELIABILITY_BINS, (0, 1))
    middle = (edges[:-1] + edges[1:]) / 2
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", edgecolor=GREY, linewidth=0.6,
           color=[tuple(np.array(colour(m)) / 255) for m in middle])  # fmt: skip
    ax.set(xlim=(0, 1), xlabel="reliability", ylabel="detections")
    ax.yaxis.get_major_locator().set_params(integer=True)
    low = int((values < 0.5).sum())
    alt = f"{len(values)} detections: {low} have a reliability below 0.5; the median is {np.median(values):.2f}."
    unknown = len(reliability) - len(values)
    return as_figure(drawing, "Reliability of all detections", alt, f"{unknown} unknown, not drawn." if unknown else "")


def drift_figure(evidence: Sequence[float], threshold: float, said: str) -> Figure | None:
    """Evidence against "nothing has changed" after each image, on a logarithmic axis; None without images."""
    if not evidence:
        return None
    drawing, ax = _canvas()
    floor = 1e-3
    x, y = np.arange(1, len(evidence) + 1), np.clip(evidence, floor, 1e12)
    ax.plot(x, y, color=BLUE, linewidth=1.6, marker="o" if len(x) < 40 else "", markersize=3)
    ax.axhline(threshold, color=VERMILION, linewidth=1.2, linestyle=(0, (5, 2)))
    ax.text(x[-1], threshold, "alarm", color=VERMILION, fontsize=SMALL, ha="right", va="bottom")
    ax.set(yscale="log", xlabel="image", ylabel="evidence of a change", xlim=(0.5, max(len(x), 2) + 0.5),
           ylim=(min(0.1, y.min() / 2), 10 * max(threshold, y.max())))  # fmt: skip
    ax.xaxis.get_major_locator().set_params(integer=True)
    return as_figure(
        drawing, "Drift against the calibration images", f"{said[:1].upper()}{said[1:]}.",
        "The dashed line is the alarm.",
    )  # fmt: skip


def strangeness_figure(
    groups: Mapping[str, tuple[ArrayLike, ArrayLike | None]], name: str, title: str, alt: str, note: str = ""
) -> Figure | None:
    """Histograms of an out-of-distribution score over each other, each as shares; None where nothing has one.

    Args:
        groups: Name -> (scores, weights or None), the known objects first.
        name: Of the score.
        title: Above it.
        alt: In words.
        note: Below it.
    """
    kept = {}
    for group, (scores, weights) in groups.items():
        s = np.asarray(scores, float)
        w = np.ones(len(s)) if weights is None else np.asarray(weights, float)
        some = np.isfinite(s) & np.isfinite(w)
        if some.any():
            kept[group] = s[some], w[some] / w[some].sum()
    if not kept:
        return None
    every = np.concatenate([s for s, _ in kept.values()])
    low, high = np.quantile(every, [0.002, 0.998])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    drawing, ax = _canvas()
    for k, (group, (s, w)) in enumerate(kept.items()):
        shares, _ = np.histogram(np.clip(s, edges[0], edges[-1]), edges, weights=w)
        ax.stairs(shares, edges, fill=k == 0, color=CYCLE[k % len(CYCLE)], alpha=0.4 if k == 0 else 1,
                  linewidth=1.6, linestyle=DASHES[k % len(DASHES)], label=f"{group} ({len(s):,})")  # fmt: skip
    ax.set(xlabel=f"{name} (right = more unusual)", ylabel="share")
    ax.set_ylim(0, 1.35 * ax.get_ylim()[1])
    ax.legend(fontsize=SMALL, frameon=False, loc="upper left")
    return as_figure(drawing, title, alt, note)


def histogram(name: str, scores: ArrayLike, weights: ArrayLike, images: int, bins: int = BINS) -> Histogram:
    """Of a cell's calibration scores.

    Args:
        name: Of the cell.
        scores: (M,) finite.
        weights: (M,).
        images: See `Histogram`.
        bins: At most.
    """
    s = np.asarray(scores, float)
    if not len(s):
        return Histogram(name, (0.0, 1.0), (0.0,), images)
    heights, edges = np.histogram(s, min(bins, max(5, round(2 * math.sqrt(len(s))))), weights=np.asarray(weights))
    return Histogram(name, edges.round(5).tolist(), heights.round(4).tolist(), images)


def class_table(images: Sequence[ReportImage]) -> Table | None:
    """How reliable each class is; None without detections."""
    return _table(images, "Classes", "class", lambda i: i.name)


def condition_table(images: Sequence[ReportImage]) -> Table | None:
    """How reliable detections are under each condition that was found; None where none was looked for."""
    asked = any(i.condition is not None for image in images for i in image.instances)
    note = "The condition that stands out on each object."
    if not asked:
        return None
    return _table(images, "Conditions", "condition", lambda i: i.condition or "none stands out", note)


def _table(
    images: Sequence[ReportImage], title: str, heading: str, key: Callable[[ReportInstance], str], note: str = ""
) -> Table | None:
    groups: dict[str, list[ReportInstance]] = {}
    for image in images:
        for i in image.instances:
            groups.setdefault(key(i), []).append(i)
    rows = []
    for name, found in groups.items():
        known = [i.reliability for i in found if math.isfinite(i.reliability)]
        mean = float(np.mean(known)) if known else math.nan
        verdicts = [sum(i.verdict == v for i in found) for v in ("accept", "unknown", "reject")]
        rows.append((mean, [name, str(len(found)), f"{mean:.2f}" if known else "unknown", *map(str, verdicts)]))
    if not rows:
        return None
    rows.sort(key=lambda r: (r[0] if math.isfinite(r[0]) else -1.0, r[1][0]))
    headings = [heading, "detections", "mean reliability", "accept", "unknown", "reject"]
    return Table(title, headings, [cells for _, cells in rows], note)


def _canvas() -> tuple[Drawing, Any]:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(4.8, 3.0), layout="constrained")
    ax: Axes = drawing.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(SMALL + 1)
    return drawing, ax
