"""AP at IoU 0.5 of each class, for boxes and for masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.progress import track
from torch import nn

from reliability_hooks.evaluation.datasets import DetectionDataset
from reliability_hooks.evaluation.masks import as_rle
from reliability_hooks.images import read_image


@dataclass(frozen=True)
class Precision:
    """Figures of each class (K,), NaN where it has no object.

    Attributes:
        objects: How many there are.
        box50: AP at IoU 0.5 of boxes; `box` is the mean over 0.50:0.05:0.95.
        mask50: The same of masks, and `mask`.
    """

    objects: np.ndarray
    box50: np.ndarray
    box: np.ndarray
    mask50: np.ndarray
    mask: np.ndarray


@torch.inference_mode()
def detections(model: nn.Module, dataset: DetectionDataset) -> list[dict[str, Any]]:
    """What a detector in eval mode finds in each image, as COCO results whose category is the label."""
    found: list[dict[str, Any]] = []
    for record in track(dataset.images, "evaluation"):
        pixels = torch.from_numpy(read_image(record.path)).permute(2, 0, 1) / 255
        (out,) = model([pixels])
        masks = np.asfortranarray((out["masks"][:, 0] > 0.5).permute(1, 2, 0).numpy().astype(np.uint8))
        boxes = torch.cat([out["boxes"][:, :2], out["boxes"][:, 2:] - out["boxes"][:, :2]], 1)
        rows = zip(boxes.tolist(), out["scores"].tolist(), out["labels"].tolist(), coco_mask.encode(masks), strict=True)
        found += [
            {"image_id": record.id, "bbox": box, "score": score, "category_id": label, "segmentation": mask}
            for box, score, label, mask in rows
        ]
    return found


def precision(
    found: list[dict[str, Any]], dataset: DetectionDataset, names: Sequence[str], images: Collection[Any] | None = None
) -> Precision:
    """Average precision of each class of `names`, the first of which is the background's and left out.

    Args:
        found: As `detections` gives it, labels in the order of `names`.
        dataset: COCO; classes that `names` lacks do not count.
        names: Of the detector.
        images: Ids of those to evaluate; None for all.
    """
    label = {name: k for k, name in enumerate(names)}
    annotations = [
        {"id": 0, "image_id": r.id, "category_id": label[dataset.names[k]], "iscrowd": int(crowd),
         "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()], "segmentation": as_rle(mask, r.height, r.width)}
        for r in dataset
        for box, k, crowd, mask in zip(r.truth.boxes, r.truth.labels, r.truth.crowd, r.truth.masks or [], strict=True)
        if dataset.names[k] in label
    ]  # fmt: skip
    for k, annotation in enumerate(annotations, 1):
        annotation |= {"id": k, "area": float(coco_mask.area(annotation["segmentation"]))}
    ids = sorted(r.id for r in dataset if images is None or r.id in images)
    truth = COCO()
    truth.dataset = {"info": {}, "annotations": annotations, "images": [
        {"id": r.id, "height": r.height, "width": r.width} for r in dataset
    ], "categories": [{"id": k, "name": name} for name, k in label.items() if k]}  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        figures = [_curves(truth, found, kind, ids) for kind in ("bbox", "segm")]
    seen = [a["category_id"] for a in annotations if a["image_id"] in set(ids) and not a["iscrowd"]]
    objects = np.bincount(seen, minlength=len(names))[1:]
    return Precision(objects, *(f for both in figures for f in both))


def _curves(truth: COCO, found: list[dict[str, Any]], kind: str, ids: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """AP at 0.5 and averaged over the thresholds, (K,) each."""
    classes = len(truth.getCatIds())
    if not found:
        some = [bool(truth.getAnnIds(imgIds=ids, catIds=[k + 1], iscrowd=False)) for k in range(classes)]
        return np.where(some, 0.0, np.nan), np.where(some, 0.0, np.nan)
    run = COCOeval(truth, truth.loadRes([dict(f) for f in found]), kind)
    run.params.imgIds = ids
    run.evaluate()
    run.accumulate()
    curve = run.eval["precision"][:, :, :, 0, 2]  # threshold, recall, class; all areas, 100 detections
    curve = np.where(curve < 0, np.nan, curve)
    return curve[0].mean(0), curve.mean((0, 1))
