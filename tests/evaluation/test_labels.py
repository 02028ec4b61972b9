"""What is true of detections: correctness, mask IoU, the class of the object that was found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reliability_hooks.evaluation.datasets import GroundTruth
from reliability_hooks.evaluation.labels import MASK_IOU, labelled, with_mask_iou, with_truth
from reliability_hooks.instances import Instances

OBJECTS = np.array([[0, 0, 20, 20], [40, 0, 60, 20], [0, 40, 80, 60]], np.float32)
TRUTH = GroundTruth(OBJECTS, np.array([1, 2, 1]), np.array([False, False, True]), [
    [[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in OBJECTS.tolist()
])  # fmt: skip
BOXES = torch.tensor([
    [0.0, 0, 20, 20],  # on the first object
    [40.0, 0, 60, 20],  # on the second, wrong class
    [2.0, 41, 20, 59],  # in the crowd
    [60.0, 70, 80, 80],  # on nothing
])  # fmt: skip


def found() -> Instances:
    masks = torch.zeros(4, 80, 100, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, BOXES.long().tolist(), strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2] = True  # the left half
    return Instances(BOXES, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.ones(4, dtype=torch.int64), masks=masks,
                     image_size=(80, 100))


def test_rows_on_crowds_are_left_out() -> None:
    rows, correct, iou, image = labelled([(found(), TRUTH), (Instances.empty((80, 100)), TRUTH)])
    assert rows.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert correct.tolist() == [True, False, False]
    assert iou.tolist() == [1, 0, 0]
    assert image.tolist() == [0, 0, 0]


def test_mask_iou_is_that_of_the_matched_object() -> None:
    value = with_mask_iou(found(), TRUTH).columns[MASK_IOU]
    assert value[:2].tolist() == pytest.approx([0.5, 0.0], abs=0.03)
    assert value[2].isnan()
    assert value[3] == 0
    boxes_alone = GroundTruth(TRUTH.boxes, TRUTH.labels, TRUTH.crowd)
    assert with_mask_iou(found(), boxes_alone).columns[MASK_IOU].isnan().all()
    assert with_mask_iou(Instances.empty((80, 100)), TRUTH).columns[MASK_IOU].shape == (0,)


def test_truth_is_the_class_of_whatever_was_found() -> None:
    assert with_truth(found(), TRUTH).columns["truth"].tolist() == [1, 2, -1, -1]
    assert with_truth(Instances.empty((80, 100)), TRUTH).columns["truth"].shape == (0,)
    unknown = GroundTruth(TRUTH.boxes, np.array([-1, 2, 1]), TRUTH.crowd)
    assert with_truth(found(), unknown).columns["truth"].tolist() == [-1, 2, -1, -1]
