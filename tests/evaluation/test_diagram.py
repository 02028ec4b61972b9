"""Reliability diagrams: bins, Wilson's interval against scipy, the bootstrap against a loop over draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from reliability_hooks.evaluation.bootstrap import image_counts
from reliability_hooks.evaluation.calibration import d_ece
from reliability_hooks.evaluation.diagram import reliability_diagram

from .scenes import sample


def test_bins_and_wilson():
    p, y, _ = sample(0)
    p[:3] = 1.0
    d = reliability_diagram(p, y, bins=8, level=0.9)
    assert d.d_ece == d_ece(p, y, bins=8)
    assert d.d_ece == pytest.approx((d.counts * np.abs(d.accuracy - d.confidence)).sum() / 400)
    assert d.counts.sum() == 400
    for k in range(8):
        inside = (p >= k / 8) & ((p < (k + 1) / 8) | (k == 7))
        assert d.counts[k] == inside.sum()
        interval = binomtest(int(y[inside].sum()), int(inside.sum())).proportion_ci(0.9, method="wilson")
        assert (d.low[k], d.high[k]) == pytest.approx((interval.low, interval.high))
    np.testing.assert_allclose([d.left[1], d.right[1]], [0.125, 0.25])
    assert "Wilson" in str(d.protocol["interval"])
    assert d.protocol["level"] == 0.9


def test_equal_mass():
    p, y, _ = sample(1)
    d = reliability_diagram(p, y, bins=4, binning="mass")
    np.testing.assert_array_equal(d.counts, 100)
    np.testing.assert_allclose(d.left, np.sort(p)[::100])
    np.testing.assert_allclose(d.right, np.sort(p)[99::100])


def test_bootstrap_over_images():
    p, y, _ = sample(2, n=120)
    images = np.random.default_rng(0).integers(0, 15, 120)
    d = reliability_diagram(p, y, bins=5, image_ids=images, draws=60, seed=4)
    drawn = []
    for counts in image_counts(len(np.unique(images)), 60, 4):
        rows = np.repeat(np.arange(120), counts[np.unique(images, return_inverse=True)[1]])
        drawn.append([y[rows][np.floor(p[rows] * 5) == k].mean() for k in range(5)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([d.low, d.high], [low, high])
    assert "60 bootstrap draws of images" in str(d.protocol["interval"])
    # Instances that all stand or fall together: Wilson's interval is far too narrow.
    same = np.repeat(np.random.default_rng(1).random(20) < 0.5, 30)
    ids = np.repeat(np.arange(20), 30)
    honest = reliability_diagram(np.full(600, 0.5), same, image_ids=ids)
    naive = reliability_diagram(np.full(600, 0.5), same)
    assert honest.high[5] - honest.low[5] > 3 * (naive.high[5] - naive.low[5])


@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("image_ids", [None, []])
def test_nothing(binning, image_ids):
    d = reliability_diagram([], [], image_ids=image_ids, binning=binning)
    assert np.isnan(d.d_ece)
    assert np.isnan([d.confidence, d.accuracy, d.low, d.high]).all()
    np.testing.assert_array_equal(d.counts, 0)


def test_a_bin_that_draws_may_miss():
    d = reliability_diagram([0.1, 0.9, 0.9], [0, 1, 1], image_ids=[0, 1, 2])
    assert (d.low[1], d.high[1]) == (0, 0)
    assert np.isnan(d.low[5])


def test_bad_input():
    with pytest.raises(ValueError, match="level"):
        reliability_diagram([0.5], [1], level=1)
    with pytest.raises(ValueError, match="image_ids must have shape"):
        reliability_diagram([0.5], [1], image_ids=[1, 2])
