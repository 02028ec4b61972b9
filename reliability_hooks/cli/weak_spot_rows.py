"""What `weak-spots` keeps of each image: detections, what is true of them, and their saliency."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..evaluation.boundary import boundary_iou
from ..evaluation.causes import CAUSES, RIGHT, causes
from ..evaluation.checks import Floats
from ..evaluation.datasets import GroundTruth
from ..evaluation.faithfulness import inside
from ..evaluation.localisation import energy_inside
from ..evaluation.masks import decode_masks, encode
from ..evaluation.object_frame import cover, in_frame
from ..evaluation.shortcuts import Suspect, drops, holes
from ..explain.base import Probe
from ..explain.explainer import EVIDENCE, Watched, explain_frame, rows_of
from ..explain.targets import target_of
from ..frame import Frame
from ..instances import Instances

TARGETS = ("class", "joint")
LONGEST = 320
"""Of the maps, in pixels."""
FLOOR = 0.2
"""Of a map's maximum, below which it counts as 0: coarse maps are low and wide beside their peaks, which in a large
picture adds up to more than these."""
CELLS, FINE = 12, 48
"""Of an object's frame: for the test, and for pictures."""
Arrays = dict[str, np.ndarray]


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
