"""The image bootstrap: reproducible, by image, shared draws, and of the coverage that it claims."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest

from reliability_hooks.evaluation.bootstrap import Estimate, image_bootstrap, paired_bootstrap
from reliability_hooks.evaluation.calibration import brier, d_ece
from reliability_hooks.evaluation.classwise import class_wise_d_ece
from reliability_hooks.evaluation.selective import auroc, error_rate, fpr_at_tpr
from reliability_hooks.evaluation.summary import CALIBRATION_METRICS


def clustered(seed: int, images: int = 40, per_image: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All instances of an image share their correctness: the worst case for a bootstrap over instances."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(images), per_image)
    return ids, np.full(ids.size, 0.5), np.repeat(rng.random(images) < 0.6, per_image)


def test_prints_as_promised():
    estimate = Estimate(0.0814, 0.0621, 0.1029, 0.95, 10, 3)
    assert str(estimate) == "0.081 [0.062, 0.103]"
    assert f"{estimate:.1%}" == "8.1% [6.2%, 10.3%]"


def test_value_and_determinism():
    rng = np.random.default_rng(0)
    p = rng.random(200)
    y, ids = rng.random(200) < p, rng.integers(0, 30, 200)
    first = image_bootstrap(CALIBRATION_METRICS, ids, p, y, draws=100, seed=4)
    again = image_bootstrap(CALIBRATION_METRICS, ids.astype(str), p, y, draws=100, seed=4)
    other = image_bootstrap(CALIBRATION_METRICS, ids, p, y, draws=100, seed=5)
    for name, metric in CALIBRATION_METRICS.items():
        assert first[name].value == metric(p, y)
        assert first[name].low < first[name].high
        assert first[name].n == 200
        assert first[name].n_images == len(np.unique(ids))
        assert first[name].low != other[name].low
    assert {e.n for e in again.values()} == {200}
    # d_ece is biased upward by resampling; the others straddle their value.
    assert all(first[n].low < first[n].value < first[n].high for n in ("brier", "nll", "auroc", "augrc"))
    assert image_bootstrap({"brier": brier}, ids, p, y, draws=100, seed=4)["brier"] == first["brier"]


def test_against_plain_resampling_of_images():
    ids, p, y = clustered(1)
    rng = np.random.default_rng(9)
    per_image = y.reshape(40, 10)
    values = [1 - per_image[rng.integers(40, size=40)].mean() for _ in range(2000)]
    ours = image_bootstrap({"e": error_rate}, ids, p, y, draws=2000)["e"]
    np.testing.assert_allclose([ours.low, ours.high], np.quantile(values, [0.025, 0.975]), atol=0.03)


def test_coverage_with_clustered_images():
    hits = 0
    for seed in range(100):
        ids, p, y = clustered(seed)
        estimate = image_bootstrap({"e": error_rate}, ids, p, y, draws=100, level=0.9, seed=seed)["e"]
        hits += estimate.low <= 0.4 <= estimate.high
    assert 80 <= hits <= 98  # a bootstrap over instances covers about 40 of 100


def test_images_without_instances_widen_the_sample():
    ids, p, y = np.array([3, 3, 7]), np.array([0.2, 0.9, 0.4]), np.array([0, 1, 1])
    estimate = image_bootstrap({"b": brier}, ids, p, y, all_images=[3, 7, 8, 9])["b"]
    assert estimate.n_images == 4
    with pytest.raises(ValueError, match="7 is not among all_images"):
        image_bootstrap({"b": brier}, ids, p, y, all_images=[3])


def test_mostly_undefined_gives_no_interval():
    estimate = image_bootstrap({"a": auroc}, [0, 1], [0.2, 0.9], [0, 1], draws=400)["a"]  # defined in half the draws
    assert estimate.value == 1
    one_class = image_bootstrap({"a": auroc}, [0, 1], [0.2, 0.9], [1, 1])["a"]
    assert np.isnan([one_class.value, one_class.low, one_class.high]).all()
    nothing = image_bootstrap({"b": brier}, [], [], [])["b"]
    assert nothing.n == nothing.n_images == 0
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    empty = image_bootstrap({"b": brier}, [], [], [], all_images=["a", "b"])["b"]
    assert empty.n_images == 2


def test_some_undefined_draws_are_dropped():
    ids, p, y = np.arange(8), np.linspace(0.1, 0.8, 8), np.array([0, 0, 0, 1, 1, 1, 1, 1])
    p[0] = 0.65
    estimate = image_bootstrap({"a": auroc}, ids, p, y)["a"]
    assert 0 <= estimate.low < estimate.value < estimate.high <= 1


def test_paired_interval_is_of_the_difference():
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 50, 600)
    p = rng.random(600)
    y = rng.random(600) < p
    worse = np.clip(p + 0.1, 0, 1)
    difference = paired_bootstrap(brier, ids, (worse, y), (p, y))
    assert difference.value == pytest.approx(brier(worse, y) - brier(p, y))
    assert 0 < difference.low < difference.value < difference.high
    alone = image_bootstrap({"a": brier}, ids, p, y)["a"]
    assert difference.high - difference.low < alone.high - alone.low
    ratio = paired_bootstrap(brier, ids, (worse, y), (p, y), ratio=True)
    assert ratio.value == pytest.approx(brier(worse, y) / brier(p, y))
    assert 1 < ratio.low < ratio.high


def test_paired_with_itself_and_with_zero():
    ids, p, y = clustered(0)
    same = paired_bootstrap(brier, ids, (p, y), (p, y))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    perfect = y.astype(float)
    undefined = paired_bootstrap(brier, ids, (p, y), (perfect, y), ratio=True)
    assert np.isnan([undefined.value, undefined.low]).all()


def test_the_protocol_is_what_was_done():
    metrics = {"plain": d_ece, "bound": partial(d_ece, bins=25, binning="mass"), "fpr": partial(fpr_at_tpr, tpr=0.9)}
    found = image_bootstrap(metrics, [0, 1], [0.2, 0.9], [0, 1], draws=7, seed=3, protocol={"matching": "COCO greedy"})
    assert found["plain"].protocol == {
        "bins": 10, "binning": "width", "matching": "COCO greedy",
        "interval": "percentiles of 7 bootstrap draws of images, seed 3",
    }
    assert found["bound"].protocol["bins"] == 25
    assert found["bound"].protocol["binning"] == "mass"
    assert (found["fpr"].protocol["tpr"], found["fpr"].protocol["positive"]) == (0.9, "error")
    assert json.loads(json.dumps(asdict(found["bound"])))["protocol"]["binning"] == "mass"
    by_class = image_bootstrap({"c": partial(class_wise_d_ece, n_classes=5)}, [0, 1], [0.2, 0.9], [0, 1], [4, 0])["c"]
    assert (by_class.protocol["classes"], by_class.protocol["classes_dropped"]) == (5, 3)
    pair = paired_bootstrap(brier, [0, 1], ([0.2, 0.9], [0, 1]), ([0.2, 0.9], [0, 1]), protocol={"score_cut": 0.1})
    assert pair.protocol["figure"] == "difference"
    assert pair.protocol["score_cut"] == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"draws": 0}, "draws must be at least 1"), ({"level": 1.0}, "level"), ({"level": 0.0}, "level")],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        image_bootstrap({"b": brier}, [0], [0.5], [1], **change)
    with pytest.raises(ValueError, match="one image id for each row"):
        paired_bootstrap(brier, [0, 1], ([0.5], [1]), ([0.5], [1]))
