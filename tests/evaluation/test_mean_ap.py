"""COCO's mean average precision from arrays, against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reliability_hooks.evaluation.mean_ap import mean_average_precision

from .scenes import toy


@pytest.mark.parametrize("crowds", [False, True])
def test_mean_average_precision_against_torchmetrics(crowds):
    from torchmetrics.detection import MeanAveragePrecision

    scene = toy(crowds=crowds)
    # their own thresholds are rounded to float32, which moves the recall points
    theirs = MeanAveragePrecision(iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
                                  rec_thresholds=np.linspace(0, 1, 101).tolist())
    for i in np.union1d(scene["image_ids"], scene["gt_image_ids"]):
        d, g = scene["image_ids"] == i, scene["gt_image_ids"] == i
        theirs.update(
            [{k: torch.tensor(scene[k][d]) for k in ("boxes", "scores", "labels")}],
            [{"boxes": torch.tensor(scene["gt_boxes"][g]), "labels": torch.tensor(scene["gt_labels"][g]),
              "iscrowd": torch.tensor(scene["gt_crowd"][g]).int()}],
        )
    expected = theirs.compute()
    found = mean_average_precision(**scene)
    assert 0.05 < found.ap < found.ap50 < 1
    assert found.ap == pytest.approx(float(expected["map"]), abs=1e-5)
    assert found.ap50 == pytest.approx(float(expected["map_50"]), abs=1e-5)
    # neither unknown objects nor boxes that are not finite make it better or crash it
    unknown = np.r_[scene["gt_labels"], -1]
    more = scene | {"gt_boxes": np.r_[scene["gt_boxes"], [[0.0, 0, 9, 9]]], "gt_labels": unknown,
                    "gt_image_ids": np.r_[scene["gt_image_ids"], 3], "gt_crowd": np.r_[scene["gt_crowd"], False]}
    assert mean_average_precision(**more) == found
    broken = scene | {"boxes": np.r_[scene["boxes"][:-1], [[np.nan] * 4]]}
    assert 0 < mean_average_precision(**broken).ap <= found.ap + 1e-9


def test_mean_average_precision_of_little():
    none = ([], [], [], [])
    assert np.isnan(mean_average_precision(*none, [], [], []).ap)
    assert np.isnan(mean_average_precision([[0, 0, 1, 1]], [0.5], [0], ["a"], [[0, 0, 1, 1]], [-1], ["a"]).ap)
    assert mean_average_precision(*none, [[0, 0, 1, 1]], [0], ["a"]).ap == 0
    one = mean_average_precision([[0, 0, 1, 1]], [0.5], [0], ["a"], [[0, 0, 1, 1]], [0], ["a"])
    assert (one.ap, one.ap50, float(one)) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="scores must not hold NaN"):
        mean_average_precision([[0, 0, 1, 1]], [np.nan], [0], ["a"], [[0, 0, 1, 1]], [0], ["a"])
