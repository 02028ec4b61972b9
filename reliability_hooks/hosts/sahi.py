"""sahi: sliced prediction of large images, by any of the detectors that it wraps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..export.optional import require
from .supervision import Detector


def to_detections(result: Any, masks: bool = True) -> Any:
    """A `supervision.Detections` of a sahi `PredictionResult`, for `hosts.supervision.score`.

    Args:
        result: What `get_prediction` or `get_sliced_prediction` returned.
        masks: Draw the polygons as masks, which take a byte for each object and pixel of the whole image. Without
            them where an object has none.

    Raises:
        ImportError: supervision is not installed.
    """
    sv = require("supervision", "supervision")
    found = result.object_prediction_list
    size = (result.image_height, result.image_width)
    drawn = masks and bool(found) and all(p.mask is not None for p in found)
    return sv.Detections(
        xyxy=np.array([p.bbox.to_xyxy() for p in found], np.float32).reshape(-1, 4),
        mask=np.array([p.mask.bool_mask for p in found], bool).reshape(-1, *size) if drawn else None,
        confidence=np.array([p.score.value for p in found], np.float32),
        class_id=np.array([p.category.id for p in found], np.int64),
        data={"class_name": np.array([p.category.name for p in found], dtype=str)},
    )


def sliced(detection_model: Any, *, version: str = "", masks: bool = True, **options: Any) -> Detector:
    """`sahi.predict.get_sliced_prediction` as a detector to `attach` to.

    Args:
        detection_model: A sahi `DetectionModel`, from `AutoDetectionModel.from_pretrained`.
        version: As of `Detector`.
        masks: As of `to_detections`.
        **options: Of `get_sliced_prediction`, such as `slice_height=512, slice_width=512`.

    Raises:
        ImportError: sahi is not installed.
    """
    predict = require("sahi.predict", "sahi").get_sliced_prediction
    options = {"verbose": 0, **options}

    def detect(image: np.ndarray) -> Any:
        return to_detections(predict(image, detection_model, **options), masks)

    names = {int(k): str(name) for k, name in (detection_model.category_mapping or {}).items()}
    renumbered = {int(k): str(name) for name, k in (detection_model.category_remapping or {}).items()}
    return Detector(detect, {**names, **renumbered}, version)
