"""Correlation of scores with the severity of a perturbation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr

from reliability_hooks.evaluation.severity import severity_correlation


def test_severity_against_scipy():
    rng = np.random.default_rng(0)
    item, level = np.repeat(np.arange(40), 5), np.tile(np.arange(5.0), 40)
    score = 0.3 * level + rng.normal(size=200)
    found = severity_correlation(score, level, item)
    means = [score[level == k].mean() for k in range(5)]
    assert found.means == pytest.approx(means)
    assert found.of_means == float(found) == pytest.approx(spearmanr(range(5), means).statistic)
    assert found.of_rows == pytest.approx(spearmanr(level, score).statistic)
    assert severity_correlation(-score, level, item).of_rows == pytest.approx(-found.of_rows)
    # items without a score, or without one of the levels, do not shift the means
    broken = score.copy()
    broken[7] = np.nan
    some = np.arange(200) != 12
    part = severity_correlation(broken[some], level[some], item[some])
    whole = ~np.isin(item, [1, 2])
    assert (part.items, part.dropped) == (38, 2)
    assert part.means == pytest.approx([score[whole & (level == k)].mean() for k in range(5)])
    w = rng.integers(0, 3, 40)[item]
    again = np.repeat(np.arange(200), w)
    weighted = severity_correlation(score, level, item, weight=w)
    assert weighted.of_rows == pytest.approx(spearmanr(level[again], score[again]).statistic)
    assert weighted.items == len(np.unique(again // 5))


def test_severity_of_little():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (([], [], []), ([1.0], [0], [0]), ([1.0, 1.0], [0, 1], [3, 3]), ([1.0, np.nan], [0, 1], [3, 3])):
            found = severity_correlation(*rows)
            assert np.isnan(found.of_means)
            assert np.isnan(found.of_rows)
    with pytest.raises(ValueError, match="whole numbers"):
        severity_correlation([1.0], [0], [0], weight=[0.5])
    with pytest.raises(ValueError, match="severity must not hold NaN"):
        severity_correlation([1.0], [np.nan], [0])
