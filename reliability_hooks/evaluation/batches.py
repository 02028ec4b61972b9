"""Batches as torchmetrics' detection metrics take them, a dict for each image, made flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .masks import MaskIoU, encode

Batch = Sequence[Mapping[str, Any]]
Arrays = dict[str, NDArray[Any]]


def flatten(preds: Batch, target: Batch, iou_type: str, score_cut: float) -> tuple[Arrays, Arrays, MaskIoU | None]:
    """All detections and all ground truths of a batch, and the IoU of their masks if these are to be matched.

    Args:
        preds: for each image `boxes` or with "segm" `masks`, `scores`, `labels` and perhaps `reliability`.
        target: for each image `boxes` or with "segm" `masks`, `labels` and perhaps `iscrowd`.
        iou_type: "bbox" or "segm".
        score_cut: detections of a lower score are left out.

    Returns:
        Columns of the detections (`boxes`, `scores`, `labels`, `p`: the reliability or else the score, `image`: its
        place in the batch), those of the ground truths (`boxes`, `labels`, `iscrowd`, `image`), and the IoU or None.

    Raises:
        ValueError: the two differ in length, a key is missing or a shape does not fit.
    """
    if len(preds) != len(target):
        raise ValueError(f"preds and target must have one entry for each image, got {len(preds)} and {len(target)}")
    known = {"scores", "labels", "masks" if iou_type == "segm" else "boxes"}
    for name, some, needed in (("preds", preds, known), ("target", target, known - {"scores"})):
        lacking = {key for entry in some for key in needed - entry.keys()}
        if lacking:
            raise ValueError(f"every entry of {name} needs {', '.join(sorted(lacking))}")
    judged = [{**entry, "p": entry.get("reliability", entry["scores"])} for entry in preds]
    d, t = _columns(judged, ("scores", "p")), _columns(target, ("iscrowd",))
    keep = np.flatnonzero(~(d["scores"] < score_cut))
    d = {name: value[keep] for name, value in d.items()}
    t["iscrowd"] = t["iscrowd"].astype(bool)
    if iou_type == "bbox":
        return d, t, None
    packed, gt_packed = ([m for entry in some for m in encode(as_array(entry["masks"]))] for some in (preds, target))
    return d, t, MaskIoU([packed[i] for i in keep], gt_packed, t["iscrowd"])


def _columns(entries: Batch, names: Sequence[str]) -> Arrays:
    rows = [len(entry["labels"]) for entry in entries]
    out = {"image": np.repeat(np.arange(len(rows)), rows)}
    for name, width in (("boxes", 4), ("labels", 0), *((name, 0) for name in names)):
        dtype = np.int64 if name == "labels" else np.float64
        blank = [np.zeros((n, width) if width else n) for n in rows]
        parts = [as_array(e[name]) if name in e else b for e, b in zip(entries, blank, strict=True)]
        parts = [part.reshape(b.shape) for part, b in zip(parts, blank, strict=True)]
        out[name] = np.concatenate([np.zeros((0, 4) if width else 0), *parts]).astype(dtype)
    return out


def as_array(value: Any) -> NDArray[Any]:
    """A tensor of any device, or anything array-like, as an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
