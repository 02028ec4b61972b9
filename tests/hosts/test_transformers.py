"""What only transformers has: a processor, pipelines, padded batches, three forms of segments, versions."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import masks_to_boxes

from reliability_hooks import Monitor, attach
from reliability_hooks.hosts import transformers as host
from reliability_hooks.hosts.base import find_host, load
from reliability_hooks.hosts.query_rows import boxes_of
from reliability_hooks.hosts.transformers_results import with_own_masks

from .case import Case, Recorder
from .test_conformance import same
from .test_transformers_look import built
from .transformers_cases import MORE, run

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
ADDED = {"reliability", "reliability_interval", "verdict", "expected_iou", "instances"}


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)
def test_further_models(case: Case) -> None:
    own = built(case.name.partition("/")[2])
    recorder = Recorder()
    with attach(own.model, recorder, strict=True):
        hooked = own.run()
    same(case, own.bare, hooked)
    same(case, own.bare, own.run())
    for frame in recorder.frames:
        kept = frame.instances
        assert len(kept) >= 3
        assert kept.logits is not None
        assert kept.features is not None
        assert kept.logits.isfinite().all()
        assert kept.features.isfinite().all()
        assert frame.candidates is not None
        assert frame.rerun is not None
        assert frame.view is not None
        (again,) = frame.rerun(frame.view.pixels[None])
        torch.testing.assert_close(again.scores.sort().values, frame.candidates.scores.sort().values,
                                   rtol=1e-3, atol=1e-4)


def test_model_and_processor_apart_and_no_trace_in_the_processor() -> None:
    own = built("rt_detr")
    model, processor = own.model.model, own.model.image_processor
    before = (type(processor), dict(vars(processor)), processor.to_json_string())
    handle = attach(model, Monitor(), strict=True, processor=processor)
    assert isinstance(processor, before[0])
    assert (dict(vars(processor)), processor.to_json_string()) == before[1:]
    for twin in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor)), copy.copy(processor)):
        assert type(twin) is before[0]
        assert vars(twin) == before[1]
    hooked = own.run()
    same(own.case, own.bare, hooked)
    assert set(hooked[0]) == {"boxes", "scores", "labels"} | ADDED
    found = handle.predict(own.images, conf=0.3)
    assert [len(i) for i in found] == [len(r["boxes"]) for r in own.bare]
    handle.remove()
    assert (type(processor), dict(vars(processor)), processor.to_json_string()) == before
    assert set(own.run()[0]) == {"boxes", "scores", "labels"}


def test_two_models_share_a_processor() -> None:
    own, other = built("rt_detr"), built("d_fine")
    processor = own.model.image_processor
    shared = transformers.ObjectDetectionPipeline(model=other.model.model, image_processor=processor, device="cpu")
    kind = type(processor)
    first = attach(own.model, Monitor([]), strict=True)
    second = attach(shared, Monitor([]), strict=True)
    for pipe in (own.model, shared):
        assert "instances" in run(pipe, own.images)[0]
    first.remove()
    assert "instances" not in own.run()[0]
    assert "instances" in run(shared, own.images)[0]
    second.remove()
    assert type(processor) is kind
    assert "instances" not in run(shared, own.images)[0]


def test_pipelines() -> None:
    from PIL import Image

    for name, options in (("rt_detr", {"threshold": 0.3}), ("mask2former", {"threshold": 0.3, "subtask": "instance"})):
        own = built(name)
        images = [Image.fromarray(image) for image in own.images]
        bare = [own.model(images[0], **options), *own.model(images, batch_size=1, **options)]
        kind, kept = type(own.model), dict(vars(own.model))
        with attach(own.model, Monitor(), strict=True):
            assert vars(own.model) == kept
            found = [own.model(images[0], **options), *own.model(images, batch_size=1, **options)]
        assert type(own.model) is kind
        for plain, beside in zip(bare, found, strict=True):
            assert isinstance(beside, list)
            assert len(beside) == len(plain) == len(beside.instances) > 0
            assert plain == [{k: v for k, v in d.items() if k not in ("reliability", "verdict")} for d in beside]
            assert all(np.isnan(d["reliability"]) and d["verdict"] == 0 for d in beside)
            assert [d["score"] for d in plain] == pytest.approx(beside.instances.scores.tolist(), abs=1e-6)
        json.dumps([{k: v for k, v in d.items() if k != "mask"} for d in found[0]])
        assert own.model(images[0], **options) == bare[0]


def test_a_batch_that_a_pipeline_cuts_up() -> None:
    from PIL import Image

    own = built("rt_detr")
    images = [Image.fromarray(image) for image in own.images]
    bare = own.model(images, batch_size=2, threshold=0.3)
    with attach(own.model, Monitor([]), strict=True):
        found = own.model(images, batch_size=2, threshold=0.3)
    assert [[d["box"] for d in f] for f in found] == [[d["box"] for d in b] for b in bare]
    for image, beside in zip(own.images, found, strict=True):
        assert beside.instances.image_size == image.shape[:2]
        assert beside.instances.logits.isfinite().all()


def test_an_output_that_is_not_of_the_last_pass(caplog: pytest.LogCaptureFixture) -> None:
    own = built("detr")
    model, processor = own.model.model, own.model.image_processor
    inputs = [processor(images=[image], return_tensors="pt") for image in own.images]
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(own.model, Monitor([]), strict=True):
        outputs = [model(**given) for given in inputs]
        found = [processor.post_process_object_detection(o, threshold=0.3)[0] for o in (*outputs, outputs[0])]
    assert ["instances" in result for result in found] == [False, True, False]
    assert [record.message for record in caplog.records if "last pass" in record.message] == [caplog.messages[0]]


def test_without_target_sizes_boxes_are_in_pixels_of_the_processed_image() -> None:
    own = built("detr")
    model, processor = own.model.model, own.model.image_processor
    inputs = processor(images=own.images, return_tensors="pt")
    with attach(own.model, Monitor([]), strict=True):
        outputs = model(**inputs)
        relative = processor.post_process_object_detection(outputs, 0.3)
        absolute = processor.post_process_object_detection(outputs, target_sizes=torch.tensor([[50, 60], [70, 80]]))
    for result, mask in zip(relative, inputs["pixel_mask"], strict=True):
        kept = result["instances"]
        h, w = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert kept.image_size == (h, w)
        torch.testing.assert_close(kept.boxes, result["boxes"] * torch.tensor([w, h, w, h]))
        assert kept.logits.isfinite().all()
    assert [r["instances"].image_size for r in absolute] == [(50, 60), (70, 80)]
    assert all(torch.equal(r["instances"].boxes, r["boxes"]) for r in absolute)


def test_segments_in_their_three_forms_are_the_same_instances() -> None:
    own = built("mask2former")
    model, processor = own.model.model, own.model.image_processor
    size = (420, 588)  # larger than the grid that masks are cut on: nothing is lost in the processor's nearest pixels
    with attach(own.model, Monitor([]), strict=True):
        outputs = model(**processor(images=own.images[:1], return_tensors="pt"))
        post = processor.post_process_instance_segmentation
        forms: list[dict[str, Any]] = [{}, {"return_binary_maps": True}, {"return_coco_annotation": True}]
        found = [post(outputs, 0.3, target_sizes=[size], **more)[0] for more in forms]
    whole = found[1]["segmentation"].bool()
    for result in found:
        kept = result["instances"]
        assert len(kept) == len(whole) >= 3
        assert kept.logits.isfinite().all()
        assert torch.equal(kept.masks, found[1]["instances"].masks)
        assert (kept.masks_at(size) == whole).float().mean() > 0.98
        expected = masks_to_boxes(whole) + torch.tensor([0, 0, 1, 1])
        assert (kept.boxes - expected).abs().max() <= 2
    lost = found[0]["instances"].replace(scores=found[0]["instances"].scores + 0.1)
    from reliability_hooks.hosts.queries import Inside, Pass
    from reliability_hooks.hosts.query_rows import mask_logits, raw_rows

    seen = Pass.of("mask2former", {"pixel_values": torch.zeros(1, 3, 8, 8)}, outputs, Inside())
    assert seen is not None
    grid = mask_logits(seen, 0)
    unknown = with_own_masks(lost, grid, raw_rows(seen, 0, size, grid=grid))
    assert torch.equal(unknown.boxes, lost.boxes)  # a score that is no query's: nothing is taken over


def test_boxes_around_masks() -> None:
    masks = torch.rand(6, 24, 40, generator=torch.Generator().manual_seed(0)) > 0.995
    masks[5] = False
    large = masks.repeat_interleave(3, 1).repeat_interleave(2, 2)
    some = masks.flatten(1).any(1)
    expected = masks_to_boxes(large[some]) + torch.tensor([0, 0, 1, 1])
    found = boxes_of(masks, (72, 80))
    torch.testing.assert_close(found[some], expected.float())
    assert torch.equal(found[~some], torch.zeros(int((~some).sum()), 4))
    assert boxes_of(masks[:0], (72, 80)).shape == (0, 4)


def test_what_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    own = built("rt_detr")
    model, processor = own.model.model, own.model.image_processor
    monkeypatch.setattr(host, "TESTED", ((4, 0), (4, 1)))
    monkeypatch.setattr(type(model.config), "model_type", "some_detr")
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(own.model, Monitor([]), strict=True) as handle:
        for _ in range(2):
            result = own.run()[0]
            given = processor(images=own.images[:1], do_rescale=False, return_tensors="pt")
            outputs = model(given["pixel_values"].float())
            post = processor.post_process_object_detection(outputs, 0.3, [own.images[0].shape[:2]])
        with handle.frames() as frames:
            own.run(own.images[:1])
    assert len(caplog.messages) == 3
    for words in ("outside of the tested range", "'some_detr' is not known", "other pixels than its processor"):
        assert sum(words in message for message in caplog.messages) == 1
    assert result["instances"].logits is None
    assert len(post[0]["instances"]) == len(post[0]["boxes"])
    assert frames[0].view is not None
    assert frames[0].candidates is None


def test_what_is_refused(tmp_path: Path) -> None:
    own = built("rt_detr")
    with pytest.raises(TypeError, match="processor=processor"):
        attach(own.model.model)
    with pytest.raises(TypeError, match="makes no detections"):
        attach(own.model.model, processor=transformers.ViTImageProcessor())
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        load(f"transformers:{tmp_path / 'nothing'}")
    with attach(own.model) as handle:
        with pytest.raises(TypeError, match="'iou'"):
            handle.predict(own.images, iou=0.5)
        own.model.model.train()
        try:
            with pytest.raises(RuntimeError, match=r"model\.eval"):
                handle.predict(own.images)
        finally:
            own.model.model.eval()


@pytest.mark.parametrize("name", ["rt_detr", "mask2former"])
def test_a_saved_model_is_loaded_and_known_again(name: str, tmp_path: Path) -> None:
    own = built(name)
    own.model.save_pretrained(tmp_path)
    made = load(f"transformers:{tmp_path}")
    assert find_host(made).fingerprint() == find_host(own.model).fingerprint()
    assert find_host(made).class_names()[0] == "LABEL_0"
    with attach(made, Monitor([]), strict=True) as handle:
        found = handle.predict(own.images, conf=0.3)
    with attach(own.model, Monitor([]), strict=True) as handle:
        for left, right in zip(found, handle.predict(own.images, conf=0.3), strict=True):
            torch.testing.assert_close(left.boxes, right.boxes)
            assert len(left) > 0


