"""Scenes that several tests share: ground truth with simulated detections, and what other libraries make of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from reliability_hooks.evaluation.datasets import DetectionDataset
from reliability_hooks.evaluation.masks import RLE

Arrays = dict[str, np.ndarray]


def pycoco(
    d: Arrays, threshold: float, agnostic: bool = False, masks: tuple[list[RLE], list[RLE]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(matched row or -1, ignore) of COCOeval; ground truth and detection ids are rows + 1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(prefix: str, extra: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
        xywh = np.c_[d[f"{prefix}boxes"][:, :2], d[f"{prefix}boxes"][:, 2:] - d[f"{prefix}boxes"][:, :2]]
        return [
            {
                "id": k + 1,
                "image_id": int(d[f"{prefix}image_ids"][k]),
                "category_id": int(d[f"{prefix}labels"][k]),
                "bbox": xywh[k].tolist(),
                "area": float(xywh[k, 2] * xywh[k, 3]),
                **{name: column[k] for name, column in extra.items()},
            }
            for k in range(len(xywh))
        ]

    images = [{"id": int(i)} for i in np.union1d(d["image_ids"], d["gt_image_ids"])]
    categories = [{"id": int(c)} for c in np.union1d(d["labels"], d["gt_labels"])]
    about, gt_about = {"score": d["scores"].tolist()}, {"iscrowd": d["gt_crowd"].astype(int).tolist()}
    if masks is not None:
        about["segmentation"], gt_about["segmentation"] = masks
        ids = np.r_[d["image_ids"], d["gt_image_ids"]]
        sizes = {int(i): m["size"] for i, m in zip(ids, [*masks[0], *masks[1]], strict=True)}
        images = [{**i, "height": sizes[i["id"]][0], "width": sizes[i["id"]][1]} for i in images]
    truth, result = COCO(), COCO()
    truth.dataset = {"images": images, "categories": categories, "annotations": rows("gt_", gt_about)}
    result.dataset = {"images": images, "categories": categories, "annotations": rows("", about)}
    index, ignore = np.full(len(d["boxes"]), -1), np.zeros(len(d["boxes"]), bool)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        result.createIndex()
        run = COCOeval(truth, result, "bbox" if masks is None else "segm")
        run.params.useCats = int(not agnostic)
        run.params.iouThrs, run.params.maxDets = np.array([threshold]), [100_000]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
    for image in filter(None, run.evalImgs):
        row = np.array(image["dtIds"], int) - 1
        index[row] = image["dtMatches"][0].astype(int) - 1
        ignore[row] = image["dtIgnore"][0]
    return index, ignore


def simulate(dataset: DetectionDataset, seed: int) -> Arrays:
    """Jittered and duplicated ground truth plus false positives, on a quarter-pixel grid so that IoU is exact."""
    rng = np.random.default_rng(seed)
    truth = dataset.truth_arrays()
    truth["gt_boxes"] = np.round(truth["gt_boxes"].astype(float) * 4) / 4
    truth["gt_boxes"][:, 2:] = np.maximum(truth["gt_boxes"][:, 2:], truth["gt_boxes"][:, :2] + 0.25)
    pick = rng.integers(len(truth["gt_boxes"]), size=2500)
    boxes = truth["gt_boxes"][pick]
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = boxes + np.round(rng.normal(0, 0.12, boxes.shape) * size * 4) / 4 * (rng.random((2500, 1)) < 0.9)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.25)
    labels = np.where(rng.random(2500) < 0.9, truth["gt_labels"][pick], rng.integers(80, size=2500))
    corner = rng.integers(0, 400, (500, 2))
    image_ids = np.r_[truth["gt_image_ids"][pick], rng.choice(truth["gt_image_ids"], 500)]
    return {
        "boxes": np.r_[boxes, np.c_[corner, corner + rng.integers(1, 200, (500, 2))]],
        "scores": rng.integers(0, 50, 3000) / 50,  # many ties
        "labels": np.r_[labels, rng.integers(80, size=500)],
        "image_ids": image_ids,
        **truth,
    }


def sample(seed: int, n: int = 400, levels: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(p, y, weight); `levels` > 0: that many distinct p."""
    rng = np.random.default_rng(seed)
    p = rng.integers(0, levels, n) / levels if levels else rng.random(n) * 0.998 + 0.001
    return p, rng.random(n) < p**1.5, rng.integers(0, 4, n)


def toy(seed: int = 0, images: int = 60, classes: int = 4, crowds: bool = False) -> Arrays:
    """Jittered, duplicated and invented boxes; every fifth image is without ground truth."""
    rng = np.random.default_rng(seed)
    g = images * 4
    gt_image = rng.integers(images, size=g)
    gt_image = gt_image + (gt_image % 5 == 0)
    corner, side = rng.random((g, 2)) * 200, rng.uniform(20, 90, (g, 2))
    gt_boxes, gt_labels = np.c_[corner, corner + side], rng.integers(classes, size=g)
    pick = rng.integers(g, size=3 * g)
    boxes = gt_boxes[pick] + rng.normal(0, 0.12, (3 * g, 4)) * np.tile(side[pick], 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.where(rng.random(3 * g) < 0.85, gt_labels[pick], rng.integers(classes, size=3 * g))
    lost = rng.random(3 * g) < 0.15
    return {
        "boxes": boxes,
        "scores": rng.random(3 * g),
        "labels": labels,
        "image_ids": np.where(lost, rng.integers(images + 1, size=3 * g), gt_image[pick]),
        "gt_boxes": gt_boxes,
        "gt_labels": gt_labels,
        "gt_image_ids": gt_image,
        "gt_crowd": (rng.random(g) < 0.1) & crowds,
    }


def span(scene: Arrays) -> Arrays:
    """Adds a false positive of score 0 and of score 1 to each class, in an image of their own.

    uq-detr bins from the least to the greatest confidence that it finds; with both ends there, its bins are ours.
    """
    classes = np.arange(scene["gt_labels"].max() + 1)
    n = 2 * len(classes)
    return scene | {
        "boxes": np.r_[scene["boxes"], np.tile([[0.0, 0, 5, 5]], (n, 1))],
        "scores": np.r_[scene["scores"], np.zeros(len(classes)), np.ones(len(classes))],
        "labels": np.r_[scene["labels"], classes, classes],
        "image_ids": np.r_[scene["image_ids"], np.full(n, scene["gt_image_ids"].max() + 7)],
    }


def uq(scene: Arrays, scores: np.ndarray | None = None) -> tuple[list[Any], list[Any]]:
    """The scene as uq-detr takes it, image by image; `scores` (N, K) in the place of the confidences."""
    import uq_detr

    scores = scene["scores"] if scores is None else scores
    detections, truths = [], []
    for i in np.union1d(scene["image_ids"], scene["gt_image_ids"]):
        d, g = scene["image_ids"] == i, scene["gt_image_ids"] == i
        detections.append(uq_detr.Detections(scene["boxes"][d], scores[d], scene["labels"][d]))
        truths.append(uq_detr.GroundTruth(scene["gt_boxes"][g], scene["gt_labels"][g]))
    return detections, truths
