"""Figures as functions that take a matplotlib axis, draw on it and return it; sized for a column (3.3 x 3 inches).

Colours are Okabe & Ito's, told apart with every kind of colour blindness, and never the only difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.bootstrap import Estimate
from ..evaluation.diagram import ReliabilityDiagram
from ..evaluation.selective import RiskCoverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = "os^Dv*"
HATCHES = ("", "//", "..", "xx")
GREY, SMALL = "0.45", 8
FLOOR = -0.32  # of the counts, on the scale of the share correct


def plot_reliability(
    ax: Axes, diagram: ReliabilityDiagram, d_ece: Estimate | None = None, title: str = "", colour: str = BLUE
) -> Axes:
    """Share that is correct against the probability that was promised, with a histogram of counts below.

    Bars are the share in each bin, whiskers its interval, and the short line across a bar is the mean probability: the
    distance between the two is what D-ECE adds up. On the dashed diagonal a detector keeps its promises.

    Args:
        ax: where to draw; the counts take its lowest quarter.
        diagram: from `evaluation.diagram.reliability_diagram`.
        d_ece: the D-ECE with its interval; None: the diagram's own, without.
        title: above the axis.
        colour: of the bars.

    Returns:
        `ax`.
    """
    some = diagram.counts > 0
    left, width = diagram.left[some], np.maximum(diagram.right - diagram.left, 0.004)[some]
    middle, share = left + width / 2, diagram.accuracy[some]
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.bar(left, share, width, align="edge", color=colour, alpha=0.55, edgecolor="white", linewidth=0.6, zorder=2)
    promised = diagram.confidence[some]
    ax.hlines(promised, left, left + width, color=VERMILION, linewidth=1.8, zorder=3, label="mean probability")
    reach = np.nan_to_num(np.stack([share - diagram.low[some], diagram.high[some] - share])).clip(min=0)
    label = f"correct, {diagram.protocol['level']:.0%} interval"
    ax.errorbar(middle, share, reach, fmt="o", markersize=2.5, color="black", elinewidth=0.9, capsize=1.8,
                linewidth=0, zorder=4, label=label)
    interval = "" if d_ece is None else f"\n[{d_ece.low:.3f}, {d_ece.high:.3f}]"
    value = diagram.d_ece if d_ece is None else d_ece.value
    ax.text(0.97, 0.04, f"D-ECE {value:.3f}{interval}\nn = {diagram.counts.sum():,}", ha="right", va="bottom",
            fontsize=SMALL, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}, zorder=5)
    ax.set(xlim=(0, 1), xlabel="predicted probability of being correct", title=title)
    ax.set_ylabel("share correct", y=(0.5 - FLOOR) / (1 - FLOOR))
    ax.legend(loc="upper left", fontsize=SMALL - 1, frameon=False, handlelength=1.4, borderaxespad=0.2)
    _counts(ax, diagram, colour)
    return _tidy(ax)


def plot_risk_coverage(ax: Axes, curves: Mapping[str, RiskCoverage], title: str = "") -> Axes:
    """Share of errors among the detections that are kept, against the share that is kept; lower is better.

    The thin black line is the optimum: every error below every success.

    Args:
        ax: where to draw.
        curves: name -> `evaluation.selective.risk_coverage`, all of the same detections; a name may hold its AURC.
        title: above the axis.

    Returns:
        `ax`.
    """
    for k, (name, curve) in enumerate(curves.items()):
        style = DASHES[k % len(DASHES)]
        ax.plot(curve.coverage, curve.risk, color=CYCLE[k % len(CYCLE)], linestyle=style, linewidth=1.6, label=name)
    errors = [float(curve.risk[-1]) for curve in curves.values() if len(curve.risk)]
    if errors:
        coverage = np.linspace(max(1 - errors[0], 1e-9), 1, 200)
        optimum = 1 - (1 - errors[0]) / coverage
        ax.plot([0, *coverage], [0, *optimum], color="black", linewidth=0.8, label="optimum")
        ax.axhline(errors[0], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), label="keeping at random")
    ax.set(xlim=(0, 1), xlabel="coverage (share kept)", ylabel="share of errors kept", title=title)
    peak = max((float(curve.risk.max(initial=0)) for curve in curves.values()), default=0.0)
    ax.set_ylim(0, (1.3 + 0.1 * len(curves)) * max(peak, 1e-3))  # room for the legend
    ax.legend(fontsize=SMALL - 1, frameon=False, handlelength=2.4, loc="upper left", borderaxespad=0.1)
    ax.grid(alpha=0.25, linewidth=0.5)
    return _tidy(ax)


def plot_conditions(
    ax: Axes, table: Mapping[str, Mapping[str, Estimate]], ylabel: str, title: str = "", better: str = ""
) -> Axes:
    """One group of bars for each condition, one bar for each method, whiskers for the intervals.

    Args:
        ax: where to draw.
        table: condition -> method -> estimate, every condition with the same methods.
        ylabel: the metric.
        title: above the axis.
        better: "lower" or "higher", said beside the metric; "" for neither.

    Returns:
        `ax`.

    Raises:
        ValueError: the conditions differ in their methods.
    """
    methods = list(next(iter(table.values()), {}))
    if any(list(row) != methods for row in table.values()):
        raise ValueError(f"every condition needs the same methods in the same order: {', '.join(methods)}")
    width = 0.8 / max(len(methods), 1)
    for k, method in enumerate(methods):
        x = np.arange(len(table)) + (k - (len(methods) - 1) / 2) * width
        value, low, high = np.array([[e.value, e.low, e.high] for e in (row[method] for row in table.values())]).T
        reach = np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)
        ax.bar(x, value, 0.92 * width, color=CYCLE[k % len(CYCLE)], alpha=0.75, hatch=HATCHES[k % len(HATCHES)],
               edgecolor="white", linewidth=0.5, yerr=reach, label=method,
               error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "black"})
    long = sum(map(len, table)) > 30
    ax.set_xticks(np.arange(len(table)), [name.replace("_", " ") for name in table], rotation=35 if long else 0,
                  ha="right" if long else "center", rotation_mode="anchor")
    ax.set(ylabel=f"{ylabel} ({better} is better)" if better else ylabel, title=title)
    if methods:
        ax.set_ylim(top=1.18 * ax.get_ylim()[1])  # room for the legend
        ax.legend(fontsize=SMALL - 1, frameon=False, ncols=min(len(methods), 3), loc="upper left", borderaxespad=0.1)
    ax.grid(axis="y", alpha=0.25, linewidth=0.5)
    ax.set_axisbelow(True)
    return _tidy(ax)


def plot_scores(ax: Axes, table: Mapping[str, Mapping[str, Estimate]], xlabel: str, title: str = "") -> Axes:
    """A line for each score, a dot with its interval for each set.

    Args:
        ax: where to draw.
        table: score -> set -> estimate, every score with the same sets; the first is drawn on top.
        xlabel: the metric.
        title: above the axis.

    Returns:
        `ax`.
    """
    sets = list(next(iter(table.values()), {}))
    rows = np.arange(len(table))
    for k, name in enumerate(sets):
        value, low, high = np.array([[e.value, e.low, e.high] for e in (row[name] for row in table.values())]).T
        y = rows + (k - (len(sets) - 1) / 2) * 0.22
        reach = np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)
        ax.errorbar(value, y, xerr=reach, fmt=MARKERS[k % len(MARKERS)], color=CYCLE[k % len(CYCLE)], markersize=4.5,
                    elinewidth=0.9, capsize=2, label=name.replace("_", " "))
    ax.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks(rows, list(table))
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set(xlabel=xlabel, title=title)
    ax.grid(axis="both", alpha=0.25, linewidth=0.5)
    if sets:
        ax.legend(fontsize=SMALL - 1, frameon=False, ncols=len(sets), loc="lower left", bbox_to_anchor=(0, 1))
    return _tidy(ax)


def _counts(ax: Axes, diagram: ReliabilityDiagram, colour: str) -> None:
    """A histogram below the bars, on the same axis, so that it holds in every layout."""
    height = -FLOOR - 0.13
    width = np.maximum(diagram.right - diagram.left, 0.004)
    bars = height * diagram.counts / max(int(diagram.counts.max(initial=0)), 1)
    ax.bar(diagram.left, bars, width, FLOOR, align="edge", color=colour, edgecolor="white", linewidth=0.6)
    for left, wide, bar, count in zip(diagram.left, width, bars, diagram.counts.tolist(), strict=True):
        if count and wide > 0.07:  # else the numbers would run into each other
            text = f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"
            ax.text(left + wide / 2, FLOOR + bar + 0.01, text, ha="center", va="bottom", fontsize=SMALL - 2)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.annotate("count", (0, FLOOR + height / 2), (-4, 0), textcoords="offset points", rotation=90, ha="right",
                va="center", fontsize=SMALL)
    ax.set_ylim(FLOOR, 1)
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.spines["left"].set_bounds(0, 1)


def _tidy(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)
    for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
        text.set_fontsize(SMALL + 1)
    return ax
