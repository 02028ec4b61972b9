"""What `weak-spots` keeps of each image: detections, what is true of them, and their saliency; on disk, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import interpolate

from ..evaluation.boundary import boundary_iou
from ..evaluation.causes import CAUSES, RIGHT, causes
from ..evaluation.checks import Floats
from ..evaluation.datasets import GroundTruth, ImageRecord
from ..evaluation.faithfulness import inside
from ..evaluation.localisation import energy_inside
from ..evaluation.masks import decode_masks, encode
from ..evaluation.object_frame import cover, in_frame
from ..evaluation.shortcuts import Suspect, drops, holes
from ..evaluation.weak_spots import Judged
from ..explain.base import Probe
from ..explain.explainer import EVIDENCE, Watched, explain_frame, rows_of
from ..explain.targets import target_of
from ..frame import Frame
from ..images import ImageError, read_image
from ..instances import Instances
from .cache import digest, truth_digest

TARGETS = ("class", "joint")
LONGEST = 320
"""Of the maps, in pixels."""
FLOOR = 0.2
"""Of a map's maximum, below which it counts as 0: coarse maps are low and wide beside their peaks, which in a large
picture adds up to more than these."""
CELLS, FINE = 12, 48
"""Of an object's frame: for the test, and for pictures."""
Arrays = dict[str, np.ndarray]
Kept = Sequence[tuple[ImageRecord, Arrays]]


def arrays_of(
    handle: Watched, image: np.ndarray, truth: GroundTruth, method: str, budget: int, iou_threshold: float,
    phrases: Mapping[str, str], options: Mapping[str, Any],
) -> Arrays:
    """All that is kept of one image with N detections; every array has N rows.

    Args:
        handle: Of the hooked detector.
        image: (H, W, 3) uint8 RGB.
        truth: Its annotated objects.
        method: Of explanation, or `none`.
        budget: Pictures that it may show to the detector, for each image.
        iou_threshold: Of a right detection.
        phrases: Column of a condition -> its phrase.
        options: Of `handle.predict`.
    """
    with handle.frames(*(() if method == "none" else EVIDENCE)) as frames:
        found = handle.predict([image], **options)[0].cpu()
        why = causes(found.boxes, found.scores, found.labels, np.zeros(len(found), int), truth.boxes, truth.labels,
                     np.zeros(len(truth), int), truth.crowd, iou_threshold)  # fmt: skip
        size = (image.shape[0], image.shape[1])
        masks = found.masks_at(size) if found.masks is not None else None
        real = None if truth.masks is None else torch.from_numpy(decode_masks(truth, *size))
        unknown = torch.full((len(found),), torch.nan)
        out: dict[str, Any] = {
            "boxes": found.boxes, "scores": found.scores, "labels": found.labels, "cause": why.code,
            "partner": why.partner, "iou": why.iou, "reliability": found.columns.get("reliability", unknown),
            "size": (found.boxes[:, 2:] - found.boxes[:, :2]).clamp(min=0).prod(1).sqrt() / max(size),
            **outlines(masks, real, why.partner, why.code == CAUSES.index(RIGHT)),
            **{f"condition/{words}": found.columns[c] for c, words in phrases.items() if c in found.columns},
        }  # fmt: skip
        if masks is not None:
            out["masks"] = np.array([json.dumps(_plain(rle)) for rle in encode(masks)], str)
        if method != "none" and len(found):
            if not frames:
                raise RuntimeError("no evidence of the detector; attach(..., strict=True) raises the cause")
            out |= saliency(frames[0], found, masks, real, truth, why.partner, method, budget)
    return {name: np.asarray(v.cpu() if isinstance(v, Tensor) else v) for name, v in out.items()}


def outlines(
    masks: Tensor | None, real: Tensor | None, partner: np.ndarray, is_right: np.ndarray
) -> dict[str, Tensor]:
    """`mask_iou` and `boundary_iou` of the right detections, NaN for others and where there are no masks."""
    both = torch.full((2, len(partner)), torch.nan)
    rows = np.flatnonzero(is_right)
    if masks is not None and real is not None and len(rows):
        own, theirs = masks[rows], real[partner[rows]]
        union = (own | theirs).sum((1, 2)).clamp(min=1)
        both[0, rows] = (own & theirs).sum((1, 2)) / union
        both[1, rows] = boundary_iou(own, theirs)
    return {"mask_iou": both[0], "boundary_iou": both[1]}


def saliency(
    frame: Frame, found: Instances, masks: Tensor | None, real: Tensor | None, truth: GroundTruth, partner: np.ndarray,
    method: str, budget: int,
) -> dict[str, Tensor]:
    """Shares outside of the object, and the frames of the class saliency (see `object_frame`); above `FLOOR` alone."""
    rows = rows_of(found, frame.instances)
    made = explain_frame(frame, rows, targets=TARGETS, method=method, budget=budget, longest=LONGEST)
    image_size = frame.instances.image_size
    assert image_size is not None
    whole = {name: m.float().cpu() for name, m in made.maps.items()}
    maps = {name: torch.where(m < FLOOR * m.flatten(1).amax(1)[:, None, None], 0.0, m) for name, m in whole.items()}
    h, w = next(iter(maps.values())).shape[1:]
    scale = torch.tensor([w / image_size[1], h / image_size[0]] * 2)
    objects = _at(masks, (h, w)) if masks is not None else inside(found.boxes * scale, len(found), h, w, scale.device)
    out: dict[str, Tensor] = {}
    for name, values in maps.items():
        share = 1 - energy_inside(values, objects)
        out[f"outside/{name}"] = torch.where(_speaks(values), share, torch.nan)
    heat = maps["class"]
    speaks, total = _speaks(heat), heat.nan_to_num().sum((1, 2)).clamp(min=1e-12)[:, None, None]
    share = heat.nan_to_num() / total
    beside = in_frame(share * ~objects, found.boxes, image_size, CELLS)
    out["frame"] = beside.masked_fill(~speaks[:, None, None], torch.nan)
    out["cover"] = cover(found.boxes, image_size, CELLS)
    fine = in_frame(whole["class"].nan_to_num(), found.boxes, image_size, FINE)
    out["picture"] = (fine / fine.flatten(1).amax(1).clamp(min=1e-12)[:, None, None]).half()
    out["outside_true"] = torch.full((len(found),), torch.nan)
    if (about := np.flatnonzero(partner >= 0)).size:
        at = partner[about]
        theirs = _at(real[at], (h, w)) if real is not None else torch.from_numpy(truth.boxes[at]) * scale
        out["outside_true"][about] = torch.where(speaks[about], 1 - energy_inside(heat[about], theirs), torch.nan)
    return out


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


def checked(
    handle: Watched, image: np.ndarray, wanted: Sequence[tuple[Suspect, np.ndarray, int]], fills: Sequence[str],
    options: Mapping[str, Any],
) -> dict[int, Floats]:
    """Row -> `shortcuts.drops` (F, 2) of a suspect's place on one image; rows that cannot be compared are left out.

    Args:
        handle: Of the hooked detector.
        image: (H, W, 3) uint8 RGB.
        wanted: Suspect, box (4,) of the detection, and the row that it is known by.
        fills: Of `fills.FILLS`.
        options: Of `handle.predict`.
    """
    out: dict[int, Floats] = {}
    with handle.frames(*EVIDENCE) as frames:
        found = handle.predict([image], **options)[0]
        frame = frames[0]
        view = frame.view
        if view is None or not len(found):
            return out
        h, w = view.pixels.shape[1:]
        y = (torch.arange(h, device=view.pixels.device) + 0.5 - view.offset[1]) / view.scale[1]
        x = (torch.arange(w, device=view.pixels.device) + 0.5 - view.offset[0]) / view.scale[0]
        beside = ((y < 0) | (y >= image.shape[0]))[:, None] | ((x < 0) | (x >= image.shape[1]))
        for suspect, box, row in wanted:
            apart = (found.boxes.cpu().float() - torch.from_numpy(box).float()).abs().amax(1)
            apart = apart + 1e9 * (found.labels.cpu() != suspect.label)
            if float(apart.min()) > 1:
                continue
            one = found[[int(apart.argmin())]]
            probe = Probe(frame, rows_of(one, frame.instances), [target_of("class")])
            object_ = _object(one, image.shape, y, x)
            own = view.to_view(one.boxes.float())[0]
            parts = holes(suspect.rect, own, object_ | beside)
            if parts is not None:
                out[row] = drops(partial(_answer, probe), view.pixels.float(), *parts, fills)
    return out


def monitor_digest(path: str | None) -> str | None:
    """Changes with what a monitor has learnt."""
    if path is None:
        return None
    files = sorted(p for p in Path(path).rglob("*") if p.suffix in (".json", ".safetensors"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:24]


def _answer(probe: Probe, pictures: Tensor) -> Tensor:
    return probe(pictures)[..., 0]


def _object(one: Instances, shape: Sequence[int], y: Tensor, x: Tensor) -> Tensor:
    """(h, w) bool at places (h,), (w,) of the image: the mask, or the box where there is none."""
    if one.masks is None:
        x1, y1, x2, y2 = one.boxes[0].tolist()
        inside_box: Tensor = ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))
        return inside_box
    mask = one.masks[0]
    rows = (y / shape[0] * mask.shape[0]).long().clamp(0, mask.shape[0] - 1)
    columns = (x / shape[1] * mask.shape[1]).long().clamp(0, mask.shape[1] - 1)
    out: Tensor = mask[rows][:, columns]
    return out


def _at(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if not len(masks):
        return masks.new_zeros(0, *size)
    resized: Tensor = interpolate(masks[None].to(torch.uint8), size=size, mode="nearest-exact")[0].bool()
    return resized


def _speaks(maps: Tensor) -> Tensor:
    """(N,) bool: a map that has no NaN and something positive."""
    flat = maps.flatten(1)
    return ~flat.isnan().any(1) & (flat.nan_to_num().amax(1) > 0)


def _plain(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
