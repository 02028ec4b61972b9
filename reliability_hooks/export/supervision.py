"""`supervision.Detections` with the columns in `data`, for its annotators, trackers, sinks and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..instances import Instances
from .columns import flat_columns
from .optional import require


def to_supervision(instances: Instances, names: Mapping[int, str] | None = None) -> Any:
    """A `supervision.Detections` of the instances.

    Args:
        instances: Boxes, scores, labels, masks (at the size of the image) and track ids become its fields, every
            column an entry of `data` (see `columns.flat_columns`).
        names: Label -> class name, for `data["class_name"]`.

    Raises:
        ImportError: supervision is not installed.
        ValueError: A box is not finite, which supervision refuses.
    """
    sv = require("supervision", "supervision")
    instances = instances.cpu()
    data: dict[str, Any] = flat_columns(instances)
    if names is not None:
        data["class_name"] = np.array([names.get(k, str(k)) for k in instances.labels.tolist()], dtype=str)
    masks = None
    if instances.masks is not None:
        masks = instances.masks_at(instances.image_size or tuple(instances.masks.shape[1:])).numpy()  # type: ignore[arg-type]
    return sv.Detections(
        xyxy=instances.boxes.detach().float().numpy(),
        mask=masks,
        confidence=instances.scores.detach().float().numpy(),
        class_id=instances.labels.numpy(),
        tracker_id=None if instances.track_ids is None else instances.track_ids.numpy(),
        data=data,
    )
