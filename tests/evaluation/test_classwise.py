"""Class-wise D-ECE, LaECE and LaACE against loops over classes and uq-detr, with its trap at threshold 0."""

from __future__ import annotations

import numpy as np
import pytest

from reliability_hooks.evaluation.calibration import d_ece
from reliability_hooks.evaluation.classwise import class_wise_d_ece, la_ace, la_ece
from reliability_hooks.evaluation.matching import match

from .scenes import sample, span, toy, uq


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_is_the_mean_over_classes_that_exist(binning):
    p, y, w = sample(0)
    labels = np.random.default_rng(1).choice([0, 2, 5], 400)
    result = class_wise_d_ece(p, y, labels, binning=binning, n_classes=8, weight=w)
    each = [d_ece(p[labels == c], y[labels == c], binning=binning, weight=w[labels == c]) for c in range(8)]
    np.testing.assert_allclose(result.values, each)  # NaN where empty
    assert result.value == float(result) == pytest.approx(np.nanmean(each))
    assert result.dropped == 5
    np.testing.assert_array_equal(result.counts, np.bincount(labels, w, 8))
    assert class_wise_d_ece(p, y, labels, n_classes=6).value == class_wise_d_ece(p, y, labels, n_classes=80).value


@pytest.mark.parametrize("metric", [class_wise_d_ece, la_ece, la_ace])
def test_nothing(metric):
    assert np.isnan(metric([], [], []).value)
    nothing = metric([], [], [], n_classes=3)
    assert np.isnan(nothing.value)
    assert nothing.dropped == 3
    assert np.isnan(metric([0.5], [1], [0], weight=[0.0]).value)


@pytest.mark.parametrize("metric", [class_wise_d_ece, la_ece, la_ace])
@pytest.mark.parametrize("labels", [[-1], [3]])
def test_bad_labels(metric, labels):
    with pytest.raises(ValueError, match="labels must lie in 0"):
        metric([0.5], [1], labels, n_classes=3)
    with pytest.raises(ValueError, match="p must lie"):
        metric([1.5], [1], [0])
    with pytest.raises(ValueError, match=r"iou must lie in \[0, 1\]; row 0 holds 1.5"):
        la_ece([0.5], [1.5], [0])


def test_la_ece_is_precision_times_iou():
    """The published form, bin by bin: |mean confidence - precision * mean IoU of the true positives|."""
    scene = toy()
    found = match(**scene, iou_threshold=0.1)
    total = []
    for c in range(4):
        of_class, error = scene["labels"] == c, 0.0
        for k in range(25):
            inside = of_class & (np.minimum(np.floor(scene["scores"] * 25), 24) == k)
            if inside.any():
                hits = found.iou[inside & found.tp]
                quality = found.tp[inside].mean() * (hits.mean() if len(hits) else 0)
                error += inside.sum() / of_class.sum() * abs(scene["scores"][inside].mean() - quality)
        total.append(error)
    assert la_ece(scene["scores"], found.iou, scene["labels"]).value == pytest.approx(np.mean(total))


def test_la_ace_is_the_mean_error_of_each_class():
    p, iou, labels = np.array([0.9, 0.2, 0.6]), np.array([0.7, 0.0, 0.6]), np.array([0, 0, 2])
    result = la_ace(p, iou, labels)
    np.testing.assert_allclose(result.values, [0.2, np.nan, 0.0])
    assert (result.value, result.dropped) == (pytest.approx(0.1), 1)


def test_la_ece_against_uq_detr():
    uq_detr = pytest.importorskip("uq_detr")
    scene = span(toy())
    found = match(**scene, iou_threshold=0.1)
    theirs = uq_detr.laece(*uq(scene), tp_criterion="greedy", iou_threshold=0.1).score
    assert la_ece(scene["scores"], found.iou, scene["labels"]).value == pytest.approx(theirs, abs=1e-6)


def test_the_trap_at_threshold_zero():
    """uq-detr lets a detection without overlap take a ground truth at threshold 0 (IoU 0 >= 0), even of another class.

    The next detection, which does overlap it, is then a false positive. A threshold just above 0 mends that and agrees.
    """
    uq_detr = pytest.importorskip("uq_detr")
    scene = span(toy())
    found = match(**scene, iou_threshold=0)
    ours = la_ece(scene["scores"], found.iou, scene["labels"]).value
    mended = uq_detr.laece(*uq(scene), tp_criterion="greedy", iou_threshold=1e-12).score
    published = uq_detr.laece(*uq(scene), tp_criterion="greedy", iou_threshold=0.0).score
    assert ours == pytest.approx(mended, abs=1e-6)
    assert abs(published - ours) > 0.01

    # The smallest case: a far box of higher score must not rob the good one of its ground truth.
    gt = np.array([[0.0, 0, 10, 10]])
    boxes = np.array([[100.0, 100, 110, 110], [0, 0, 10, 10]])
    found = match(boxes, [0.9, 0.8], [0, 0], [1, 1], gt, [0], [1], iou_threshold=0)
    np.testing.assert_array_equal(found.iou, [0, 1])
