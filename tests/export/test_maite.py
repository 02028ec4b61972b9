"""A hooked detector as MAITE sees it, by MAITE's own checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.export.maite import Model, Target
from reliability_hooks.hosts.supervision import Detector

maite = pytest.importorskip("maite.protocols", reason="maite is not installed")
pytest.importorskip("supervision", reason="supervision is not installed")
from maite.protocols import object_detection as od  # noqa: E402

NAMES = {0: "cat", 1: "dog"}


def detect(image: np.ndarray) -> Any:
    import supervision as sv

    boxes = np.array([[1, 2, 30, 40], [5, 5, 20, 20.0]])[: int(image[0, 0, 0] > 0) * 2]
    return sv.Detections(boxes, confidence=np.array([0.9, 0.4])[: len(boxes)], class_id=np.array([1, 0])[: len(boxes)])


class Images:
    """A MAITE data set of two images, in the second of which nothing is."""

    metadata: ClassVar = {"id": "two"}

    def __init__(self) -> None:
        self.images = [torch.full((3, 48, 64), value) for value in (0.5, 0.0)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        return self.images[index], Target(Instances.empty()), {"id": index}


def test_the_protocols_are_met() -> None:
    with attach(Detector(detect, NAMES), Monitor(["geometry"])) as handle:
        model = Model(handle, "toy")
        assert isinstance(model, maite.Model)
        (target,) = model([np.full((3, 48, 64), 255, np.uint8)])
    assert model.metadata == {"id": "toy", "index2label": NAMES}
    assert isinstance(target, get_args(od.ObjectDetectionTarget)[0])
    assert target.boxes.tolist() == [[1, 2, 30, 40], [5, 5, 20, 20]]
    assert target.labels.tolist() == [1, 0]
    assert target.scores.tolist() == pytest.approx([0.9, 0.4])
    assert np.isnan(target.reliability).all()
    assert "geometry/area" in target.instances.columns


def test_spotcheck_and_predict() -> None:
    pytest.importorskip("beartype", reason="beartype is not installed")
    from maite.spotcheck import spotcheck_component
    from maite.tasks import predict

    with attach(Detector(detect, NAMES), Monitor(["geometry"]), strict=True) as handle:
        checked = spotcheck_component(od.Model)(Model(handle, "toy", conf=0.5))
        assert checked.metadata["id"] == "toy"
        found, _ = predict(model=checked, dataset=Images(), batch_size=2)
    some, none = found[0]
    assert some.scores.tolist() == pytest.approx([0.9])
    assert none.boxes.shape == (0, 4)


def test_spotcheck_sees_what_is_wrong() -> None:
    """The check above can fail."""
    pytest.importorskip("beartype", reason="beartype is not installed")
    from maite.spotcheck import SpotcheckError, spotcheck_component

    class Wrong:
        metadata: ClassVar = {"id": "wrong"}

        def __call__(self, batch: Any, /) -> Any:
            return [Target(Instances.empty()).boxes]

    with pytest.raises(SpotcheckError):
        spotcheck_component(od.Model)(Wrong())([np.zeros((3, 4, 4), np.uint8)])


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((4, 4, 3), np.uint8), r"\(3, H, W\) RGB"),
    (np.full((3, 4, 4), 255.0), r"lie in \[0, 1\]"),
    (np.full((3, 4, 4), np.nan), r"lie in \[0, 1\]"),
    (np.zeros((3, 4, 4), np.int64), "int64"),
])  # fmt: skip
def test_images_of_another_kind(image: np.ndarray, message: str) -> None:
    with attach(Detector(detect, NAMES), Monitor(["geometry"])) as handle, pytest.raises(ValueError, match=message):
        Model(handle, "toy")([image])


def test_with_a_yolo(shared: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    from reliability_hooks.images import read_image

    photo = read_image(min((shared / "data/coco/val2017").glob("*.jpg")))
    yolo = ultralytics.YOLO(str(shared / "weights/yolov8n.pt"))
    bare = yolo.predict(photo[..., ::-1].copy(), imgsz=320, conf=0.3, verbose=False)[0]
    with attach(yolo, Monitor(["geometry"]), strict=True) as handle:
        (target,) = Model(handle, "yolov8n", imgsz=320, conf=0.3)([photo.transpose(2, 0, 1)])
    assert len(bare.boxes) > 0
    np.testing.assert_array_equal(target.boxes, bare.boxes.xyxy)
    np.testing.assert_array_equal(target.scores, bare.boxes.conf)
