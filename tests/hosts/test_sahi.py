"""Sliced prediction by sahi: its objects are handed over as they are, and gain reliability."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reliability_hooks import Monitor, attach
from reliability_hooks.hosts.sahi import sliced, to_detections
from reliability_hooks.hosts.supervision import score

sahi = pytest.importorskip("sahi", reason="sahi is not installed")
pytest.importorskip("supervision", reason="supervision is not installed")
from sahi.prediction import ObjectPrediction, PredictionResult  # noqa: E402

SIGNALS = ["geometry", "image"]


def result(*predictions: ObjectPrediction) -> PredictionResult:
    return PredictionResult(list(predictions), np.full((60, 80, 3), 128, np.uint8))


def square(masked: bool = True) -> ObjectPrediction:
    polygon = [[10, 20, 29, 20, 29, 39, 10, 39]] if masked else None
    return ObjectPrediction([10, 20, 30, 40], 3, "kite", polygon, 0.75, [0, 0], [60, 80])


def test_objects_become_rows() -> None:
    found = to_detections(result(square(), square()))
    assert found.xyxy.tolist() == [[10, 20, 29, 39]] * 2  # sahi's box of the polygon
    assert found.confidence.tolist() == [0.75] * 2
    assert found.class_id.tolist() == [3, 3]
    assert found.data["class_name"].tolist() == ["kite"] * 2
    assert found.mask.shape == (2, 60, 80)
    assert found.mask[0, 20:40, 10:30].all()
    assert found.mask[0].sum() == 400
    assert to_detections(result(square()), masks=False).mask is None
    assert to_detections(result(square(), square(masked=False))).mask is None  # no mask is no empty mask


def test_nothing_found() -> None:
    found = to_detections(result())
    assert len(found) == 0
    assert len(score(np.zeros((60, 80, 3), np.uint8), found, Monitor(SIGNALS), strict=True)) == 0


def test_names_follow_the_renumbering() -> None:
    model = SimpleNamespace(category_mapping={"0": "cat", "1": "dog"}, category_remapping={"dog": 17})
    assert sliced(model).class_names() == {0: "cat", 1: "dog", 17: "dog"}


def test_slices_of_a_photograph(shared: Path) -> None:
    pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    from sahi.predict import get_sliced_prediction

    from reliability_hooks.images import read_image

    photo = read_image(min((shared / "data/coco/val2017").glob("*.jpg")))
    model = sahi.AutoDetectionModel.from_pretrained(
        "ultralytics", model_path=str(shared / "weights/yolo11n-seg.pt"), confidence_threshold=0.3, device="cpu",
        image_size=320,
    )  # fmt: skip
    options = {"slice_height": 320, "slice_width": 320, "perform_standard_pred": False}
    objects = get_sliced_prediction(photo, model, verbose=0, **options).object_prediction_list
    detector = sliced(model, version="yolo11n-seg", **options)
    assert detector.class_names()[0] == "person"
    with attach(detector, Monitor(SIGNALS), strict=True):
        found = detector(photo)
    assert len(found) == len(objects) > 1
    assert [p.score.value for p in objects] == pytest.approx(found.confidence)
    np.testing.assert_allclose(found.xyxy, [p.bbox.to_xyxy() for p in objects])
    assert found.mask.shape == (len(objects), *photo.shape[:2])
    assert np.isfinite(found.data["image/sharpness"]).all()
    assert np.isnan(found.data["reliability"]).all()  # nothing is fitted
