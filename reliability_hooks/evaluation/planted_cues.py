"""Photographs with a sticker planted on or beside an object, as `tools/make_planted_cues.py` writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .masks import as_rle

PLACES = ("on", "beside", "absent")


@dataclass(frozen=True, eq=False)
class PlantedCue:
    """One picture of one object.

    Attributes:
        path: of the picture.
        source: id of the photograph: its three pictures differ in nothing but the sticker.
        place: "on" (wholly within the object's mask), "beside" (touching no annotated object) or "absent".
        name: class of the object.
        box: (4,) float32 xyxy pixels of the object.
        mask: (h, w) bool of the object, as if no sticker were on it.
        cue: (h, w) bool of the sticker; all False where it is absent.
    """

    path: Path
    source: int
    place: str
    name: str
    box: NDArray[np.float32]
    mask: NDArray[np.bool_]
    cue: NDArray[np.bool_]


def read_planted_cues(folder: str | Path) -> list[PlantedCue]:
    """Reads `cues.json` of a folder.

    Raises:
        FileNotFoundError: the json or a picture is not there.
        ValueError: the json is none of `tools/make_planted_cues.py`.
    """
    root = Path(folder)
    try:
        entries = json.loads((root / "cues.json").read_text(encoding="utf-8"))["pictures"]
        found = [_cue(root, entry) for entry in entries]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{root / 'cues.json'} is not as tools/make_planted_cues.py writes it ({error!r})") from error
    missing = [cue.path.name for cue in found if not cue.path.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} picture(s) missing from {root}: {', '.join(missing[:3])}")
    return found


def _cue(root: Path, entry: dict[str, Any]) -> PlantedCue:
    x, y, w, h = entry["bbox"]
    mask = _decoded(entry["segmentation"], entry["height"], entry["width"])
    cue = np.zeros_like(mask) if entry["cue"] is None else _decoded(entry["cue"], entry["height"], entry["width"])
    box = np.array([x, y, x + w, y + h], np.float32)
    return PlantedCue(root / entry["file_name"], entry["source"], entry["place"], entry["name"], box, mask, cue)


def _decoded(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    from pycocotools import mask as coco_mask

    out: NDArray[np.bool_] = coco_mask.decode(as_rle(segmentation, height, width)).astype(bool)
    return out
