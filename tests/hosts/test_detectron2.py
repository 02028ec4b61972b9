"""What only Detectron2 has: fields on its instances, cascades, heads that are not known, training mode, predictors."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, RotatedBoxes
from detectron2.structures import Instances as Theirs

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.hosts.base import find_host
from reliability_hooks.hosts.detectron2_rows import joined
from reliability_hooks.signals.base import create

from .case import Recorder
from .detectron2_cases import CLASSES, MORE, inputs_of
from .test_conformance import same
from .test_detectron2_look import built

IMAGE = np.full((40, 60, 3), 90, dtype=np.uint8)


@pytest.mark.parametrize("name", [case.name.partition("/")[2] for case in MORE])
@torch.no_grad()
def test_more_models(name: str) -> None:
    own = built(name)
    with attach(own.model, Monitor(), strict=True):
        hooked = own.run()
    same(own.case, own.bare, hooked)
    for output in hooked:
        instances = output["instances"].get("evidence")
        assert len(instances) > 2
        known = instances.logits.isfinite().all(1)
        assert known.float().mean() > 0.9
        probable = instances.probabilities()[torch.arange(len(instances)), instances.labels]
        scores = instances.scores if own.case.score_is_probability else instances.scores**2
        assert (probable >= scores - 1e-4)[known].all()
        assert instances.features[known].isfinite().all()
        assert instances.logits.shape[1] == CLASSES + (instances.head == "softmax+background")


def own_fields(found: Any) -> set[str]:
    return {"pred_boxes", "scores", "pred_classes", "pred_masks"} & found.get_fields().keys()


@torch.no_grad()
def test_fields_go_where_the_instances_go() -> None:
    own = built("MaskRCNN_FPN")
    with attach(own.model, Monitor(), strict=True):
        found = own.run()[0]["instances"]
    evidence = found.evidence
    assert isinstance(evidence, Instances)
    assert evidence.columns.keys() == found.get_fields().keys() - own_fields(found) - {"evidence"}
    assert {"reliability", "reliability_interval", "verdict", "expected_iou"} <= evidence.columns.keys()
    assert len(evidence.columns) > 20  # the signals' too
    assert torch.equal(evidence.masks, found.pred_masks)

    def belongs(part: Any, rows: Tensor) -> None:
        for name, value in evidence.columns.items():
            torch.testing.assert_close(part.get(name), value[rows], equal_nan=True, rtol=0, atol=0)
        assert torch.equal(part.evidence.logits, evidence.logits[rows])

    every = torch.arange(len(found))
    belongs(found[found.scores > found.scores.median()], every[found.scores > found.scores.median()])
    belongs(found[2], every[2:3])
    belongs(found.to("cpu"), every)
    belongs(Theirs.cat([found[:2], found[2:]]), every)
    bare = Theirs(found.image_size, **{k: v for k, v in found.get_fields().items() if k != "pred_masks"})
    kept = evidence.boxes.clone()
    again = detector_postprocess(bare, 50, 70)
    belongs(again, every)
    assert torch.equal(evidence.boxes, kept)  # Detectron2 scales boxes in place; ours stay those of the image


def test_columns_never_replace_a_field_of_the_detector() -> None:
    from reliability_hooks.hosts.detectron2 import _add

    found = Theirs((9, 9), pred_boxes=Boxes(torch.rand(2, 4)), scores=torch.tensor([0.2, 0.3]))
    ours = Instances(torch.rand(2, 4), torch.rand(2), torch.zeros(2, dtype=torch.int64),
                     columns={"scores": torch.ones(2), "reliability": torch.zeros(2)})  # fmt: skip
    for _ in range(2):
        _add(found, ours)
        assert found.scores.tolist() == pytest.approx([0.2, 0.3])
        assert found.reliability.tolist() == [0, 0]


@pytest.mark.parametrize("sigmoid", [False, True])
def test_joined_logits_are_those_of_the_mean_probability(sigmoid: bool) -> None:
    stages = [torch.randn(4, 7, generator=torch.Generator().manual_seed(k)) * 20 for k in range(3)]
    found = joined(stages, sigmoid)
    mean = torch.stack([x.double().sigmoid() if sigmoid else x.double().softmax(1) for x in stages]).mean(0)
    own = found.double().sigmoid() if sigmoid else found.double().softmax(1)
    torch.testing.assert_close(own, mean, rtol=1e-4, atol=1e-6)
    assert found.isfinite().all()
    if not sigmoid:
        torch.testing.assert_close(found.logsumexp(1), torch.stack(stages).logsumexp(2).mean(0))
    assert joined(stages[:1], sigmoid) is stages[0]


@torch.no_grad()
def test_inference_keywords_and_parts_of_a_model() -> None:
    """What is called by its parts, as test-time augmentation does, is not judged; keyword arguments are."""
    own, recorder = built("FasterRCNN_FPN"), Recorder()
    inputs = inputs_of(own.images)
    with attach(own.model, recorder, strict=True):
        unjudged = own.model.inference(inputs)
        assert not recorder.frames
        assert not unjudged[0]["instances"].has("reliability")
        judged = own.model(batched_inputs=inputs)
    assert len(recorder.frames) == len(inputs)
    assert judged[0]["instances"].has("reliability")


def test_training_mode_is_left_alone() -> None:
    from detectron2.utils.events import EventStorage

    model, recorder = copy.deepcopy(built("FasterRCNN_FPN").model).train(), Recorder()
    inputs = inputs_of(built("FasterRCNN_FPN").images)
    for x in inputs:
        x["instances"] = Theirs(tuple(x["image"].shape[1:]), gt_boxes=Boxes(torch.tensor([[10.0, 10, 60, 60]])),
                                gt_classes=torch.tensor([1]))  # fmt: skip

    def losses() -> dict[str, Tensor]:
        torch.manual_seed(0)
        with EventStorage(0):
            found: dict[str, Tensor] = model(inputs)
        return found

    with attach(model, recorder, strict=True) as handle:
        hooked = losses()
        with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
            handle.predict([IMAGE])
    bare = losses()
    assert all(torch.equal(bare[k], hooked[k]) for k in bare)
    assert recorder.frames == []


class Odd(nn.Module):
    """A head that nobody knows, in a model of Detectron2's own kind."""

    def __init__(self, boxes: Any) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = Theirs((120, 168), pred_boxes=self.boxes, scores=torch.tensor([0.5]), pred_classes=torch.tensor([1]))
        return [{"instances": found} for _ in batched_inputs]


Odd.__module__ = "detectron2.of_somebody"


def test_an_unknown_head_is_judged_by_its_pixels_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = Odd(Boxes(torch.tensor([[10.0, 10, 60, 70]]))).eval()
    image = torch.from_numpy(built("FasterRCNN_FPN").images[0]).permute(2, 0, 1)[[2, 1, 0]]
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(model, Monitor(["image", "geometry"])):
        for _ in range(2):
            (answer,) = model([{"image": image}])
    assert [r.getMessage() for r in caplog.records if "head of Odd is not known" in r.getMessage()]
    assert len(caplog.records) == 1
    found = answer["instances"].evidence
    assert found.logits is found.features is None
    assert {name for signal in create(["image"]) for name in signal.columns} <= found.columns.keys()
    recorder = Recorder()
    with attach(model, recorder, strict=True):
        model([{"image": image}])
    view = recorder.frames[0].view
    assert view is not None
    torch.testing.assert_close(view.rgb(), image[[2, 1, 0]].float() / 255)


def test_rotated_boxes_and_other_answers_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = Odd(RotatedBoxes(torch.tensor([[10.0, 10, 60, 70, 30]]))).eval()
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(model, Monitor(["geometry"])):
        (answer,) = model([{"image": torch.zeros(3, 120, 168)}])
    assert set(answer["instances"].get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert "no instances with upright" in caplog.text


def test_replaced_part_is_unknown_not_wrong(caplog: pytest.LogCaptureFixture) -> None:
    model = built("FasterRCNN_FPN").model
    predictor = model.roi_heads.box_predictor
    with attach(model, Monitor()), torch.no_grad():
        model.roi_heads.box_predictor = copy.deepcopy(predictor)
        try:
            outputs = built("FasterRCNN_FPN").run()
        finally:
            model.roi_heads.box_predictor = predictor
    assert all(output["instances"].reliability.isnan().all() for output in outputs)
    assert "attach again" in caplog.text


def test_predict_and_names() -> None:
    own = built("FasterRCNN_FPN")
    host = find_host(own.model)
    with pytest.raises(RuntimeError, match="not hooked"):
        host.predict([IMAGE], min_size=64)
    with attach(own.model, Monitor(["geometry"]), strict=True) as handle:
        every = handle.predict(own.images, min_size=128, max_size=192)
        some = handle.predict(own.images, conf=float(every[0].scores.median()), min_size=128, max_size=192)
        for bad in (IMAGE[..., 0], IMAGE.astype(np.float32)):
            with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
                handle.predict([bad])
        with pytest.raises(TypeError, match="unknown option 'iou'"):
            handle.predict([IMAGE], iou=0.5)
    assert 0 < len(some[0]) < len(every[0])
    for instances, output in zip(every, own.bare, strict=True):
        torch.testing.assert_close(instances.boxes, output["instances"].pred_boxes.tensor, rtol=0, atol=0)
    assert host.class_names() == {k: f"class {k}" for k in range(CLASSES)}
    with pytest.raises(ValueError, match="BGR"):
        find_host(own.model, input_format="HSV")
    with pytest.raises(TypeError, match="neither a model"):
        find_host(type("Bad", (), {"__module__": "detectron2.x"})())
