"""What `weak-spots` writes: table, JSON, CSV and a sheet of examples for each of the worst spots."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..evaluation.causes import CAUSES
from ..evaluation.object_frame import REACH, to_image, window
from ..evaluation.weak_spot_groups import Names
from ..evaluation.weak_spots import SURE, Judged, Spot, counted
from ..export.coco import write_json
from ..images import read_image
from ..report.weak_spots import Tile, draw_sheet
from .weak_spot_cache import Kept

COLUMNS = ("kind", "words", "n", "images", "effect", "effect_low", "effect_high", "risk", "risk_low", "risk_high", "p")


def draw_sheets(
    spots: Mapping[int, Spot], kept: Kept, judged: Judged, names: Names, out: Path
) -> dict[int, str]:
    """Place in the table -> file name of its sheet; sheets of a former run are removed."""
    for former in out.glob("spot_*.png"):
        if re.fullmatch(r"spot_\d+\.png", former.name):
            former.unlink()
    first = np.searchsorted(judged.image, np.arange(judged.images))
    sheets = {}
    for k, spot in spots.items():
        tiles = [tile(spot, row, kept, int(row - first[judged.image[row]]), judged, names) for row in spot.examples]
        if tiles:
            sheets[k] = f"spot_{k + 1:02}.png"
            state = "" if spot.established else f"NOT ESTABLISHED ({spot.why_not}). "
            draw_sheet(out / sheets[k], f"{k + 1}. {spot.kind}: {spot.words}", tiles, state + summary(spot))
    return sheets


def tile(spot: Spot, row: int, kept: Kept, k: int, judged: Judged, names: Names) -> Tile:
    """One example; the outline that is compared is drawn, and saliency where it is what the spot is about."""
    import torch
    from pycocotools import mask as coco_mask

    from ..evaluation.masks import as_rle

    record, arrays = kept[int(judged.image[row])]
    image, box = read_image(record.path), judged.boxes[row]
    mask = coco_mask.decode(json.loads(str(arrays["masks"][k]))).astype(bool) if "masks" in arrays else None
    at = int(arrays["partner"][k])
    truth = record.truth
    truth_mask = None
    if at >= 0 and truth.masks is not None:
        truth_mask = coco_mask.decode(as_rle(truth.masks[at], *image.shape[:2])).astype(bool)
    salient = spot.kind in ("context", "shortcut", "failure") and "picture" in arrays
    name, cause = names.get(int(judged.labels[row]), "?"), CAUSES[int(judged.cause[row])]
    caption = f"{name} {judged.scores[row]:.2f}, {cause}"
    if spot.kind == "context":
        caption += f", {judged.outside['class'][row]:.0%} outside"
    elif spot.kind == "boundary":
        caption += f", mask {judged.mask_iou[row]:.2f}, boundary {judged.boundary_iou[row]:.2f}"
    elif np.isfinite(judged.reliability[row]):
        caption += f", reliability {judged.reliability[row]:.2f}"
    region = None
    if spot.kind == "shortcut":
        corners = to_image(tuple(spot.told["rect"]), torch.from_numpy(box[None]))[0].numpy()
        region = corners.clip(0, [image.shape[1], image.shape[0]] * 2).tolist()
    compared = spot.kind in ("failure", "boundary", "loose box")
    return Tile(
        image, box.tolist(), caption, mask, truth.boxes[at].tolist() if at >= 0 and compared else None,
        truth_mask if compared else None, arrays["picture"][k] if salient else None,
        window((float(box[0]), float(box[1]), float(box[2]), float(box[3])), REACH), region,
    )  # fmt: skip


def summary(spot: Spot) -> str:
    """Its figures in a line."""
    t, parts = spot.told, [
        f"{counted(spot.n, 'detection')} on {counted(spot.images, 'image')}",
        f"effect {spot.effect:.2f} [{spot.effect_low:.2f}, {spot.effect_high:.2f}]",
    ]  # fmt: skip
    if spot.kind == "failure":
        parts.append(f"{t['share_of_errors']:.0%} of all errors, {t['confident']} with confidence >= {SURE:g}")
        if t["mean_reliability"] is not None:
            parts.append(f"mean reliability {t['mean_reliability']:.2f}")
    elif spot.kind == "context":
        parts.append(f"{t['outside_class']:.0%} of its class saliency lies outside, others of that size "
                     f"{t['outside_others']:.0%}")  # fmt: skip
        if (apart := t["wrong_less_right"]) is not None:
            parts.append(f"wrong less right {apart[0]:+.2f} [{apart[1]:.2f}, {apart[2]:.2f}]")
    elif spot.kind == "boundary":
        parts.append(f"{t['share_lost']:.0%} lost, other classes {t['share_lost_others']:.0%}; mask IoU "
                     f"{t['mask_iou']:.2f}, boundary IoU {t['boundary_iou']:.2f}")  # fmt: skip
    elif spot.kind == "loose box":
        parts.append(f"{t['share_lost']:.0%} loose, other classes {t['share_lost_others']:.0%}")
    elif spot.kind == "condition":
        parts.append(f"{t['share_wrong']:.0%} wrong, others {t['share_wrong_others']:.0%}")
    else:
        parts.append(f"{t['share']:.0%} of the saliency there, others {t['share_others']:.0%}, among the "
                     f"most salient on {t['top']:.0%} of the images, p = {spot.p:.2g}")
        if t["checked"]:
            falls = ", ".join(f"{f} {t['fall'][f]:.0%} (compared area {t['fall_compared'][f]:.0%})" for f in t["fall"])
            parts.append(f"filled on {t['checked']}: score falls by {falls}")
        if t["company"].get("there"):
            mirrored = t["company"].get("mirrored", {})
            parts.append("there: " + ", ".join(f"{name} {share:.0%} (mirrored {mirrored.get(name, 0):.0%})"
                                               for name, share in t["company"]["there"].items()))  # fmt: skip
    return "; ".join(parts)


def write(
    out: Path, said: Mapping[str, Any], spots: Sequence[Spot], totals: Sequence[Spot], sheets: Mapping[int, str],
    kept: Kept, judged: Judged, names: Names,
) -> None:
    """`weak_spots.json` and `weak_spots.csv`."""
    first = np.searchsorted(judged.image, np.arange(judged.images))
    rows = [
        {
            **{name: getattr(s, name) for name in COLUMNS}, "rank": k + 1, "established": s.established,
            "why_not": s.why_not, "class": names.get(s.label), "summary": summary(s), "told": dict(s.told),
            "sheet": sheets.get(k),
            "examples": [
                {"image": kept[int(judged.image[r])][0].path.name, "instance": int(r - first[judged.image[r]]),
                 "bbox_xyxy": judged.boxes[r].tolist(), "score": float(judged.scores[r]),
                 "cause": CAUSES[int(judged.cause[r])]}
                for r in s.examples
            ],
        }
        for k, s in enumerate(spots)
    ]  # fmt: skip
    whole = [{**{name: getattr(s, name) for name in COLUMNS}, "told": dict(s.told)} for s in totals]
    write_json(out / "weak_spots.json", {**said, "totals": whole, "spots": rows})
    with (out / "weak_spots.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["rank", "established", *COLUMNS, "why_not", "summary", "sheet", "examples"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            places = " ".join(f"{e['image']}#{e['instance']}" for e in row["examples"])
            writer.writerow({**row, "examples": places})


def show(
    console: Console, spots: Sequence[Spot], totals: Sequence[Spot], said: Mapping[str, Any], out: Path, most: int = 20
) -> None:
    """The tables on the terminal."""
    good = [s for s in spots if s.established]
    title = (f"weak spots: {said['detections']} detections ({said['right']} right) on {said['images']} images\n"
             "risk = share of all detections that it touches x effect; 95 % intervals over images")  # fmt: skip
    console.print(_table(title, good[:most]))
    console.print(_table("all classes together, which hold the spots above", totals))
    if len(good) > most:
        console.print(f"{len(good) - most} more established spots in weak_spots.csv", highlight=False)
    doubtful = [s for s in spots if not s.established]
    console.print(f"not established: {len(doubtful)} (all in weak_spots.csv)", highlight=False)
    for kind in dict.fromkeys(s.kind for s in doubtful):
        for s in [s for s in doubtful if s.kind == kind][:2]:
            console.print(f"  {s.kind}: {s.words}: {s.why_not}", markup=False, highlight=False)
    for note in said["notes"]:
        console.print(f"note: {note}", style="yellow", markup=False)
    for line in said["failed"]:
        console.print(f"failed: {line}", style="red", markup=False)
    console.print(f"written: {out}/ (weak_spots.json, weak_spots.csv, spot_NN.png)", highlight=False)


def _table(title: str, spots: Sequence[Spot]) -> Table:
    table = Table(title=title)
    for name in ("", "kind", "what", "n", "images", "effect", "risk, %"):
        table.add_column(name, justify="left" if name in ("kind", "what") else "right")
    for k, s in enumerate(spots, 1):
        table.add_row(
            str(k), s.kind, escape(s.words), str(s.n), str(s.images),
            f"{s.effect:.2f} [{s.effect_low:.2f}, {s.effect_high:.2f}]",
            f"{100 * s.risk:.2f} [{100 * s.risk_low:.2f}, {100 * s.risk_high:.2f}]",
        )  # fmt: skip
    return table
