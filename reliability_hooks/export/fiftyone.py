"""FiftyOne: the keyword arguments of its detections, reliability and columns as fields beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..instances import Instances
from .columns import flat_columns


def to_fiftyone(instances: Instances, names: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
    """For each instance the keyword arguments of `fiftyone.Detection`; FiftyOne itself is not needed.

    `fo.Detections(detections=[fo.Detection(**row) for row in to_fiftyone(instances, names)])` makes the label field.
    NaN becomes None, and `/` in the name of a column `_`.

    Args:
        instances: With `image_size`. A mask is cut to its box.
        names: Label -> class name; the label itself without it.

    Returns:
        Keys `label, bounding_box` ([x, y, w, h] as shares of the image), `confidence`, `index` where there are tracks,
        `mask` where there are masks, and one for each column.

    Raises:
        ValueError: The size of the image is not known, or a box is not finite.
    """
    if instances.image_size is None:
        raise ValueError("boxes are shares of the image in FiftyOne: instances.replace(image_size=(height, width))")
    (height, width), instances = instances.image_size, instances.cpu()
    boxes = instances.boxes.double()
    if not bool(boxes.isfinite().all()):
        raise ValueError("a box is not finite; leave it out: instances[instances.boxes.isfinite().all(1)]")
    shares = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1) / boxes.new_tensor([width, height] * 2)
    columns = {name.replace("/", "_"): values.tolist() for name, values in flat_columns(instances).items()}
    labels, scores = instances.labels.tolist(), instances.scores.tolist()
    rows: list[dict[str, Any]] = [
        {
            "label": str(label) if names is None else names.get(label, str(label)),
            "bounding_box": share,
            "confidence": score,
            **{name: None if values[i] != values[i] else values[i] for name, values in columns.items()},
        }
        for i, (label, share, score) in enumerate(zip(labels, shares.tolist(), scores, strict=True))
    ]
    if instances.track_ids is not None:
        for row, track in zip(rows, instances.track_ids.tolist(), strict=True):
            row["index"] = track
    if instances.masks is not None:
        low, high = boxes[:, :2].floor().clamp(min=0).long().tolist(), boxes[:, 2:].ceil().clamp(min=0).long().tolist()
        for i, (row, (x1, y1), (x2, y2)) in enumerate(zip(rows, low, high, strict=True)):
            row["mask"] = instances[i].masks_at((height, width))[0, y1:y2, x1:x2].numpy()
    return rows
