"""Matching by masks against pycocotools' `segm` on real masks, and reading masks."""

from __future__ import annotations

import numpy as np
import pytest

from reliability_hooks.evaluation.datasets import GroundTruth, read_coco
from reliability_hooks.evaluation.masks import MaskIoU, decode_masks, encode, truth_masks
from reliability_hooks.evaluation.matching import match

from .scenes import pycoco


@pytest.fixture(scope="module")
def real(shared):
    """Real masks, moved and cut, with scores of many ties; and the real ground truth with its crowds."""
    dataset = read_coco(shared / "data/coco/instances_val2017.json", shared / "data/coco/val2017")
    with_crowd = [k for k, image in enumerate(dataset) if image.truth.crowd.any()]
    dataset = dataset.subset([*with_crowd, *(k for k in range(0, len(dataset), 12) if k not in with_crowd)])
    rng = np.random.default_rng(0)
    masks, owner = [], []
    for image in dataset:
        truth = decode_masks(image.truth, image.height, image.width)
        for k in rng.integers(len(truth), size=2 * len(truth)) if len(truth) else []:
            moved = np.roll(truth[k], rng.integers(-6, 7, 2), axis=(0, 1))
            moved[:, : rng.integers(0, 200)] &= rng.random() < 0.7
            masks.append(encode(moved[None])[0])
            owner.append((image.id, image.truth.labels[k] if rng.random() < 0.9 else rng.integers(80)))
    n = len(masks)
    return {
        "boxes": np.zeros((n, 4)),
        "scores": rng.integers(0, 20, n) / 20,
        "labels": np.array([label for _, label in owner]),
        "image_ids": np.array([image for image, _ in owner]),
        **dataset.truth_arrays(),
    }, (masks, truth_masks(dataset))


@pytest.mark.parametrize("agnostic", [False, True])
def test_equals_pycocotools(real, agnostic):
    scene, masks = real
    overlap = MaskIoU(*masks, scene["gt_crowd"])
    for threshold in (0.3, 0.5, 0.9):
        ours = match(**scene, iou_threshold=threshold, class_agnostic=agnostic, pair_iou=overlap)
        index, ignore = pycoco(scene, threshold, agnostic, masks)
        np.testing.assert_array_equal(ours.gt_index, index)
        np.testing.assert_array_equal(ours.ignore, ignore)
        assert ours.tp.sum() > 20
        if threshold == 0.3:
            assert ours.ignore.sum() > 1  # crowds took part
        assert f"mask IoU >= {threshold}" in ours.rule


def test_arrays_and_run_lengths_agree():
    rng = np.random.default_rng(0)
    masks, gt_masks = rng.random((5, 6, 9)) < 0.4, rng.random((3, 6, 9)) < 0.4
    crowd = [False, True, False]
    det, gt = (x.ravel() for x in np.meshgrid(range(5), range(3), indexing="ij"))
    inter = (masks[det] & gt_masks[gt]).sum((1, 2))
    whole = np.where(np.array(crowd)[gt], masks[det].sum((1, 2)), (masks[det] | gt_masks[gt]).sum((1, 2)))
    for some in (masks, encode(masks), list(masks)):
        np.testing.assert_allclose(MaskIoU(some, gt_masks, crowd)(det, gt), inter / whole)
    shuffled = rng.permutation(15)  # pairs in whatever order
    np.testing.assert_allclose(MaskIoU(masks, gt_masks, crowd)(det[shuffled], gt[shuffled]), (inter / whole)[shuffled])


def test_nothing():
    assert encode(np.zeros((0, 4, 4), bool)) == encode([]) == []
    overlap = MaskIoU([], np.ones((1, 4, 4), bool))
    found = match([], [], [], [], np.zeros((1, 4)), [0], [1], pair_iou=overlap)
    np.testing.assert_array_equal(found.gt_matched, [False])
    empty = np.zeros((1, 4, 4), bool)
    box = np.array([[0.0, 0, 4, 4]])
    assert not match(box, [0.9], [0], [1], box, [0], [1], iou_threshold=0, pair_iou=MaskIoU(empty, empty)).tp.any()


def test_bad_input(real):
    with pytest.raises(ValueError, match=r"masks must have shape \(N, H, W\)"):
        encode(np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="gt_crowd"):
        MaskIoU([], np.zeros((2, 4, 4), bool), [True])
    sizes = MaskIoU(np.zeros((1, 4, 4), bool), np.zeros((1, 5, 4), bool))
    with pytest.raises(ValueError, match=r"one size.*\(4, 4\), \(5, 4\)"):
        sizes(np.array([0]), np.array([0]))
    boxes_only = GroundTruth(np.zeros((1, 4), np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    with pytest.raises(ValueError, match="boxes only"):
        decode_masks(boxes_only, 4, 4)
