"""Ultralytics detectors: real weights where they are, and a seeded YOLO26 with and without its end-to-end head."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from .case import Case
from .spread import spread

OPTIONS = {"verbose": False, "imgsz": 320}


def weights(folder: Path | None, name: str) -> Any:
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    if folder is None:
        pytest.skip("the weights are not here")
    return ultralytics.YOLO(str(folder / "weights" / name))


def seeded(folder: Path | None, name: str) -> Any:
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    torch.manual_seed(0)
    model = ultralytics.YOLO(name)
    noise = torch.rand(1, 3, 192, 256)
    spread(model.model.eval(), noise, classes=("cv3",), boxes=("cv2",))
    return model


def run(model: Any, images: list[np.ndarray], nothing: bool = False, **options: Any) -> list[Any]:
    bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
    options = {**OPTIONS, **options, **({"conf": 0.999999} if nothing else {})}
    results: list[Any] = model.predict(bgr, **options)
    return results


def tensors(result: Any) -> dict[str, Tensor]:
    found = {"boxes": result.boxes.xyxy, "scores": result.boxes.conf, "labels": result.boxes.cls.long(), "data": result.boxes.data}
    if result.masks is not None:
        found["masks"] = result.masks.data
    return found


def instances(result: Any) -> Any:
    return getattr(result, "instances", None)


def case(name: str, build: Any, sizes: Any = ((320, 240), (200, 320)), **options: Any) -> Case:
    return Case(f"ultralytics/{name}", build, partial(run, **options), tensors, instances, single_label=True, sizes=sizes)


CASES = [
    case("yolo11n-seg", partial(weights, name="yolo11n-seg.pt"), conf=0.05),
    case("yolov8n", partial(weights, name="yolov8n.pt"), conf=0.05),
    case("yolo26n", partial(seeded, name="yolo26n.yaml"), conf=0.3, max_det=20, nms=True),
    case("yolo26n-end2end", partial(seeded, name="yolo26n.yaml"), conf=0.3, max_det=20, nms=False),
]
