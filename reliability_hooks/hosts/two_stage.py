"""Boxes of any detector, masks of a Segment Anything model: each object with the reliability of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..instances import Instances

ANSWERS = {
    "reliability": "mask_reliability", "reliability_interval": "mask_reliability_interval",
    "verdict": "mask_verdict", "expected_iou": "expected_mask_iou",
}  # fmt: skip
"""Column of a mask's monitor -> what it is called beside that of the box."""


class Predicts(Protocol):
    """A `Handle`: an attached detector or predictor."""

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """(H, W, 3) uint8 RGB images -> the instances in each."""


class TwoStage:
    """A detector whose boxes prompt a predictor of Segment Anything; neither's own output changes.

    Args:
        detector: `attach(detector, monitor)`, a detector of any host.
        segmenter: `attach(predictor, mask_monitor)`, a `SamPredictor` or a `SAM2ImagePredictor`.
    """

    def __init__(self, detector: Predicts, segmenter: Predicts) -> None:
        self.detector, self.segmenter = detector, segmenter

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """The detector's instances with a mask for each box, and how far it may be trusted.

        Args:
            images: (H, W, 3) uint8 RGB.
            **options: Of the detector's call (`conf=0.25`).

        Returns:
            For each image the detector's instances, its columns (`reliability` is that of box and class) and its boxes
            untouched; masks are the predictor's, (N, H, W) bool, and new are `mask_reliability` P(IoU of the mask with
            the object in the box >= the mask monitor's threshold), `mask_reliability_interval`, `mask_verdict`,
            `expected_mask_iou` and `mask_predicted_iou`, the IoU that the predictor itself promises, in [0, 1].
        """
        found = self.detector.predict(images, **options)
        masks = self.segmenter.predict(images, boxes=[instances.boxes.cpu().numpy() for instances in found])
        return [joined(box, mask) for box, mask in zip(found, masks, strict=True)]


def joined(boxes: Instances, masks: Instances) -> Instances:
    """Detected boxes with the masks that they prompted, row by row.

    Raises:
        ValueError: There are not as many masks as boxes.
    """
    if len(boxes) != len(masks):
        raise ValueError(f"{len(masks)} masks for {len(boxes)} boxes: prompt one mask for each box")
    masks = masks.to(boxes.device)
    answers = {name: masks.column(column) for column, name in ANSWERS.items()}
    return boxes.replace(masks=masks.masks).with_columns({**answers, "mask_predicted_iou": masks.scores})
