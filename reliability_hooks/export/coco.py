"""COCO results: the detector's `score` untouched, the reliability and every column beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..instances import Instances
from .columns import VERDICTS

Rows = list[dict[str, Any]]


def to_coco(
    instances: Instances,
    image_id: int | str,
    names: Mapping[int, str],
    category_ids: Mapping[str, int] | None = None,
    reasons: Sequence[Sequence[str]] | None = None,
) -> Rows:
    """One COCO result for each instance.

    Extra keys survive `pycocotools.COCO.loadRes`. NaN becomes null, also in a box, which `loadRes` then refuses: leave
    such rows out first (`instances[instances.boxes.isfinite().all(1)]`).

    Args:
        instances: With columns.
        image_id: Of the image.
        names: Label -> class name.
        category_ids: Class name -> id in the data set's own numbering; the label itself without it.
        reasons: For each instance what speaks for or against it, in words.

    Returns:
        Keys `image_id, category_id, category_name, bbox` (xywh), `score, reliability, reliability_interval,
        expected_iou, verdict, reasons, columns`, and `segmentation` (run lengths) where there are masks, `track_id`
        where there are tracks.
    """
    instances = instances.cpu()
    segments = _run_lengths(instances)
    corners = instances.boxes.double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
    own = ("reliability", "reliability_interval", "expected_iou", "verdict")
    columns = {name: value.double().tolist() for name, value in instances.columns.items()}
    out: Rows = []
    for i, label in enumerate(instances.labels.tolist()):
        name = names.get(label, str(label))
        row: dict[str, Any] = {
            "image_id": image_id,
            "category_id": label if category_ids is None else category_ids.get(name, label),
            "category_name": name,
            "bbox": boxes[i],
            "score": float(instances.scores[i]),
            **{key: columns[key][i] for key in own if key in columns},
            "reasons": list(reasons[i]) if reasons else [],
            "columns": {key: value[i] for key, value in columns.items() if key not in own},
        }
        if "verdict" in row:
            row["verdict"] = VERDICTS[int(row["verdict"])]
        if segments is not None:
            row["segmentation"] = segments[i]
        if instances.track_ids is not None:
            row["track_id"] = int(instances.track_ids[i])
        out.append(row)
    return out


def read_ids(annotations: str | Path) -> tuple[dict[str, int | str], dict[str, int]]:
    """File name -> image id and class name -> category id of a COCO json, so that results use its numbering.

    Raises:
        ValueError: It is no COCO json.
    """
    try:
        data = json.loads(Path(annotations).read_text(encoding="utf-8"))
        images = {Path(image["file_name"]).name: image["id"] for image in data["images"]}
        return images, {category["name"]: int(category["id"]) for category in data["categories"]}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{annotations} is no COCO json with images and categories: {e!r}") from e


def write_json(path: str | Path, value: Any) -> None:
    """Write all of it or nothing; NaN and infinity become null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(_finite(value), allow_nan=False), encoding="utf-8")
    os.replace(draft, path)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def _run_lengths(instances: Instances) -> list[dict[str, Any]] | None:
    if instances.masks is None:
        return None
    from pycocotools import mask as coco_mask

    height, width = instances.image_size or instances.masks.shape[1:]
    chunk = max(1, 2**26 // max(height * width, 1))  # full-size masks of a large picture do not fit all at once
    out = []
    for start in range(0, len(instances), chunk):
        masks = instances[start : start + chunk].masks_at((height, width))
        encoded = coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).to(torch.uint8).numpy()))
        out += [{"size": r["size"], "counts": r["counts"].decode("ascii")} for r in encoded]
    return out
