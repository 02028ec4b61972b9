"""D-ECE in its variants, Brier score and likelihood against netcal, torchmetrics, hotcoco, uq-detr and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.classification import BinaryCalibrationError

from reliability_hooks.evaluation.calibration import box_conditions, brier, conditional_d_ece, d_ece, nll
from reliability_hooks.evaluation.matching import match

from .scenes import sample, span, toy, uq


def naive_d_ece(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    total = 0.0
    for k in range(bins):
        inside = (p >= k / bins) & ((p < (k + 1) / bins) | (k == bins - 1))
        if inside.any():
            total += inside.mean() * abs(y[inside].mean() - p[inside].mean())
    return total


@pytest.mark.parametrize("levels", [0, 7])
@pytest.mark.parametrize("seed", range(3))
def test_proper_scores_against_scikit_learn(seed, levels):
    p, y, w = sample(seed, levels=levels)
    for weight in (None, w):
        assert brier(p, y, weight=weight) == pytest.approx(brier_score_loss(y, p, sample_weight=weight), abs=1e-9)
        if not levels:  # where p is 0 the two clip differently
            assert nll(p, y, weight=weight) == pytest.approx(log_loss(y, p, sample_weight=weight), abs=1e-9)


@pytest.mark.parametrize("bins", [1, 10, 25])
def test_d_ece_against_torchmetrics_and_hotcoco(bins):
    p, y, _ = sample(3)
    oracle = BinaryCalibrationError(n_bins=bins, norm="l1")(torch.tensor(p), torch.tensor(y).int())
    assert d_ece(p, y, bins=bins) == pytest.approx(float(oracle), abs=1e-6)
    hotcoco = pytest.importorskip("hotcoco")
    assert d_ece(p, y, bins=bins) == pytest.approx(hotcoco.metrics.calibration_error(p, y, bins)[0], abs=1e-6)


def test_against_netcal():
    netcal = pytest.importorskip("netcal.metrics")
    p, y, _ = sample(1, n=1000)
    x = np.random.default_rng(0).random((1000, 2))
    assert d_ece(p, y) == pytest.approx(netcal.ECE(10, detection=True).measure(p, y.astype(int)), abs=1e-6)
    adaptive = netcal.ECE(10, equal_intervals=False, detection=True).measure(p, y.astype(int))
    assert d_ece(p, y, binning="mass") == pytest.approx(adaptive, abs=1e-6)  # 1000 rows: both have 100 in each bin
    conditional = netcal.ECE([10, 5, 5], detection=True).measure(np.c_[p, x], y.astype(int))
    assert conditional_d_ece(p, y, x) == pytest.approx(conditional, abs=1e-6)
    # Its ACE is the *average* error, with all bins weighing alike; the adaptive one is what is called so elsewhere.
    assert abs(netcal.ACE(10, detection=True).measure(p, y.astype(int)) - adaptive) > 1e-3


def test_d_ece_against_uq_detr_and_the_trap_of_independent_matching():
    uq_detr = pytest.importorskip("uq_detr")
    scene = span(toy(images=80))  # images without ground truth are all false positives in both
    found = match(**scene)
    ours = d_ece(scene["scores"], found.tp)
    assert ours == pytest.approx(uq_detr.dece(*uq(scene), tp_criterion="greedy", n_bins=10).score, abs=1e-6)
    # "Independent" takes every duplicate for a true positive: another question, and a wholly different answer.
    assert abs(ours - uq_detr.dece(*uq(scene), tp_criterion="independent", n_bins=10).score) > 0.05
    # Without scores 0 and 1 its bins reach from the least to the greatest confidence: they depend on the data.
    narrow = toy(images=80)
    narrow["scores"] = 0.5 * narrow["scores"]
    theirs = uq_detr.dece(*uq(narrow), tp_criterion="greedy", n_bins=10).score
    assert abs(theirs - d_ece(narrow["scores"], match(**narrow).tp)) > 1e-3


def test_images_without_ground_truth_are_all_false_positives():
    box = np.array([[0.0, 0, 10, 10]])
    found = match(np.repeat(box, 2, 0), [0.8, 0.8], [0, 0], ["empty", "full"], box, [0], ["full"])
    assert d_ece([0.8, 0.8], found.tp) == pytest.approx(0.3)  # one of two is right


@pytest.mark.parametrize("levels", [0, 20])
def test_against_the_definition(levels):
    p, y, _ = sample(5, levels=levels)
    assert d_ece(p, y) == pytest.approx(naive_d_ece(p, y, 10))


def test_bin_edges():
    assert d_ece([1.0, 0.95], [1, 0]) == pytest.approx(0.475)  # one bin: mean p .975, accuracy .5
    assert d_ece([0.3, 0.35], [0, 1]) == pytest.approx(abs(0.5 - 0.325))  # .3 opens the bin [.3, .4)
    assert d_ece([0.0, 1.0], [0, 1], bins=1) == 0


def test_equal_mass_bins():
    p, y, _ = sample(2, n=37)
    order = np.argsort(p)
    parts = np.split(order, np.ceil(np.arange(1, 5) * 37 / 5).astype(int))
    expected = sum(len(i) / 37 * abs(y[i].mean() - p[i].mean()) for i in parts)
    assert d_ece(p, y, bins=5, binning="mass") == pytest.approx(expected)
    tied = np.array([0.2, 0.2, 0.2, 0.8])
    expected = 0.75 * abs(1 / 3 - 0.2) + 0.25 * 0.2  # equal values share a bin, whatever their order
    assert d_ece(tied, [1, 0, 0, 1], bins=2, binning="mass") == pytest.approx(expected)
    assert d_ece(tied, [0, 0, 1, 1], bins=2, binning="mass") == pytest.approx(expected)


def test_conditions():
    boxes, sizes = [[0, 0, 20, 10], [90, 40, 110, 60.0]], [[50, 100], [50, 100]]
    x = box_conditions(boxes, sizes)
    np.testing.assert_allclose(x, [[0.1, 0.1, 0.2, 0.2], [1.0, 1.0, 0.2, 0.4]])
    p, y, _ = sample(4)
    far = np.random.default_rng(1).random((400, 2))
    assert conditional_d_ece(p, y, far[:, :0]) == pytest.approx(d_ece(p, y))  # without conditions
    beyond = np.where(far > 0.8, far + 5, far)  # boxes leave their images: netcal refuses them
    assert conditional_d_ece(p, y, beyond) == pytest.approx(conditional_d_ece(p, y, far))
    # Errors that cancel over the image show up by position.
    p, y, x = np.full(4, 0.5), np.array([1, 1, 0, 0]), np.array([[0.1], [0.1], [0.9], [0.9]])
    assert d_ece(p, y) == 0
    assert conditional_d_ece(p, y, x) == pytest.approx(0.5)
    assert box_conditions(np.zeros((0, 4)), np.zeros((0, 2))).shape == (0, 4)


weighted = st.integers(0, 25).flatmap(
    lambda n: st.tuples(
        hnp.arrays(float, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0])),
        hnp.arrays(bool, n),
        hnp.arrays(np.int64, n, elements=st.integers(0, 3)),
    )
)
METRICS = {
    "width": d_ece,
    "mass": lambda p, y, weight=None: d_ece(p, y, bins=4, binning="mass", weight=weight),
    "conditional": lambda p, y, weight=None: conditional_d_ece(p, y, np.c_[p, 1 - np.asarray(p)], weight=weight),
    "brier": brier,
    "nll": nll,
}


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


def test_sure_and_wrong_is_clipped():
    assert nll([0.0], [1]) == pytest.approx(-np.log(1e-12))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brier([1.2], [1]), "row 0 holds 1.2"),
        (lambda: brier([0.5], [2]), "only 0 and 1"),
        (lambda: brier([0.5, 0.1], [1]), "one length"),
        (lambda: brier([0.5], [1], [-1.0]), "not negative"),
        (lambda: d_ece([0.5], [1], bins=0), "bins"),
        (lambda: d_ece([0.5], [1], binning="equal"), "binning must be one of width, mass"),
        (lambda: conditional_d_ece([0.5], [1], [0.5]), "x must have shape"),
        (lambda: conditional_d_ece([0.5], [1], [[np.nan]]), "x must not hold NaN"),
        (lambda: box_conditions([[0, 0, 1, 1]], [[0, 5]]), "positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
