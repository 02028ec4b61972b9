"""Metrics against scikit-learn, torchmetrics and loops written from the definitions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from torchmetrics.classification import BinaryCalibrationError

from reliability_hooks.evaluation.metrics import (
    CALIBRATION_METRICS,
    augrc,
    auroc,
    brier,
    d_ece,
    error_rate,
    excess_augrc,
    nll,
)


def sample(seed: int, n: int = 400, levels: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.integers(0, levels, n) / levels if levels else rng.random(n) * 0.998 + 0.001
    return p, rng.random(n) < p**1.5, rng.integers(0, 4, n)


def naive_augrc(p: np.ndarray, y: np.ndarray) -> float:
    """Points (coverage, errors kept / N) at every threshold, joined by straight lines."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(p.tolist()), reverse=True):
        kept = p >= threshold
        points.append((kept.mean(), (kept & ~y).sum() / len(y)))
    return sum((c1 - c0) * (r0 + r1) / 2 for (c0, r0), (c1, r1) in pairwise(points))


def naive_d_ece(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    total = 0.0
    for k in range(bins):
        inside = (p >= k / bins) & ((p < (k + 1) / bins) | (k == bins - 1))
        if inside.any():
            total += inside.mean() * abs(y[inside].mean() - p[inside].mean())
    return total


@pytest.mark.parametrize("levels", [0, 7])
@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed, levels):
    p, y, w = sample(seed, levels=levels)
    for weight in (None, w):
        assert auroc(p, y, weight=weight) == pytest.approx(roc_auc_score(y, p, sample_weight=weight))
        assert brier(p, y, weight=weight) == pytest.approx(brier_score_loss(y, p, sample_weight=weight))
        if not levels:  # where p is 0 the two clip differently
            assert nll(p, y, weight=weight) == pytest.approx(log_loss(y, p, sample_weight=weight))


@pytest.mark.parametrize("bins", [1, 10, 25])
def test_d_ece_against_torchmetrics(bins):
    p, y, _ = sample(3)
    oracle = BinaryCalibrationError(n_bins=bins, norm="l1")(torch.tensor(p), torch.tensor(y).int())
    assert d_ece(p, y, bins=bins) == pytest.approx(float(oracle), abs=1e-6)


@pytest.mark.parametrize("levels", [0, 20])
def test_against_the_definitions(levels):
    p, y, _ = sample(5, levels=levels)
    assert augrc(p, y) == pytest.approx(naive_augrc(p, y))
    assert d_ece(p, y) == pytest.approx(naive_d_ece(p, y, 10))
    assert error_rate(p, y) == pytest.approx(1 - y.mean())
    assert excess_augrc(p, y) == pytest.approx(naive_augrc(p, y) - (1 - y.mean()) ** 2 / 2)


def test_bin_edges():
    assert d_ece([1.0, 0.95], [1, 0]) == pytest.approx(0.475)  # one bin: mean p .975, accuracy .5
    assert d_ece([0.3, 0.35], [0, 1]) == pytest.approx(abs(0.5 - 0.325))  # .3 opens the bin [.3, .4)


def test_augrc_extremes():
    y = np.r_[np.ones(60, bool), np.zeros(40, bool)]
    p = np.linspace(1, 0, 100)
    assert excess_augrc(p, y) == pytest.approx(0)
    assert augrc(p, y) == pytest.approx(0.08)
    assert augrc(1 - p, y) == pytest.approx(0.4 - 0.6 * 0.4 + 0.6 * 0.4 - 0.08)  # errors first: e - e^2/2
    assert augrc(np.full(100, 0.5), y) == pytest.approx(0.2)  # all tied: e/2


weighted = st.integers(0, 25).flatmap(
    lambda n: st.tuples(
        hnp.arrays(float, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0])),
        hnp.arrays(bool, n),
        hnp.arrays(np.int64, n, elements=st.integers(0, 3)),
    )
)


@settings(max_examples=50, deadline=None)
@given(weighted)
@pytest.mark.parametrize("name", [*CALIBRATION_METRICS, "error_rate"])
def test_weight_is_repetition(name, data):
    p, y, w = data
    metric = {**CALIBRATION_METRICS, "error_rate": error_rate}[name]
    expected = metric(np.repeat(p, w), np.repeat(y, w))
    assert metric(p, y, weight=w) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("name", CALIBRATION_METRICS)
def test_nothing_gives_nan(name):
    metric = CALIBRATION_METRICS[name]
    assert np.isnan(metric(np.zeros(0), np.zeros(0, bool)))
    assert np.isnan(metric([0.5], [True], weight=[0.0]))


def test_one_class():
    assert np.isnan(auroc([0.1, 0.9], [1, 1]))
    assert augrc([0.1, 0.9], [1, 1]) == 0
    assert nll([0.0], [1]) == pytest.approx(-np.log(1e-12))


def test_ranking_takes_any_score():
    scores = np.array([-np.inf, -3.0, -np.inf, 12.0, np.inf, np.inf])
    y = np.array([0, 1, 1, 0, 1, 0], bool)
    assert auroc(scores, y) == pytest.approx(roc_auc_score(y, [0, 1, 0, 2, 3, 3]))


@pytest.mark.parametrize("name", CALIBRATION_METRICS)
def test_nan_is_named(name):
    with pytest.raises(ValueError, match=r"NaN in 2 of 3 rows \(0, 2\)"):
        CALIBRATION_METRICS[name]([np.nan, 0.5, np.nan], [True, False, True])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.2], [1]), "row 0 holds 1.2"),
        (([0.5], [2]), "only 0 and 1"),
        (([0.5, 0.1], [1]), "one length"),
        (([0.5], [1], [-1.0]), "not negative"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        brier(*arguments)
    with pytest.raises(ValueError, match="bins"):
        d_ece([0.5], [1], bins=0)
