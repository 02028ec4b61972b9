"""Ultralytics detectors: real weights where they are, and a seeded YOLO26 with and without its end-to-end head."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from .case import Case, photographs
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
    image = torch.from_numpy(photographs(folder, ((320, 256),))[0]).permute(2, 0, 1)[None] / 255
    spread(model.model.eval(), image, classes=last("cv3"), boxes=last("cv2"))
    head = model.model.model[-1]
    with torch.no_grad():
        largest = {name: raw["scores"].abs().max() for name, raw in model.model(image)[1].items()}
        for name, classes, boxes in (("one2many", head.cv3, head.cv2), ("one2one", head.one2one_cv3, head.one2one_cv2)):
            for branch in classes:  # no score is rounded to 1
                branch[-1].weight *= 5 / largest[name]
                branch[-1].bias *= 5 / largest[name]
            for branch in boxes:  # distances to the sides: a box is as wide as they are positive
                branch[-1].bias += 3
    return model


def last(branch: str) -> tuple[str, ...]:
    """The final convolutions of a branch of the head, one for each level."""
    return tuple(f"{branch}.{level}.2" for level in range(3))


def run(model: Any, images: list[np.ndarray], nothing: bool = False, **options: Any) -> list[Any]:
    bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
    options = {**OPTIONS, **options, **({"conf": 1.0} if nothing else {})}
    results: list[Any] = model.predict(bgr, **options)
    return results


def tensors(result: Any) -> dict[str, Tensor]:
    boxes = result.boxes
    found = {"boxes": boxes.xyxy, "scores": boxes.conf, "labels": boxes.cls.long(), "data": boxes.data}
    if result.masks is not None:
        found["masks"] = result.masks.data
    return found


def instances(result: Any) -> Any:
    return getattr(result, "instances", None)


def case(name: str, build: Any, single_label: bool = True, **options: Any) -> Case:
    call, sizes = partial(run, **options), ((320, 240), (200, 320))
    return Case(f"ultralytics/{name}", build, call, tensors, instances, single_label=single_label, sizes=sizes)


CASES = [
    case("yolo11n_seg", partial(weights, name="yolo11n-seg.pt"), conf=0.05),
    case("yolov8n", partial(weights, name="yolov8n.pt"), conf=0.05),
    case("yolo26n", partial(seeded, name="yolo26n.yaml"), conf=0.3, max_det=20, nms=True),
    # its top-k runs over rows x classes, so that a row can be kept for several
    case("yolo26n_end2end", partial(seeded, name="yolo26n.yaml"), single_label=False, conf=0.3, max_det=20, nms=False),
]
