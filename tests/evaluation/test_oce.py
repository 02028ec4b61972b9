"""Object-level calibration error against uq-detr, with distributions and with confidences."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from reliability_hooks.evaluation.masks import MaskIoU
from reliability_hooks.evaluation.oce import object_brier, oce

from .scenes import Arrays, toy, uq


def objects(scene: Arrays, scores: np.ndarray | None = None, **options: object) -> np.ndarray:
    names = ("labels", "image_ids", "gt_boxes", "gt_labels", "gt_image_ids")
    scores = scene["scores"] if scores is None else scores
    return object_brier(scene["boxes"], scores, *(scene[name] for name in names), **options)


@pytest.mark.parametrize("seed", range(3))
def test_against_uq_detr(seed):
    uq_detr = pytest.importorskip("uq_detr")
    scene = toy(seed, images=30)
    scene["labels"] = np.random.default_rng(seed).permuted(scene["labels"])  # many votes and ties
    distributions = np.random.default_rng(seed).dirichlet(np.ones(4), len(scene["boxes"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scores in (None, distributions):
            theirs = uq_detr.oce(*uq(scene, scores)).score
            assert oce(objects(scene, scores)) == pytest.approx(theirs, abs=1e-6)
        alone = uq_detr.oce(*uq(scene), iou_thresholds=[0.6]).score
        assert oce(objects(scene, iou_thresholds=[0.6])) == pytest.approx(alone, abs=1e-6)


def test_by_hand():
    box = np.array([[0.0, 0, 10, 10]])
    good = object_brier(box, [[0.8, 0.2]], [0], [1], box, [0], [1])
    np.testing.assert_allclose(good, [0.08])
    np.testing.assert_allclose(object_brier(box, [0.8], [0], [1], box, [0], [1]), [0.08])
    np.testing.assert_allclose(object_brier(box, [0.8], [1], [1], box, [0], [1]), [1.28])
    np.testing.assert_allclose(object_brier(box, [0.8], [0], [2], box, [0], [1]), [1])  # unmatched
    half = np.array([[0.0, 0, 10, 6]])  # found at .5, not at .75
    np.testing.assert_allclose(object_brier(half, [0.8], [0], [1], box, [0], [1]), [0.54])


def test_unknown_classes_and_nothing():
    box = np.array([[0.0, 0, 10, 10]])
    values = object_brier(box, [0.8], [0], [1], np.repeat(box, 2, 0), [0, -1], [1, 1])
    np.testing.assert_allclose(values, [0.08, np.nan])
    assert oce(values) == pytest.approx(0.08)
    assert oce([0.2, 0.6], weight=[3, 1]) == pytest.approx(0.3)
    assert np.isnan(oce([]))
    np.testing.assert_array_equal(object_brier([], [], [], [], box, [0], [1]), [1])
    np.testing.assert_array_equal(object_brier([], np.zeros((0, 3)), [], [], box, [0], [1]), [1])
    assert object_brier(box, [0.5], [0], [1], [], [], []).shape == (0,)


def test_masks_take_the_place_of_boxes():
    mask = np.zeros((2, 8, 8), bool)
    mask[0, :4], mask[1, :, :4] = True, True
    box = np.array([[0.0, 0, 8, 8]])
    overlap = MaskIoU(mask[:1], mask[1:])
    assert object_brier(box, [0.8], [0], [1], box, [0], [1], pair_iou=overlap) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.2]}, "scores must lie"),
        ({"scores": [[0.5, 0.5]], "gt_labels": [2]}, "scores have 2 classes"),
        ({"iou_thresholds": []}, "iou_thresholds"),
        ({"iou_thresholds": [0.0]}, "iou_thresholds"),
        ({"labels": [0, 1]}, "labels must have shape"),
    ],
)
def test_bad_input(change, message):
    box = np.array([[0.0, 0, 10, 10]])
    good = {"boxes": box, "scores": [0.5], "labels": [0], "image_ids": [1]}
    good |= {"gt_boxes": box, "gt_labels": [0], "gt_image_ids": [1]}
    with pytest.raises(ValueError, match=message):
        object_brier(**good | change)
