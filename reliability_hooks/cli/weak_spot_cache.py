"""The evidence of `weak-spots` on disk, image by image, and all of it as one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from ..evaluation.datasets import ImageRecord
from ..evaluation.weak_spots import Judged
from ..explain.explainer import Watched
from ..images import ImageError, read_image
from .cache import digest, truth_digest
from .weak_spot_rows import CELLS, TARGETS, Arrays, arrays_of

Kept = Sequence[tuple[ImageRecord, Arrays]]


class Evidence:
    """The arrays of each image, from disk where they are there.

    Args:
        handle: Of the hooked detector.
        directory: Of the cache.
        same: All settings that the arrays depend on beside image and annotation, as JSON.
        make: Keywords of `arrays_of`.

    Raises:
        ValueError: The cache was made with other settings; the message names them.
    """

    def __init__(self, handle: Watched, directory: Path, same: Mapping[str, Any], make: Mapping[str, Any]) -> None:
        self.handle, self.directory, self.make = handle, directory, make
        self.failed: list[str] = []
        directory.mkdir(parents=True, exist_ok=True)
        told, wanted = directory / "settings.json", json.loads(json.dumps(same, default=str))
        if told.is_file():
            former = json.loads(told.read_text(encoding="utf-8"))
            if odd := sorted(k for k in {*former, *wanted} if former.get(k) != wanted.get(k)):
                pairs = "; ".join(f"{k}: {_short(former.get(k))} there, {_short(wanted.get(k))} now" for k in odd)
                raise ValueError(f"{directory} was made with other settings ({pairs}): delete it or give another --out")
        else:
            told.write_text(json.dumps(wanted), encoding="utf-8")

    def of(self, records: Sequence[ImageRecord], console: Console) -> Iterator[tuple[ImageRecord, Arrays]]:
        """Image by image; those that cannot be read are named in `failed` and left out."""
        columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            for record in progress.track(records, description="explaining"):
                try:
                    yield record, self._one(record)
                except ImageError as e:
                    self.failed.append(str(e))

    def _one(self, record: ImageRecord) -> Arrays:
        key = digest(record.id, record.path.resolve(), truth_digest(record.truth))
        path = self.directory / f"{key}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                return dict(kept)
        image = read_image(record.path)
        if record.height and record.width and image.shape[:2] != (record.height, record.width):
            raise ImageError(f"{record.path} is {image.shape[0]} x {image.shape[1]} pixels, the annotations say "
                             f"{record.height} x {record.width}")  # fmt: skip
        made = arrays_of(self.handle, image, record.truth, **self.make)
        draft = path.with_suffix(".new.npz")
        np.savez_compressed(draft, **made)  # type: ignore[arg-type]
        os.replace(draft, path)
        return made


def joined(kept: Kept) -> tuple[Judged, Arrays]:
    """All images as one, and the arrays that only some need: `frame`, `cover` (N, c, c)."""
    lengths = np.array([len(a["boxes"]) for _, a in kept], np.int64)
    objects = np.array([len(r.truth) for r, _ in kept], np.int64)
    blank = {"frame": (CELLS, CELLS), "cover": (CELLS, CELLS), "boxes": (4,)}

    def column(name: str) -> np.ndarray:
        shape = blank.get(name, ())
        own = [a.get(name, np.full((k, *shape), np.nan)) for (_, a), k in zip(kept, lengths, strict=True)]
        parts = [np.zeros((0, *shape)), *own]
        return np.concatenate(parts).astype(np.float64)

    shift = np.repeat(np.cumsum(objects) - objects, lengths)
    partner = column("partner").astype(np.int64)
    partner = np.where(partner >= 0, partner + shift, -1)
    truths = [r.truth for r, _ in kept]
    boxes = column("boxes")
    gt_boxes = np.concatenate([np.zeros((0, 4)), *(t.boxes for t in truths)])
    about = np.concatenate([gt_boxes, np.zeros((1, 4))])[partner]
    about = np.where((partner >= 0)[:, None], about, boxes)
    phrases = dict.fromkeys(name for _, a in kept for name in a if name.startswith("condition/"))
    judged = Judged(
        image=np.repeat(np.arange(len(kept)), lengths), labels=column("labels").astype(np.int64),
        scores=column("scores"), boxes=boxes, images=len(kept), cause=column("cause").astype(np.int64),
        partner=partner, iou=column("iou"), size=column("size"), area=(about[:, 2:] - about[:, :2]).clip(min=0).prod(1),
        mask_iou=column("mask_iou"), boundary_iou=column("boundary_iou"),
        outside={t: column(f"outside/{t}") for t in TARGETS}, outside_true=column("outside_true"),
        reliability=column("reliability"),
        conditions={p.removeprefix("condition/"): column(p) for p in phrases},
        gt_boxes=gt_boxes, gt_labels=np.concatenate([np.zeros(0, np.int64), *(t.labels for t in truths)]),
        gt_image=np.repeat(np.arange(len(kept)), objects),
    )  # fmt: skip
    return judged, {"frame": column("frame"), "cover": column("cover")}


def monitor_digest(path: str | None) -> str | None:
    """Changes with what a monitor has learnt."""
    if path is None:
        return None
    files = sorted(p for p in Path(path).rglob("*") if p.suffix in (".json", ".safetensors"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:24]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
