"""Detectron2's own pictures, with the reliability as their colour. Imported only where Detectron2 is wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.utils.visualizer import Visualizer

from ..report.overlay import caption, colour
from .detectron2 import EVIDENCE


def draw(image: np.ndarray, found: Any, metadata: Any = None, scale: float = 1.0) -> np.ndarray:
    """The image with boxes, masks and captions by Detectron2's `Visualizer`, coloured by the reliability.

    Args:
        image: (H, W, 3) uint8 RGB.
        found: Detectron2's instances of a hooked model; grey where the reliability is NaN.
        metadata: With `thing_classes`; labels are numbers without it.
        scale: Of the picture.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.

    Raises:
        ValueError: The model was not hooked.
    """
    if not found.has(EVIDENCE):
        raise ValueError("no reliability beside these instances; attach(model, monitor) before the model runs")
    judged = found.get(EVIDENCE).cpu()
    names = getattr(metadata, "thing_classes", ())
    values, labels, scores = judged.reliability.tolist(), judged.labels.tolist(), judged.scores.tolist()
    words = [
        caption(names[label] if label < len(names) else str(label), score, value)
        for label, score, value in zip(labels, scores, values, strict=True)
    ]
    colours = [tuple(c / 255 for c in colour(value)) for value in values]
    masks = None if judged.masks is None else judged.masks.numpy()
    picture = Visualizer(image, metadata, scale=scale).overlay_instances(
        boxes=judged.boxes.numpy(), labels=words, masks=masks, assigned_colors=colours
    )
    drawn: np.ndarray = picture.get_image()
    return drawn
