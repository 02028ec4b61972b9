"""Any callable that makes Detections: a host's promises, and clear errors."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks import Monitor, attach
from reliability_hooks.frame import Frame
from reliability_hooks.hosts.base import find_host
from reliability_hooks.hosts.supervision import Detector, score
from reliability_hooks.hosts.supervision_rows import to_instances, to_truth
from reliability_hooks.signals.base import Signal

from .case import Recorder, photographs

sv = pytest.importorskip("supervision", reason="supervision is not installed")

SIGNALS = ["geometry", "image"]
NAMES = {0: "cat", 1: "dog"}
ADDED = {"reliability", "reliability_low", "reliability_high", "verdict", "expected_iou"}


class Broken(Signal):
    """A signal with a fault."""

    name = "broken"

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        raise RuntimeError("broken on purpose")


def detect(image: np.ndarray) -> Any:
    """Three detections with masks and tracks; none in an image that is black."""
    if not image.any():
        return sv.Detections.empty()
    mask = np.zeros((3, *image.shape[:2]), bool)
    mask[0, 10:40, 10:30] = mask[1, 30:90, 20:80] = mask[2, 5:20, 60:100] = True
    return sv.Detections(
        xyxy=np.array([[10, 10, 30, 40], [20, 30, 80, 90], [60, 5, 100, 20.0]]), mask=mask,
        confidence=np.array([0.9, 0.5, 0.3]), class_id=np.array([0, 1, 0]), tracker_id=np.array([7, 8, 9]),
        data={"class_name": np.array(["cat", "dog", "cat"])},
    )  # fmt: skip


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return photographs(None, ((100, 120),))[0]


def same(a: Any, b: Any) -> None:
    """Every field of the Detections themselves, with dtypes."""
    for name in ("xyxy", "mask", "confidence", "class_id", "tracker_id"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        assert left is None or (left.dtype == right.dtype and np.array_equal(left, right))
    assert np.array_equal(a.data.get("class_name", []), b.data.get("class_name", []))


def test_output_is_untouched_and_has_columns(image: np.ndarray) -> None:
    detector = Detector(detect, NAMES)
    with attach(detector, Monitor(SIGNALS), strict=True) as handle:
        hooked = detector(image)
        (instances,) = handle.predict([image], conf=0.4)
    same(hooked, detect(image))
    assert hooked.data.keys() >= ADDED | {"geometry/area", "image/sharpness"}
    assert all(len(values) == 3 for values in hooked.data.values())
    assert hooked.data["verdict"].tolist() == ["unknown"] * 3
    assert len(instances) == 2
    assert instances.track_ids is not None
    assert instances.track_ids.tolist() == [7, 8]
    after = detector(image)
    assert after.data.keys() == {"class_name"}
    assert not detector._hooked


def test_score_is_what_attach_gives(image: np.ndarray) -> None:
    given = detect(image)
    scored = score(image, given, Monitor(SIGNALS), NAMES)
    assert given.data.keys() == {"class_name"}
    detector = Detector(lambda _: given, NAMES)
    with attach(detector, Monitor(SIGNALS), strict=True):
        hooked = detector(image)
    assert scored.data.keys() == hooked.data.keys()
    for name, values in hooked.data.items():
        assert np.array_equal(values, scored.data[name], equal_nan=values.dtype.kind == "f")
    assert len(scored[scored.data["geometry/area"] < 0]) == 3  # filtered as its own fields are


def test_evidence_is_handed_over(image: np.ndarray) -> None:
    detector, recorder = Detector(detect, NAMES), Recorder()
    with attach(detector, recorder, strict=True):
        detector(np.ascontiguousarray(image[..., ::-1])[..., ::-1])  # a view with negative strides
    (frame,) = recorder.frames
    assert frame.names == NAMES
    assert frame.view is not None
    assert torch.equal((frame.view.pixels * 255).round().byte(), torch.from_numpy(image).permute(2, 0, 1))
    assert frame.instances.image_size == (100, 120)
    assert frame.has("masks")
    assert frame.has("tracks")
    assert not any(frame.has(r) for r in ("candidates", "logits", "features", "maps", "look", "model"))


def test_nothing_detected(image: np.ndarray) -> None:
    scored = score(np.zeros_like(image), sv.Detections.empty(), Monitor(SIGNALS), strict=True)
    assert len(scored) == 0
    assert scored.data.keys() >= ADDED
    assert len(score(image, sv.Detections(np.zeros((0, 4))), Monitor(SIGNALS), strict=True)) == 0  # no class_id at all


def test_boxes_that_are_not_finite(image: np.ndarray) -> None:
    given = detect(image)
    given.xyxy[1, 2] = np.nan
    scored = score(image, given, Monitor(SIGNALS), strict=True)
    assert np.isnan(scored.data["geometry/area"]).tolist() == [False, True, False]
    assert np.isnan(scored.data["image/sharpness"]).tolist() == [False, True, False]


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"class_id": None}, ValueError, "no class_id; set detections.class_id"),
    ({"confidence": None}, ValueError, "no confidence; set detections.confidence"),
    ({"class_id": np.array([0.0, 1.0, 0.5])}, ValueError, "class_id must be integers"),
    ({"confidence": np.array([90, 50, 30.0])}, ValueError, r"lie in \[0, 1\]"),
    ({"mask": np.zeros((3, 50, 60), bool)}, ValueError, r"masks of \(50, 60\) pixels in an image of \(100, 120\)"),
    ({"image": None}, TypeError, "must be a NumPy array.*NoneType"),
    ({"image": np.zeros((100, 120, 3))}, ValueError, "uint8 RGB, not .* float64"),
    ({"image": np.zeros((100, 120), np.uint8)}, ValueError, r"uint8 RGB, not \(100, 120\)"),
    ({"detections": [1, 2]}, TypeError, "supervision.Detections is needed, not list"),
])  # fmt: skip
def test_what_cannot_be_scored_is_said(
    image: np.ndarray, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = detect(image)
    for name, value in change.items():
        setattr(given, name, value)
    with pytest.raises(error, match=message):
        score(change.get("image", image), change.get("detections", given), Monitor(SIGNALS))


def test_a_fault_is_unknown(image: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    broken = Monitor([*SIGNALS, Broken()])
    detector = Detector(detect, NAMES)
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(detector, broken):
        found = [detector(image), detector(image), score(image, detect(image), broken)]
    for detections in found:
        same(detections, detect(image))
        assert np.isnan(detections.data["reliability"]).all()
        assert set(detections.data["verdict"]) == {"unknown"}
    assert len([r for r in caplog.records if "broken on purpose" in r.message]) == 2  # one of attach, one of score
    with pytest.raises(RuntimeError, match="broken on purpose"):
        score(image, detect(image), broken, strict=True)
    with attach(detector, broken, strict=True), pytest.raises(RuntimeError, match="broken on purpose"):
        detector(image)


def test_bad_detections_never_take_the_detector_down(image: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    classless = detect(image)
    classless.class_id = None
    detector = Detector(lambda _: classless)
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(detector, Monitor(SIGNALS)) as handle:
        assert detector(image) is classless
        with pytest.raises(ValueError, match="no class_id"):
            handle.predict([image])
    assert "no class_id" in caplog.text


def test_copies_run_bare_and_attaching_twice_replaces(image: np.ndarray) -> None:
    detector, first, second = Detector(detect, NAMES), Recorder(), Recorder()
    attach(detector, first)
    with attach(detector, second, strict=True):
        for twin in (copy.copy(detector), copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
            assert "reliability" not in twin(image).data
        assert "reliability" in detector(image).data
    assert (len(first.frames), len(second.frames)) == (0, 1)
    with pytest.raises(RuntimeError, match="not hooked"):
        detector.predict([image])


def test_compact_masks_and_annotations(image: np.ndarray) -> None:
    given = detect(image)
    compact = pytest.importorskip("supervision.detection.compact_mask").CompactMask
    dense = given.mask
    given.mask = compact.from_dense(dense, given.xyxy, image.shape[:2])
    masks = to_instances(given, image).masks
    assert masks is not None
    assert np.array_equal(masks.numpy(), given.mask.to_dense())
    truth = to_truth(detect(image))
    assert truth.boxes.tolist() == detect(image).xyxy.tolist()
    assert truth.labels.tolist() == [0, 1, 0]
    assert not truth.crowd.any()
    assert truth.masks is not None
    assert len(truth.masks) == 3
    given.data["iscrowd"] = np.array([0, 1, 0])
    assert to_truth(given).crowd.tolist() == [False, True, False]


def test_what_is_no_detector() -> None:
    detector = Detector(detect)
    assert find_host(detector) is detector
    with pytest.raises(TypeError, match=r"no host for builtins\.function.*hosts\.supervision\.Detector"):
        find_host(detect)
    with pytest.raises(TypeError, match="a detector is a callable"):
        Detector(3)  # type: ignore[arg-type]
