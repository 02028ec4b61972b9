"""A detector's boxes with the masks of Segment Anything, each with a reliability of its own."""

from __future__ import annotations

import pytest
import torch

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.frame import Frame
from reliability_hooks.hosts.two_stage import TwoStage, joined

from .case import SIZES, photographs
from .segment_anything_cases import sam_predictor
from .torchvision_cases import CASES


class Constant(Monitor):
    """Answers with the same reliability for everything."""

    def __init__(self, value: float) -> None:
        super().__init__(signals=())
        self.value = value

    def apply(self, frame: Frame) -> Instances:
        found = super().apply(frame)
        return found.with_columns({"reliability": torch.full((len(found),), self.value)})


@pytest.fixture(scope="module")
def stages() -> tuple[object, object]:
    [case] = [case for case in CASES if case.name == "torchvision/FCOS"]
    return case.build(None), sam_predictor(None)


def test_boxes_and_masks_keep_together(stages: tuple[object, object]) -> None:
    detector, predictor = stages
    images = photographs(None, SIZES)
    with attach(detector, Constant(0.9)) as handle:
        alone = handle.predict(images)
    with attach(detector, Constant(0.9)) as boxes, attach(predictor, Constant(0.4)) as masks:
        found = TwoStage(boxes, masks).predict(images)
        direct = masks.predict(images, boxes=[i.boxes.numpy() for i in alone])
    for both, box, mask, image in zip(found, alone, direct, images, strict=True):
        assert len(both) == len(box) > 0
        assert torch.equal(both.boxes, box.boxes)
        assert torch.equal(both.scores, box.scores)
        assert torch.equal(both.labels, box.labels)
        assert both.masks is not None
        assert mask.masks is not None
        assert both.masks.shape == (len(box), *image.shape[:2])
        assert torch.equal(both.masks, mask.masks)
        assert (both.reliability == 0.9).all()
        assert torch.allclose(both.column("mask_reliability"), torch.tensor(0.4))
        assert torch.equal(both.column("mask_predicted_iou"), mask.scores)
        assert {"mask_reliability_interval", "mask_verdict", "expected_mask_iou"} <= both.columns.keys()


def test_no_boxes(stages: tuple[object, object]) -> None:
    detector, predictor = stages
    with attach(detector) as boxes, attach(predictor) as masks:
        for found, image in zip(two := TwoStage(boxes, masks).predict(photographs(None, SIZES), conf=2.0),
                                photographs(None, SIZES), strict=True):  # fmt: skip
            assert len(found) == 0
            assert found.masks is not None
            assert found.masks.shape == (0, *image.shape[:2])
            assert found.column("mask_reliability").shape == (0,)
    assert len(two) == len(SIZES)


def test_as_many_masks_as_boxes() -> None:
    some = Instances(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 masks for 2 boxes"):
        joined(some, some[:1])


def test_a_broken_mask_monitor_does_not_touch_the_boxes(stages: tuple[object, object]) -> None:
    detector, predictor = stages

    class Broken(Monitor):
        def apply(self, frame: Frame) -> Instances:
            raise RuntimeError("broken on purpose")

    with attach(detector, Constant(0.9)) as boxes, attach(predictor, Broken(signals=())) as masks:
        [found] = TwoStage(boxes, masks).predict(photographs(None, SIZES)[:1])
    assert (found.reliability == 0.9).all()
    assert found.column("mask_reliability").isnan().all()
