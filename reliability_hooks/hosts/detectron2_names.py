"""What a Detectron2 model's labels are called, and what its input looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def class_names(model: Any, net: Any) -> dict[int, str]:
    """Label -> name, from `net.class_names`, the metadata of a predictor, COCO's for 80 classes, or numbers.

    Args:
        model: A predictor or the model.
        net: The model.
    """
    given = getattr(net, "class_names", None) or getattr(getattr(model, "metadata", None), "thing_classes", None)
    if given:
        return dict(given) if isinstance(given, Mapping) else dict(enumerate(given))
    count = int(getattr(getattr(net, "roi_heads", None), "num_classes", 0) or getattr(net, "num_classes", 0))
    if count != 80:
        return {i: f"class {i}" for i in range(count)}
    from detectron2.data import MetadataCatalog

    return dict(enumerate(MetadataCatalog.get("coco_2017_val").thing_classes))


def as_input(image: np.ndarray, format: str, min_size: int, max_size: int) -> dict[str, Any]:
    """(H, W, 3) uint8 RGB -> a model's input, made as `DefaultPredictor` does."""
    from detectron2.data import transforms as T

    height, width = image.shape[:2]
    ordered = image[..., ::-1] if format == "BGR" else image
    resized = T.ResizeShortestEdge([min_size, min_size], max_size).get_transform(ordered).apply_image(ordered)
    pixels = torch.from_numpy(np.ascontiguousarray(resized.astype("float32").transpose(2, 0, 1)))
    return {"image": pixels, "height": height, "width": width}
