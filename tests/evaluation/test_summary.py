"""All metrics at once: equal to the parts, each with protocol and interval."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from reliability_hooks.evaluation.calibration import box_conditions, conditional_d_ece, d_ece
from reliability_hooks.evaluation.classwise import la_ace, la_ece
from reliability_hooks.evaluation.lrp import events, lrp_optimal
from reliability_hooks.evaluation.masks import encode
from reliability_hooks.evaluation.matching import match
from reliability_hooks.evaluation.oce import object_brier
from reliability_hooks.evaluation.summary import CORRECTNESS_METRICS, evaluate

from .scenes import Arrays, toy

OTHERS = {"class_wise_d_ece", "la_ece", "la_ece_0", "la_ace_0", "lrp_optimal", "oce"}


def parts(scene: Arrays, p: np.ndarray) -> dict[str, float]:
    found = {tau: match(**scene, iou_threshold=tau) for tau in (0.5, 0.1, 0.0)}
    keep = {tau: ~found[tau].ignore for tau in found}
    e = events(found[0.5], p, *(scene[k] for k in ("labels", "image_ids", "gt_labels", "gt_image_ids", "gt_crowd")))
    real = ~scene["gt_crowd"]
    truth = (scene[k][real] for k in ("gt_boxes", "gt_labels", "gt_image_ids"))
    return {
        "d_ece": d_ece(p[keep[0.5]], found[0.5].tp[keep[0.5]]),
        "la_ece": la_ece(p[keep[0.1]], found[0.1].iou[keep[0.1]], scene["labels"][keep[0.1]]).value,
        "la_ece_0": la_ece(p[keep[0.0]], found[0.0].iou[keep[0.0]], scene["labels"][keep[0.0]]).value,
        "la_ace_0": la_ace(p[keep[0.0]], found[0.0].iou[keep[0.0]], scene["labels"][keep[0.0]]).value,
        "lrp_optimal": lrp_optimal(e.scores, e.iou, e.outcome, e.labels).value,
        "oce": object_brier(scene["boxes"], p, scene["labels"], scene["image_ids"], *truth).mean(),
    }


def test_equals_its_parts_and_says_how():
    scene = toy(crowds=True)
    sizes = np.tile([300.0, 320.0], (len(scene["boxes"]), 1))
    found = evaluate(**scene, image_sizes=sizes, draws=20, n_classes=6)
    assert found.keys() == {*CORRECTNESS_METRICS, *OTHERS, "d_ece_position", "d_ece_size"}
    for name, expected in parts(scene, scene["scores"]).items():
        assert found[name].value == pytest.approx(expected), name
    m = match(**scene)
    x = box_conditions(scene["boxes"], sizes)[~m.ignore]
    expected = conditional_d_ece(scene["scores"][~m.ignore], m.tp[~m.ignore], x[:, 2:])
    assert found["d_ece_size"].value == pytest.approx(expected)
    for name, estimate in found.items():
        assert estimate.low < estimate.high, name
        said = json.loads(json.dumps(asdict(estimate)))["protocol"]
        assert said["score_cut"] == 0
        assert said["judged"] == "score"
        assert "bootstrap draws of images" in said["interval"]
        assert said["matching"]
        assert "iou_threshold" in said or "iou_thresholds" in said
    assert found["d_ece"].protocol["ignored_in_crowds"] == m.ignore.sum() > 0
    assert found["d_ece"].protocol["bins"] == 10
    assert found["la_ece"].protocol["iou_threshold"] == 0.1
    assert (found["la_ece_0"].protocol["bins"], found["la_ece_0"].protocol["iou_threshold"]) == (25, 0)
    assert found["la_ece_0"].protocol["classes_dropped"] == 2
    assert found["fpr95_error"].protocol["positive"] == "error"
    assert found["fpr95_correct"].protocol["positive"] == "correct"
    assert found["oce"].n_images == found["d_ece"].n_images


def test_reliability_is_judged_and_the_score_matches():
    scene = toy()
    reliability = np.random.default_rng(0).random(len(scene["boxes"]))
    found = evaluate(**scene, reliability=reliability, draws=2)
    for name, expected in parts(scene, reliability).items():
        assert found[name].value == pytest.approx(expected), name
    assert found["d_ece"].protocol["judged"] == "reliability"
    assert found["error_rate"].value == evaluate(**scene, draws=2)["error_rate"].value


def test_score_cut_and_all_images():
    scene = toy()
    keep = scene["scores"] >= 0.5
    some = {k: v if k.startswith("gt_") else v[keep] for k, v in scene.items()}
    found, expected = evaluate(**scene, score_cut=0.5, draws=2), parts(some, some["scores"])
    assert found["lrp_optimal"].value == pytest.approx(expected["lrp_optimal"])
    assert found["oce"].value == pytest.approx(expected["oce"])
    assert found["d_ece"].protocol["score_cut"] == 0.5
    everywhere = evaluate(**scene, all_images=np.arange(500), draws=2)
    assert everywhere["d_ece"].n_images == everywhere["oce"].n_images == 500


def test_masks():
    rng = np.random.default_rng(0)
    gt = np.zeros((6, 20, 20), bool)
    gt[:, 2:12, 2:12] = True
    masks = gt.copy()
    masks[:3, :, 8:] = False
    box = np.tile([[0.0, 0, 20, 20]], (6, 1))
    arguments = (box, rng.random(6), np.zeros(6, int), np.arange(6), box, np.zeros(6, int), np.arange(6))
    found = evaluate(*arguments, masks=masks, gt_masks=encode(gt), score_cut=0.01, draws=2, iou_threshold=0.7)
    assert found["error_rate"].value == 0.5
    assert "mask IoU" in found["d_ece"].protocol["matching"]
    assert evaluate(*arguments, draws=2)["error_rate"].value == 0
    with pytest.raises(ValueError, match="both masks and gt_masks"):
        evaluate(*arguments, masks=masks)


def test_nothing():
    none = np.zeros((0, 4))
    found = evaluate(none, [], [], [], none, [], [], draws=2)
    assert all(np.isnan(e.value) and e.n == 0 for e in found.values())
    missed = evaluate(none, [], [], [], [[0.0, 0, 5, 5]], [0], ["a"], draws=2)
    assert missed["oce"].value == missed["lrp_optimal"].value == 1


def test_bad_input():
    scene = toy(images=4)
    with pytest.raises(ValueError, match="p is NaN"):
        evaluate(**scene, reliability=np.full(len(scene["boxes"]), np.nan), draws=2)
    with pytest.raises(ValueError, match="reliability must have shape"):
        evaluate(**scene, reliability=[0.5], draws=2)


def test_versions_of_a_photograph_are_drawn_together():
    """Each image twice: the figures stay, and so do the intervals, unless the copies are taken for independent."""
    scene = toy()
    ids = np.arange(1 + max(scene["image_ids"].max(), scene["gt_image_ids"].max()))
    offset = {"image_ids": len(ids), "gt_image_ids": len(ids)}
    twice = {k: np.concatenate([v, v + offset.get(k, 0)]) if v is not None else None for k, v in scene.items()}
    both = np.concatenate([ids, ids + len(ids)])
    once = evaluate(**scene, all_images=ids, draws=50)["brier"]
    together = evaluate(**twice, all_images=both, drawn_with=[*ids, *ids], draws=50)["brier"]
    apart = evaluate(**twice, all_images=both, draws=50)["brier"]
    assert (together.low, together.value, together.high) == pytest.approx((once.low, once.value, once.high))
    assert together.n_images == len(ids)
    assert apart.high - apart.low < 0.9 * (once.high - once.low)
    with pytest.raises(ValueError, match="one source for each"):
        evaluate(**twice, all_images=both, drawn_with=ids)
    with pytest.raises(ValueError, match="not among all_images"):
        evaluate(**scene, all_images=ids[1:], draws=2)
