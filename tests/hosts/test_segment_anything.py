"""Segment Anything beyond what every host promises: prompts of all kinds, crops, output modes, threads, calibration."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.evaluation.datasets import GroundTruth
from reliability_hooks.evaluation.labels import OBJECT_IOU, labelled
from reliability_hooks.evaluation.masks import encode
from reliability_hooks.hosts.base import find_host, load
from reliability_hooks.hosts.segment_anything_prompts import prompts_for

from . import segment_anything_cases as cases
from .case import SIZES, photographs

IMAGES = photographs(None, SIZES)
BOX = cases.box_of(IMAGES[0])
POINTS = {"point_coords": np.array([[60.0, 50.0], [90.0, 70.0]]), "point_labels": np.array([1, 0])}


@pytest.fixture(scope="module", params=[cases.sam_predictor, cases.sam2_predictor], ids=["sam", "sam2"])
def predictor(request: pytest.FixtureRequest) -> Any:
    return request.param(None)


def ask(predictor: Any, **prompt: Any) -> Any:
    predictor.set_image(IMAGES[0])
    return predictor.predict(**prompt)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["points", "box", "both", "mask"])
def test_every_prompt(predictor: Any, kind: str, multimask: bool) -> None:
    low = ask(predictor, box=BOX, multimask_output=False)[2]
    prompt = {"points": POINTS, "box": {"box": BOX}, "both": {**POINTS, "box": BOX}, "mask": {"mask_input": low}}[kind]
    bare = ask(predictor, **prompt, multimask_output=multimask)
    with attach(predictor, Monitor(["sam"]), strict=True) as handle, handle.frames() as frames:
        hooked = ask(predictor, **prompt, multimask_output=multimask)
        found: Instances = predictor.instances
    assert type(hooked) is tuple
    assert all(np.array_equal(a, b) for a, b in zip(bare, hooked, strict=True))
    assert len(found) == (3 if multimask else 1)
    assert found.masks is not None
    assert np.array_equal(found.masks.numpy(), bare[0].astype(bool))
    assert np.allclose(found.scores.numpy(), bare[1].clip(0, 1))
    assert np.allclose(found.column("promptable/predicted_iou").numpy(), bare[1])
    assert found.column("promptable/moved_iou").isnan().all() == (kind == "mask")
    [frame] = frames
    assert frame.mask_logits is not None
    logits = frame.mask_logits()
    threshold = getattr(predictor, "mask_threshold", getattr(predictor.model, "mask_threshold", 0.0))
    shown = logits > -torch.inf
    low = torch.from_numpy(bare[2])[shown]
    assert torch.allclose((logits[shown] + threshold).clamp(-32, 32), low.clamp(-32, 32), atol=1e-4)  # SAM 2 cuts off
    assert 0.5 < float(shown.float().mean()) <= 1.0


def test_prompts_that_do_not_move_change_nothing(predictor: Any) -> None:
    with attach(predictor, strict=True) as handle, handle.frames() as frames:
        ask(predictor, box=BOX)
        [frame] = frames
        assert frame.prompted is not None
        known, boxes = frame.prompted(), frame.instances.boxes
        masks, ious = known.reprompt(boxes[None])
        again, _ = known.reprompt(torch.stack([boxes, boxes + 40]))
    assert torch.equal(masks[0], known.logits > 0)
    assert torch.allclose(ious[0], known.ious, atol=1e-5)
    assert torch.equal(again[0], masks[0])
    assert not torch.equal(again[1], masks[0])


def test_several_images_at_once() -> None:
    predictor = cases.sam2_predictor(None)
    with attach(predictor, Monitor(["image", "promptable"]), strict=True):
        predictor.set_image_batch(IMAGES)
        masks, *_ = predictor.predict_batch(box_batch=[cases.box_of(image) for image in IMAGES])
        together = predictor.instances
        ask(predictor, box=BOX)
        alone = predictor.instances
    assert [i.image_size for i in together] == [image.shape[:2] for image in IMAGES]
    assert all(np.array_equal(i.masks.numpy(), m.astype(bool)) for i, m in zip(together, masks, strict=True))
    for name in ("image/brightness", "promptable/moved_iou"):
        assert torch.allclose(together[0].column(name), alone.column(name), atol=1e-4), name


@pytest.mark.parametrize("mode", ["binary_mask", "coco_rle", "uncompressed_rle"])
@pytest.mark.parametrize("build", [cases.sam_generator, cases.sam2_generator], ids=["sam", "sam2"])
def test_generated_masks(build: Callable[..., Any], mode: str) -> None:
    """Output modes, crops, and the stability score, which the generator computes itself."""
    generator = build(None, output_mode=mode, crop_n_layers=int(mode != "binary_mask"), points_per_side=2,
                      crop_nms_thresh=1.1)  # fmt: skip
    bare = generator.generate(IMAGES[0])
    with attach(generator, Monitor(["sam"]), strict=True):
        hooked = generator.generate(IMAGES[0])
        found: Instances = generator.instances
    added = {"reliability", "reliability_interval", "verdict", "expected_iou"}
    for a, b in zip(bare, hooked, strict=True):
        assert b.keys() == a.keys() | added
        assert all(np.array_equal(a[key], b[key]) for key in a)
    assert len(found) == len(bare) > 3
    assert found.masks is not None
    assert found.masks.flatten(1).sum(1).tolist() == [record["area"] for record in bare]
    ious = torch.tensor([record["predicted_iou"] for record in bare])
    known = found.column("promptable/predicted_iou")
    assert torch.allclose(known, ious)  # every row was found again among the answers of the decoder
    if mode == "binary_mask":  # of the whole image; the network's grid is coarser than the image
        stable = torch.tensor([record["stability_score"] for record in bare])
        pairs = torch.stack([stable, found.column("mask_quality/stability")])
        assert torch.corrcoef(pairs)[0, 1] > 0.9


def test_a_refined_mask_is_known() -> None:
    generator = cases.sam2_generator(None, use_m2m=True, pred_iou_thresh=-9.0, points_per_side=2)
    with attach(generator, Monitor(["promptable"]), strict=True):
        generator.generate(IMAGES[0])
        assert generator.instances.column("promptable/moved_iou").isfinite().all()


def test_the_generator_of_sam2_is_untouched() -> None:
    generator = cases.sam2_generator(None)
    [case] = cases.MORE
    bare = cases.generate(generator, IMAGES)
    with attach(generator, Monitor(), strict=True):
        hooked = cases.generate(generator, IMAGES)
    for a, b in zip(map(case.tensors, bare), map(case.tensors, hooked), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not hasattr(generator, "instances")


def test_threads_see_their_own(predictor: Any) -> None:
    """Predictors of one model in two threads; only one is hooked."""
    other, seen = type(predictor)(predictor.model), []
    if hasattr(other, "_bb_feat_sizes"):
        cases.scaled(other)
    with attach(predictor, Monitor(["promptable"]), strict=True):

        def elsewhere() -> None:
            ask(other, box=BOX)
            seen.append((hasattr(other, "instances"), predictor.instances))

        ask(predictor, box=BOX)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(predictor.instances) == 3
    assert seen == [(False, None)]
    assert not hasattr(predictor, "instances")


def test_a_copy_has_no_trace() -> None:
    predictor = cases.sam_predictor(None)
    bare = type(predictor)
    with attach(predictor):
        assert type(predictor) is not bare
        assert type(predictor).__name__ == bare.__name__
        assert isinstance(predictor, bare)
        twins = [copy.copy(predictor), copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))]
    assert [type(twin) for twin in twins] == [bare] * 3
    assert type(predictor) is bare


def test_an_image_set_before_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    predictor = cases.sam_predictor(None)
    predictor.set_image(IMAGES[0])
    with attach(predictor, Monitor(["mask_quality"]), strict=True):
        for _ in range(2):
            predictor.predict(box=BOX)
        assert predictor.instances.column("mask_quality/stability").isfinite().all()
    assert [r.getMessage() for r in caplog.records if "set before" in r.getMessage()][1:] == []
    assert "set it again" in caplog.text


def truth_of(image: np.ndarray, crowd: bool = False) -> GroundTruth:
    """Two rectangles, and a crowd if asked for."""
    h, w = image.shape[:2]
    boxes = np.array([[10, 10, 60, 50], [70, 20, w - 10, h - 20], [0, 0, w, 9]], np.float32)[: 3 if crowd else 2]
    masks = np.zeros((len(boxes), h, w), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    return GroundTruth(boxes, np.arange(len(boxes)), np.arange(len(boxes)) == 2, encode(masks))


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_masks_are_compared_with_the_object_that_was_asked_for(predictor: Any, prompt: str) -> None:
    truths = [truth_of(image, crowd=True) for image in IMAGES]
    with attach(predictor, Monitor(["promptable"]), strict=True) as handle:
        found = handle.host.predict_labelled(IMAGES, truths, prompt=prompt, multimask=True)
        twice = handle.host.predict_labelled(IMAGES, truths, prompt=prompt, multimask=True)
        none = handle.host.predict_labelled(IMAGES[:1], [truths[0].__class__(
            np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), [])])  # fmt: skip
    assert len(none[0]) == 0
    assert OBJECT_IOU in none[0].columns
    for instances, again, truth, image in zip(found, twice, truths, IMAGES, strict=True):
        assert len(instances) == 6  # three answers to each of the two, and none to the crowd
        assert torch.equal(instances.boxes, again.boxes)
        assert instances.masks is not None
        for row in range(6):
            x1, y1, x2, y2 = truth.boxes[row // 3].astype(int)
            real = np.zeros(image.shape[:2], bool)
            real[y1:y2, x1:x2] = True
            mask = instances.masks[row].numpy()
            expected = (mask & real).sum() / (mask | real).sum()
            assert float(instances.column(OBJECT_IOU)[row]) == pytest.approx(expected, abs=1e-6)
    rows, right, overlap, _ = labelled(list(zip(found, truths, strict=True)), 0.3)
    assert len(rows) == 12
    assert torch.equal(right, overlap >= 0.3)


def test_generated_masks_find_their_objects() -> None:
    generator = cases.sam_generator(None)
    with attach(generator, strict=True) as handle:
        [made] = handle.predict(IMAGES[:1])
        assert made.masks is not None
        truth = GroundTruth(made.boxes[:2].numpy(), np.array([3, 7]), np.zeros(2, bool), encode(made.masks[:2].numpy()))
        [found] = handle.host.predict_labelled(IMAGES[:1], [truth])
    overlap = found.column(OBJECT_IOU)
    assert (overlap == 1).sum() == 2  # of equal masks only one takes the object
    assert (overlap > 0).sum() == 2
    assert (overlap == 0).sum() == len(found) - 2


def test_prompts_of_objects() -> None:
    truth = truth_of(IMAGES[0])
    exact, objects = prompts_for(truth, IMAGES[0].shape[:2], jitter=0.0)
    assert np.array_equal(exact["boxes"][0], truth.boxes)
    assert objects.tolist() == [0, 1]
    moved, _ = prompts_for(truth, IMAGES[0].shape[:2], jitter=0.1)
    extent = np.tile(truth.boxes[:, 2:] - truth.boxes[:, :2], 2)
    assert 0 < np.abs((moved["boxes"][0] - truth.boxes) / extent).max() <= 0.1 + 1e-6
    clicks, _ = prompts_for(truth, IMAGES[0].shape[:2], "point")
    for (x, y), (x1, y1, x2, y2) in zip(clicks["points"][0], truth.boxes, strict=True):
        assert x1 <= x < x2
        assert y1 <= y < y2
    with pytest.raises(ValueError, match="'box' or 'point'"):
        prompts_for(truth, (10, 10), "line")  # type: ignore[arg-type]


def test_what_is_wrong_is_said(predictor: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="SamPredictor\\(sam\\)"):
        attach(predictor.model)
    with attach(predictor) as handle:
        with pytest.raises(ValueError, match="needs prompts"):
            handle.predict(IMAGES)
        with pytest.raises(ValueError, match="1 arrays of boxes for 2 images"):
            handle.predict(IMAGES, boxes=[BOX])
    with pytest.raises(RuntimeError, match="not hooked"):
        find_host(predictor).predict(IMAGES, boxes=[BOX, BOX])
    weights = tmp_path / "w.pth"
    weights.touch()
    for spec, options, message in (
        ("segment_anything:weights.pth", {}, "names no architecture"),
        (f"segment_anything:vit_x:{weights}", {}, "unknown architecture 'vit_x'"),
        (f"segment_anything:vit_b:{weights}", {"kind": "video"}, "'generator' or 'predictor'"),
        (f"segment_anything:vit_b:{weights}", {"kind": "predictor", "points_per_side": 2}, "unknown option"),
    ):
        with pytest.raises(ValueError, match=message):
            load(spec, **options)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load("segment_anything:vit_b:nowhere.pth")
