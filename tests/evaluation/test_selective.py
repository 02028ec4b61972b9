"""Selective prediction and failure detection against scikit-learn, torchmetrics, pytorch-ood and naive loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from reliability_hooks.evaluation.selective import (
    augrc,
    aupr,
    aurc,
    auroc,
    e_aurc,
    error_rate,
    excess_augrc,
    fpr_at_tpr,
    risk_coverage,
    selective_risk,
)

from .scenes import sample

METRICS = {
    "auroc": auroc,
    "aupr_error": aupr,
    "aupr_correct": lambda p, y, weight=None: aupr(p, y, positive="correct", weight=weight),
    "fpr95_error": fpr_at_tpr,
    "fpr95_correct": lambda p, y, weight=None: fpr_at_tpr(p, y, positive="correct", weight=weight),
    "aurc": aurc,
    "e_aurc": e_aurc,
    "augrc": augrc,
    "excess_augrc": excess_augrc,
    "error_rate": error_rate,
    "selective_risk": lambda p, y, weight=None: selective_risk(p, y, 0.7, weight=weight),
}


def naive_augrc(p: np.ndarray, y: np.ndarray) -> float:
    """Points (coverage, errors kept / N) at every threshold, joined by straight lines."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(p.tolist()), reverse=True):
        kept = p >= threshold
        points.append((kept.mean(), (kept & ~y).sum() / len(y)))
    return sum((c1 - c0) * (r0 + r1) / 2 for (c0, r0), (c1, r1) in pairwise(points))


def naive_aurc(p: np.ndarray, y: np.ndarray) -> float:
    """Geifman's sum, in the order of `p`."""
    wrong = ~y[np.argsort(-p, kind="stable")]
    return float(np.mean([wrong[:k].sum() / k for k in range(1, len(p) + 1)]))


@pytest.mark.parametrize("levels", [0, 7])
@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed, levels):
    p, y, w = sample(seed, levels=levels)
    for weight in (None, w):
        assert auroc(p, y, weight=weight) == pytest.approx(roc_auc_score(y, p, sample_weight=weight), abs=1e-9)
        error = average_precision_score(~y, -p, sample_weight=weight)
        assert aupr(p, y, positive="error", weight=weight) == pytest.approx(error, abs=1e-9)
        correct = average_precision_score(y, p, sample_weight=weight)
        assert aupr(p, y, positive="correct", weight=weight) == pytest.approx(correct, abs=1e-9)
        for positive, truth, score in (("error", ~y, -p), ("correct", y, p)):
            fpr, tpr, _ = roc_curve(truth, score, sample_weight=weight, drop_intermediate=False)
            expected = fpr[np.argmax(tpr >= 0.95)]
            assert fpr_at_tpr(p, y, positive=positive, weight=weight) == pytest.approx(expected, abs=1e-9)


def test_against_torchmetrics_and_pytorch_ood():
    p, y, _ = sample(0)
    p = p.astype(np.float32)
    score, truth = torch.tensor(p), torch.tensor(y).int()
    assert auroc(p, y) == pytest.approx(float(BinaryAUROC()(score, truth)), abs=1e-6)
    assert aupr(p, y, positive="correct") == pytest.approx(float(BinaryAveragePrecision()(score, truth)), abs=1e-6)
    error = float(BinaryAveragePrecision()(1 - score, 1 - truth))
    assert aupr(p, y, positive="error") == pytest.approx(error, abs=1e-6)
    metrics = pytest.importorskip("pytorch_ood.metrics.functional")
    theirs = metrics.fpr_at_tpr(torch.tensor(-p), torch.where(truth == 0, -1, 0))
    assert fpr_at_tpr(p, y, positive="error") == pytest.approx(float(theirs), abs=1e-6)


def test_the_positive_must_be_named():
    """Both conventions of FPR95 and AUPR are in use, and they say different things of the same scores."""
    p, y, _ = sample(1)
    assert abs(fpr_at_tpr(p, y, positive="error") - fpr_at_tpr(p, y, positive="correct")) > 0.01
    assert abs(aupr(p, y, positive="error") - aupr(p, y, positive="correct")) > 0.01
    assert auroc(p, y) == pytest.approx(auroc(1 - p, ~y))  # symmetric, but for rounding
    for metric in (aupr, fpr_at_tpr):
        with pytest.raises(ValueError, match="positive must be 'error' or 'correct'"):
            metric(p, y, positive="failure")


def test_fpr95_by_hand():
    p, y = np.arange(20) / 20, np.r_[np.zeros(10, bool), np.ones(10, bool)]
    assert fpr_at_tpr(p, y) == fpr_at_tpr(p, y, positive="correct") == 0
    y[[0, 19]] = True, False  # one success at the bottom, one error at the top
    assert fpr_at_tpr(p, y) == 1  # all ten errors must be flagged for 95 %, the last stands above all successes
    assert fpr_at_tpr(p, y, tpr=0.9) == pytest.approx(0.1)


@pytest.mark.parametrize("levels", [0, 20])
def test_augrc_against_the_definition(levels):
    p, y, _ = sample(5, levels=levels)
    assert augrc(p, y) == pytest.approx(naive_augrc(p, y))
    assert error_rate(p, y) == pytest.approx(1 - y.mean())
    assert excess_augrc(p, y) == pytest.approx(naive_augrc(p, y) - (1 - y.mean()) ** 2 / 2)


def test_aurc_against_the_published_sum():
    p, y, _ = sample(6)
    assert aurc(p, y) == pytest.approx(naive_aurc(p, y), abs=1e-12)
    e = error_rate(p, y)
    assert e_aurc(p, y) == pytest.approx(naive_aurc(p, y) - naive_aurc(y.astype(float), y), abs=1e-12)
    # The published optimum is that of infinitely many instances.
    assert aurc(p, y) - e_aurc(p, y) == pytest.approx(e + (1 - e) * np.log(1 - e), abs=2 / len(p))


def test_aurc_of_ties_is_the_mean_over_their_orders():
    """A sum over sorted rows depends on how the sort leaves ties; ours is its expectation."""
    p, y, _ = sample(7, n=60, levels=4)
    rng = np.random.default_rng(0)
    shuffled = [naive_aurc(p[order], y[order]) for order in (rng.permutation(60) for _ in range(2000))]
    assert aurc(p, y) == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / 2000**0.5)
    assert np.ptp(shuffled) > 0.01
    order = rng.permutation(60)
    assert aurc(p[order], y[order]) == pytest.approx(aurc(p, y), abs=1e-12)


def test_extremes():
    y = np.r_[np.ones(60, bool), np.zeros(40, bool)]
    p = np.linspace(1, 0, 100)
    assert excess_augrc(p, y) == pytest.approx(0)
    assert e_aurc(p, y) == pytest.approx(0)
    assert augrc(p, y) == pytest.approx(0.08)
    assert augrc(1 - p, y) == pytest.approx(0.4 - 0.6 * 0.4 + 0.6 * 0.4 - 0.08)  # errors first: e - e^2/2
    assert augrc(np.full(100, 0.5), y) == pytest.approx(0.2)  # all tied: e/2
    assert aurc(np.full(100, 0.5), y) == pytest.approx(0.4)  # all tied: e at every coverage


def test_risk_coverage():
    curve = risk_coverage([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 3, 0.5])
    np.testing.assert_allclose(curve.threshold, [0.9, 0.5, 0.1])
    dropped = risk_coverage([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0], weight=[0, 1, 1, 0])
    np.testing.assert_allclose(dropped.coverage, [1])
    np.testing.assert_allclose(dropped.threshold, [0.5])
    for nothing in (risk_coverage([], []), risk_coverage([0.5], [1], weight=[0])):
        assert nothing.coverage.shape == nothing.risk.shape == nothing.threshold.shape == (0,)


def test_selective_risk():
    p, y, _ = sample(8, n=200)
    best = np.argsort(-p)
    for coverage in (0.1, 0.5, 0.8, 1.0):
        expected = 1 - y[best[: round(200 * coverage)]].mean()
        assert selective_risk(p, y, coverage) == pytest.approx(expected)
    curve = risk_coverage(p, y)
    assert selective_risk(p, y, float(curve.coverage[20])) == pytest.approx(curve.risk[20])
    assert selective_risk([0.9, 0.5, 0.5], [1, 0, 1], 2 / 3) == pytest.approx(0.25)  # half of the tied pair
    for coverage in (0.0, 1.1):
        with pytest.raises(ValueError, match="coverage must lie"):
            selective_risk(p, y, coverage)


weighted = st.integers(0, 25).flatmap(
    lambda n: st.tuples(
        hnp.arrays(float, n, elements=st.sampled_from([-3.0, 0.1, 0.25, 0.5, 0.7, np.inf])),
        hnp.arrays(bool, n),
        hnp.arrays(np.int64, n, elements=st.integers(0, 3)),
    )
)


@settings(max_examples=30, deadline=None)
@given(weighted)
@pytest.mark.parametrize("name", METRICS)
def test_weight_is_repetition(name, data):
    p, y, w = data
    expected = METRICS[name](np.repeat(p, w), np.repeat(y, w))
    assert METRICS[name](p, y, weight=w) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_gives_nan_and_nan_is_named(name):
    assert np.isnan(METRICS[name](np.zeros(0), np.zeros(0, bool)))
    assert np.isnan(METRICS[name]([0.5], [True], weight=[0.0]))
    with pytest.raises(ValueError, match=r"NaN in 2 of 3 rows \(0, 2\)"):
        METRICS[name]([np.nan, 0.5, np.nan], [True, False, True])


def test_one_class():
    assert np.isnan(auroc([0.1, 0.9], [1, 1]))
    assert augrc([0.1, 0.9], [1, 1]) == aurc([0.1, 0.9], [1, 1]) == 0
    assert np.isnan(aupr([0.1, 0.9], [1, 1], positive="error"))
    assert aupr([0.1, 0.9], [1, 1], positive="correct") == 1
    assert np.isnan(fpr_at_tpr([0.1, 0.9], [1, 1]))
    assert np.isnan(fpr_at_tpr([0.1, 0.9], [0, 0]))
    with pytest.raises(ValueError, match="tpr must lie"):
        fpr_at_tpr([0.1, 0.9], [0, 1], tpr=0.0)


def test_ranking_takes_any_score():
    scores = np.array([-np.inf, -3.0, -np.inf, 12.0, np.inf, np.inf])
    y = np.array([0, 1, 1, 0, 1, 0], bool)
    assert auroc(scores, y) == pytest.approx(roc_auc_score(y, [0, 1, 0, 2, 3, 3]))
