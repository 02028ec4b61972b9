"""LRP and its optimal thresholds against uq-detr, re-matched at every threshold."""

from __future__ import annotations

import numpy as np
import pytest

from reliability_hooks.evaluation.lrp import MISSED, Events, events, lrp, lrp_optimal
from reliability_hooks.evaluation.matching import match

from .scenes import Arrays, toy, uq

NAMES = ("labels", "image_ids", "gt_labels", "gt_image_ids", "gt_crowd")


def events_of(scene: Arrays, iou_threshold: float = 0.5) -> Events:
    found = match(**scene, iou_threshold=iou_threshold)
    return events(found, scene["scores"], *(scene[name] for name in NAMES))


def above(scene: Arrays, cut: float) -> Arrays:
    keep = scene["scores"] >= cut
    return {name: value if name.startswith("gt_") else value[keep] for name, value in scene.items()}


def of_class(scene: Arrays, c: int) -> Arrays:
    keep = {True: scene["gt_labels"] == c, False: scene["labels"] == c}
    return {name: value[keep[name.startswith("gt_")]] for name, value in scene.items()}


@pytest.mark.parametrize("tau", [0.3, 0.5])
def test_against_uq_detr_at_every_cut(tau):
    uq_detr = pytest.importorskip("uq_detr")
    scene = toy(images=30)
    e = events_of(scene, tau)
    for cut in (0.0, 0.4, 0.8):
        theirs = uq_detr.lrp(*uq(above(scene, cut)), iou_threshold=tau).score  # matched anew
        assert lrp(e.scores, e.iou, e.outcome, tau, cut) == pytest.approx(theirs, abs=1e-6)


def test_the_optimum_is_the_least_over_all_thresholds():
    uq_detr = pytest.importorskip("uq_detr")
    scene = toy(images=12)
    scene["scores"] = np.round(scene["scores"], 1)  # ties
    e = events_of(scene)
    best = lrp_optimal(e.scores, e.iou, e.outcome, e.labels, n_classes=6)
    for c in range(4):
        one = of_class(scene, c)
        cuts = [*np.unique(one["scores"])[::-1], np.inf]
        all_values = [uq_detr.lrp(*uq(above(one, cut))).score for cut in cuts]
        assert best.values[c] == pytest.approx(min(all_values), abs=1e-6)
        assert best.thresholds[c] == cuts[int(np.argmin(all_values))]
    assert best.dropped == 2
    assert np.isnan(best.thresholds[4:]).all()
    assert float(best) == best.value == pytest.approx(best.values[:4].mean())


def test_by_hand():
    """Two objects, one found at IoU .8 and .9, one missed, one false positive in between."""
    scores, iou, outcome = [0.9, 0.5, -np.inf], [0.8, 0.0, 0.0], [1, 0, MISSED]
    assert lrp(scores, iou, outcome) == pytest.approx((0.2 / 0.5 + 1 + 1) / 3)
    assert lrp(scores, iou, outcome, score_cut=0.6) == pytest.approx((0.2 / 0.5 + 1) / 2)
    best = lrp_optimal(scores, iou, outcome, [0, 0, 0])
    assert (best.value, best.thresholds[0]) == (pytest.approx(0.7), 0.9)
    useless = lrp_optimal([0.9, -np.inf], [0.0, 0.0], [0, MISSED], [0, 0])  # keeping nothing is best
    assert (useless.value, useless.thresholds[0]) == (1, np.inf)


def test_what_does_not_count():
    scene = toy(crowds=True)
    scene["gt_labels"][:5] = -1
    found = match(**scene)
    e = events_of(scene)
    assert found.ignore.sum() > 5
    assert (e.outcome != MISSED).sum() == (~found.ignore).sum()
    countable = ~scene["gt_crowd"] & (scene["gt_labels"] >= 0)
    assert (e.outcome != 0).sum() == countable.sum()  # found or missed: each once
    np.testing.assert_array_equal(e.scores[e.outcome == MISSED], -np.inf)


def test_weight_is_repetition():
    e = events_of(toy(images=10))
    w = np.random.default_rng(0).integers(0, 4, len(e.scores))
    rows = (e.scores, e.iou, e.outcome)
    again = [np.repeat(x, w) for x in (*rows, e.labels)]
    assert lrp(*rows, score_cut=0.5, weight=w) == pytest.approx(lrp(*again[:3], score_cut=0.5))
    a, b = lrp_optimal(*rows, e.labels, weight=w), lrp_optimal(*again)
    np.testing.assert_allclose(a.values, b.values)
    np.testing.assert_array_equal(a.thresholds, b.thresholds)


def test_nothing():
    assert np.isnan(lrp([], [], []))
    assert np.isnan(lrp_optimal([], [], [], []).value)
    only_false = lrp_optimal([0.5], [0.0], [0], [0])
    assert np.isnan(only_false.value)
    assert only_false.dropped == 1
    assert lrp([-np.inf], [0.0], [MISSED]) == 1
    empty = match([], [], [], [], [], [], [])
    assert len(events(empty, [], [], [], [], []).scores) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [np.nan]}, "NaN"),
        ({"iou": [1.2]}, "iou must lie"),
        ({"outcome": [2]}, "outcome must hold"),
        ({"iou_threshold": 1.0}, "iou_threshold"),
        ({"labels": [-1]}, "labels must lie"),
        ({"iou": [0.1, 0.2]}, "iou must have shape"),
    ],
)
def test_bad_input(change, message):
    good = {"scores": [0.5], "iou": [0.6], "outcome": [1], "labels": [0]}
    with pytest.raises(ValueError, match=message):
        lrp_optimal(**good | change)
