"""Figures: an axis in, the same axis out; every bar, whisker, count and curve where the data say."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from reliability_hooks.evaluation.bootstrap import Estimate
from reliability_hooks.evaluation.diagram import reliability_diagram
from reliability_hooks.evaluation.selective import risk_coverage
from reliability_hooks.report.plots import plot_conditions, plot_reliability, plot_risk_coverage, plot_scores

Figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed").Figure

@pytest.fixture
def ax() -> Any:
    """An axis on a figure of column width; drawing it at the end must not warn."""
    figure = Figure(figsize=(3.3, 3.1), layout="constrained")
    axis = figure.add_subplot()
    yield axis
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()


def rows(n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    p = rng.random(n)
    return p, rng.random(n) < p**2


def texts(ax: Any) -> str:
    return "\n".join(t.get_text() for t in ax.texts)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_reliability(ax, binning):
    p, y = rows()
    diagram = reliability_diagram(p, y, bins=8, binning=binning)
    assert plot_reliability(ax, diagram, title="raw score") is ax
    shares = [bar for bar in ax.patches if bar.get_y() == 0]
    counts = [bar for bar in ax.patches if bar.get_y() < 0]
    np.testing.assert_allclose([bar.get_height() for bar in shares], diagram.accuracy)
    np.testing.assert_allclose([bar.get_x() for bar in shares], diagram.left)
    heights = np.array([bar.get_height() for bar in counts])
    np.testing.assert_allclose(heights / heights.max(), diagram.counts / diagram.counts.max())
    assert all(bar.get_y() + bar.get_height() < 0 for bar in counts)  # below the shares, not over them
    whiskers = next(c for c in ax.collections if len(c.get_segments()) == 8 and c.get_segments()[0][0, 0]
                    == c.get_segments()[0][1, 0])
    ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
    np.testing.assert_allclose(ends, np.c_[diagram.low, diagram.high])
    assert f"D-ECE {diagram.d_ece:.3f}" in texts(ax)
    assert "n = 500" in texts(ax)
    wide = diagram.right - diagram.left > 0.07
    assert {str(c) for c in diagram.counts[wide]} <= set(texts(ax).split("\n"))
    assert "95% interval" in ax.get_legend().get_texts()[1].get_text()
    assert (ax.get_ylabel(), ax.get_title()) == ("share correct", "raw score")


def test_reliability_with_an_interval_and_many_rows(ax):
    diagram = reliability_diagram(np.tile([0.05, 0.95], 12_000), np.tile([0, 1], 12_000))
    plot_reliability(ax, diagram, Estimate(0.05, 0.04, 0.06, 0.95, 24_000, 100))
    assert "D-ECE 0.050\n[0.040, 0.060]\nn = 24,000" in texts(ax)
    assert "12k" in texts(ax)


def test_reliability_of_nothing(ax):
    plot_reliability(ax, reliability_diagram([], []))
    assert "n = 0" in texts(ax)


def test_risk_coverage(ax):
    p, y = rows()
    curves = {"score": risk_coverage(p, y), "reversed": risk_coverage(1 - p, y)}
    assert plot_risk_coverage(ax, curves, title="kept") is ax
    by_name = {line.get_label(): line for line in ax.lines}
    assert list(by_name) == ["score", "reversed", "optimum", "keeping at random"]
    np.testing.assert_allclose(by_name["score"].get_xydata(), np.c_[curves["score"].coverage, curves["score"].risk])
    assert by_name["score"].get_linestyle() != by_name["reversed"].get_linestyle()
    assert by_name["score"].get_color() != by_name["reversed"].get_color()
    best = risk_coverage(y, y)
    optimum = by_name["optimum"].get_xydata()
    np.testing.assert_allclose(optimum[-1], [best.coverage[-1], best.risk[-1]])
    middle = np.interp(0.9, *optimum.T)
    assert middle == pytest.approx(1 - y.mean() / 0.9, abs=1e-3)
    assert ax.get_ylim()[1] > 1  # room for the legend above a curve that begins at 1


def test_risk_coverage_of_nothing(ax):
    plot_risk_coverage(ax, {"score": risk_coverage([], [])})
    assert len(ax.lines) == 1


def test_conditions(ax):
    def estimate(value: float) -> Estimate:
        return Estimate(value, value - 0.02, value + 0.03, 0.95, 100, 10)

    table = {c: {"score": estimate(0.1 + k / 50), "ours": estimate(0.05)} for k, c in enumerate(("clean", "low_light"))}
    assert plot_conditions(ax, table, "D-ECE", better="lower") is ax
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.1, 0.12, 0.05, 0.05])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["clean", "low light"]
    assert ax.get_ylabel() == "D-ECE (lower is better)"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["score", "ours"]
    whisker = ax.collections[0].get_segments()[0]
    np.testing.assert_allclose(whisker[:, 1], [0.08, 0.13])
    assert {bar.get_hatch() for bar in ax.patches} == {"", "//"}  # not told apart by colour alone


def test_conditions_without_interval_and_of_nothing(ax):
    plot_conditions(ax, {}, "D-ECE")
    nan = float("nan")
    plot_conditions(ax, {"clean": {"score": Estimate(nan, nan, nan, 0.95, 0, 0)}}, "D-ECE")
    with pytest.raises(ValueError, match="same methods"):
        plot_conditions(ax, {"a": {"x": Estimate(0, 0, 0, 0.95, 1, 1)}, "b": {}}, "D-ECE")


def test_scores(ax):
    table = {
        score: {"near": Estimate(v, v - 0.1, v + 0.05, 0.95, 10, 5),
                "far": Estimate(v + 0.1, np.nan, np.nan, 0.95, 9, 4)}
        for score, v in (("gen", 0.8), ("msp", 0.6))
    }
    assert plot_scores(ax, table, "AUROC") is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["gen", "msp"]
    dots = [line for line in ax.get_lines() if line.get_marker() in ("o", "s")]
    assert [float(x) for line in dots for x in line.get_xdata()] == pytest.approx([0.8, 0.6, 0.9, 0.7])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["near", "far"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
