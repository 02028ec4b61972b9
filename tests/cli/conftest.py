"""A small labelled set and a monitor fitted on it, shared by the tests of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reliability_hooks.cli import main


@pytest.fixture(scope="session")
def detector(shared: Path) -> str:
    pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    return str(shared / "weights/yolov8n.pt")


@pytest.fixture(scope="session")
def annotations(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 24 images of COCO val2017."""
    data = json.loads((shared / "data/coco/instances_val2017.json").read_text())
    images = data["images"][:24]
    ids = {image["id"] for image in images}
    path = tmp_path_factory.mktemp("data") / "instances.json"
    own = [a for a in data["annotations"] if a["image_id"] in ids]
    path.write_text(json.dumps({**data, "images": images, "annotations": own}))
    return path


@pytest.fixture(scope="session")
def monitor(shared: Path, detector: str, annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("monitor")
    status = main(["calibrate", "--detector", detector, "--images", str(shared / "data/coco/val2017"), "--annotations",
                   str(annotations), "--conf", "0.05", "--out", str(out), "detector.predict.imgsz", "320"])
    assert status == 0
    return out
