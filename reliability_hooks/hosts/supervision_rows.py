"""`supervision.Detections` and our rows."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from ..evaluation.datasets import GroundTruth
from ..export.columns import flat_columns
from ..frame import View
from ..instances import Instances


def to_instances(detections: Any, image: np.ndarray) -> Instances:
    """The rows of Detections in an image.

    Raises:
        TypeError: They are no `supervision.Detections`, or the image is no array.
        ValueError: They have no `class_id` or no `confidence`, or do not fit to the image.
    """
    check_image(image)
    if not all(hasattr(detections, name) for name in ("xyxy", "class_id", "confidence", "data")):
        raise TypeError(f"a supervision.Detections is needed, not {type(detections).__name__}")
    n = len(detections.xyxy)
    labels = _field(detections, "class_id", n, "np.zeros(len(detections), int) where there is but one class")
    scores = _field(detections, "confidence", n, "the score in [0, 1] of each")
    if n and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"detections.class_id must be integers, not {labels.dtype}")
    if (scores < 0).any() or (scores > 1).any():
        raise ValueError("detections.confidence must lie in [0, 1]")
    masks, size = detections.mask, (int(image.shape[0]), int(image.shape[1]))
    if masks is not None:
        masks = np.require(np.asarray(masks), bool, ["C", "W"])
        if masks.shape[1:] != size:
            raise ValueError(f"masks of {masks.shape[1:]} pixels in an image of {size}: pass the image they are of")
    ids = detections.tracker_id
    return Instances(
        boxes=torch.tensor(np.asarray(detections.xyxy), dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels.astype(np.int64)),
        masks=None if masks is None else torch.from_numpy(masks),
        track_ids=None if ids is None else torch.tensor(np.asarray(ids).astype(np.int64)),
        image_size=size,
    )


def to_truth(detections: Any) -> GroundTruth:
    """Annotations, such as those of `supervision.DetectionDataset`, as ground truth for `Monitor.fit`.

    `data["iscrowd"]` is read where it is there.
    """
    from ..evaluation.masks import encode

    n = len(detections.xyxy)
    labels = _field(detections, "class_id", n, "the class of each object")
    return GroundTruth(
        boxes=np.asarray(detections.xyxy, np.float32).reshape(-1, 4),
        labels=labels.astype(np.int64),
        crowd=np.asarray(detections.data.get("iscrowd", np.zeros(n)), bool),
        masks=None if detections.mask is None else list(encode(np.asarray(detections.mask, bool))),
    )


def with_columns(detections: Any, instances: Instances) -> Any:
    """A copy of Detections with the columns of their instances in `data`; nothing else is copied."""
    new = copy.copy(detections)  # not `replace`, whose checks refuse what the detector itself returned
    new.data = {**detections.data, **flat_columns(instances)}
    return new


def _field(detections: Any, name: str, n: int, advice: str) -> np.ndarray:
    value = getattr(detections, name)
    if value is None and n:
        raise ValueError(f"these Detections have no {name}; set detections.{name} = {advice}")
    return np.zeros(0, np.int64) if value is None else np.asarray(value)


def check_image(image: Any) -> None:
    """Raises TypeError or ValueError where it is not (H, W, 3) uint8."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"the image must be a NumPy array (H, W, 3) uint8 RGB, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"the image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")


def view(image: np.ndarray) -> View:
    """The image as it is; no detector's own scaling is known."""
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    return View(pixels.permute(2, 0, 1).contiguous().float().div_(255))
