"""OOD metrics against scikit-learn and pytorch-ood, and their summary."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from reliability_hooks.evaluation.bootstrap import image_bootstrap, image_counts
from reliability_hooks.evaluation.ood import (
    OOD_METRICS,
    _ranked,
    fpr95_id_positive,
    fpr95_ood_positive,
    ood_aupr_in,
    ood_aupr_out,
    ood_auroc,
    ood_summary,
)

from .scenes import sample


@pytest.mark.parametrize("levels", [0, 7])
@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed, levels):
    score, out, w = sample(seed, levels=levels)
    for weight in (None, w):
        expected = {
            "ood_auroc": roc_auc_score(out, score, sample_weight=weight),
            "ood_aupr_out": average_precision_score(out, score, sample_weight=weight),
            "ood_aupr_in": average_precision_score(~out, -score, sample_weight=weight),
        }
        for name, truth, value in (("fpr95_ood_positive", out, score), ("fpr95_id_positive", ~out, -score)):
            fpr, tpr, _ = roc_curve(truth, value, sample_weight=weight, drop_intermediate=False)
            expected[name] = fpr[np.argmax(tpr >= 0.95)]
        assert expected.keys() == OOD_METRICS.keys()
        for name, metric in OOD_METRICS.items():
            assert metric(score, out, weight=weight) == pytest.approx(expected[name], abs=1e-9), name


def test_against_pytorch_ood():
    """Their FPR95 takes OOD as the positive. Their AUPR is the trapezoid's area, ours average precision."""
    from pytorch_ood.metrics import OODMetrics

    score, out, _ = sample(0, n=4000, levels=200)
    theirs = OODMetrics()
    theirs.update(torch.tensor(score, dtype=torch.float64), torch.where(torch.tensor(out), -1, 0))
    found = {name: float(value) for name, value in theirs.compute().items()}
    assert ood_auroc(score, out) == pytest.approx(found["AUROC"], abs=1e-6)
    assert fpr95_ood_positive(score, out) == pytest.approx(found["FPR95TPR"], abs=1e-6)
    assert abs(fpr95_id_positive(score, out) - found["FPR95TPR"]) > 0.02  # the other convention is another figure
    assert ood_aupr_in(score, out) == pytest.approx(found["AUPR-IN"], abs=5e-3)
    assert ood_aupr_out(score, out) == pytest.approx(found["AUPR-OUT"], abs=5e-3)


def test_fpr95_has_two_meanings():
    """100 ID at 0 ... 99; of 100 OOD, 90 stand above all ID and 10 below half of it."""
    score = np.r_[np.arange(100.0), np.full(90, 200.0), np.full(10, 49.5)]
    out = np.r_[np.zeros(100), np.ones(100)]
    assert fpr95_id_positive(score, out) == pytest.approx(0.10)  # ID at or below 94 passes, and with it the ten
    assert fpr95_ood_positive(score, out) == pytest.approx(0.50)  # to alarm for 95 OOD, 49.5 must alarm: half of ID
    assert ood_auroc(score, out) == pytest.approx(0.9 + 0.1 * 0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), max_size=25))
def test_monotone_transforms_symmetry_and_the_sorted_way(rows):
    score, out, w = (np.array(c) for c in zip(*rows, strict=True)) if rows else (np.zeros(0), np.zeros(0, bool), [])
    score, w = np.asarray(score, float), np.asarray(w, float)
    mirrored = {"ood_aupr_in": "ood_aupr_out", "ood_aupr_out": "ood_aupr_in", "ood_auroc": "ood_auroc",
                "fpr95_id_positive": "fpr95_ood_positive", "fpr95_ood_positive": "fpr95_id_positive"}
    order = np.argsort(score, kind="stable")
    ranked = _ranked(score[order], out[order].astype(float))
    for weight in (None, w):
        sorted_weight = None if weight is None else weight[order]
        for name, metric in OOD_METRICS.items():
            value = metric(score, out, weight=weight)
            assert np.isnan(value) or 0 <= value <= 1
            same = [
                metric(np.exp(score) * 7 - 2, out, weight=weight),
                OOD_METRICS[mirrored[name]](-score, ~out, weight=weight),
                ranked[name](score[order], out[order], weight=sorted_weight),
            ]
            assert same == pytest.approx([value] * 3, abs=1e-12, nan_ok=True), name


def test_nothing_and_nonsense():
    for metric in OOD_METRICS.values():
        assert np.isnan(metric([], []))
    for name in ("ood_auroc", "fpr95_id_positive", "fpr95_ood_positive"):
        assert np.isnan(OOD_METRICS[name]([1, 2], [0, 0]))
        assert np.isnan(OOD_METRICS[name]([1, 2], [1, 1]))
    assert np.isnan(ood_aupr_out([1, 2], [0, 0]))
    with pytest.raises(ValueError, match="score is NaN in 1 rows"):
        ood_auroc([1, np.nan], [0, 1])
    with pytest.raises(ValueError, match="is_ood must hold only 0 and 1"):
        ood_auroc([1, 2], [0, 2])
    with pytest.raises(ValueError, match="one length"):
        ood_auroc([1, 2], [0, 1, 1])


def test_summary_counts_what_is_undefined_and_says_its_conventions():
    score, out, _ = sample(3, n=300, levels=40)
    image = np.where(out, 1000, 0) + np.arange(300) // 6
    score[[0, 1, 2]] = np.nan
    found = ood_summary(score, out, image, draws=50, protocol={"score_name": "energy"})
    ok = ~np.isnan(score)
    assert found.keys() == OOD_METRICS.keys()
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(OOD_METRICS[name](score[ok], out[ok]))
        assert estimate.low < estimate.value < estimate.high, name
        assert estimate.n == 297
        assert estimate.n_images == len(np.unique(image))
        said = json.loads(json.dumps(asdict(estimate)))["protocol"]
        assert said["convention"]
        assert said["score_name"] == "energy"
        assert said["undefined"] == 3
        assert said["undefined_ood"] == out[:3].sum()
        assert (said["n_id"], said["n_ood"]) == ((~out[ok]).sum(), out[ok].sum())
        assert "within each of 2 strata" in said["interval"]
    id_positive, ood_positive = (found[f"fpr95_{k}_positive"].protocol["convention"] for k in ("id", "ood"))
    assert id_positive.startswith("share of OOD called ID")
    assert ood_positive.startswith("share of ID called OOD")


def test_summary_draws_id_and_ood_images_among_themselves():
    """With one row an image and a score that says nothing, AUPR is the share of OOD: fixed by the two samples."""
    out = np.arange(50) < 20
    apart = ood_summary(np.zeros(50), out, np.arange(50), draws=100)["ood_aupr_out"]
    assert apart.low == apart.high == apart.value == pytest.approx(0.4)
    together = ood_summary(np.zeros(50), out, np.arange(50), strata=np.zeros(50), draws=100)["ood_aupr_out"]
    assert together.low < 0.35 < 0.45 < together.high
    both = np.arange(50) // 5 * 5  # some images show both kinds
    out = np.arange(50) % 2 == 0
    with pytest.raises(ValueError, match="two strata"):
        ood_summary(np.zeros(50), out, both)
    assert ood_summary(np.zeros(50), out, both, strata=np.zeros(50), draws=9)["ood_auroc"].value == 0.5
    with pytest.raises(ValueError, match="all_images needs strata"):
        ood_summary(np.zeros(50), out, both, all_images=np.arange(60))


def test_summary_of_little():
    for score, out in (([], []), ([np.nan], [1]), ([1.0, 2.0], [0, 0]), ([3.0], [1])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = ood_summary(score, out, np.arange(len(score)), draws=5)
        assert np.isnan(found["ood_auroc"].value)
        assert np.isnan(found["ood_auroc"].low)
    infinite = ood_summary([-np.inf, 0, np.inf, 5], [0, 0, 1, 1], [0, 1, 2, 3], draws=5)
    assert infinite["ood_auroc"].value == 1


def test_strata_of_the_bootstrap():
    strata = np.array([0, 1, 1, 0, 1, 2])
    for counts in image_counts(6, 30, 0, strata):
        assert [counts[strata == s].sum() for s in range(3)] == [2, 3, 1]
    plain = [c.tolist() for c in image_counts(6, 5, 1)]
    assert plain == [c.tolist() for c in image_counts(6, 5, 1, np.zeros(6, int))]
    seen: list[float] = []
    # all_images in another order than its sorted one, one of them without a row
    total = {"n": lambda x, weight=1.0: seen.append(float((x * weight).sum())) or 0.0}
    image_bootstrap(total, ["b", "c"], [1.0, 10.0], all_images=["d", "c", "b"], strata=[1, 2, 1], draws=40)
    assert {*seen} == {10.0, 11.0, 12.0}  # c is alone in its stratum and always drawn once
