r"""Plant a sticker on or beside objects of photographs: a set that tests whether an explanation finds a known cue.

Of each photograph one object is taken and three pictures are written that differ in the sticker alone: "on" the object
(wholly within its mask), "beside" it (touching no annotated object, at most a sticker's width from the mask) and
"absent". What decides is not in the pictures: a test or a benchmark makes a model's answer depend on the sticker, and
so knows the true explanation. Equal arguments give equal pictures. `evaluation.planted_cues` reads the folder:

    python tools/make_planted_cues.py --images ../shared/data/coco/train2017 \
        --annotations ../shared/data/coco/instances_train2017.json --out planted --count 50
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from reliability_hooks.evaluation.datasets import GroundTruth, read_coco
from reliability_hooks.evaluation.masks import decode_masks, encode
from reliability_hooks.images import read_image

AREA = (0.02, 0.3)
"""Range of an object's mask, as a share of the picture: smaller ones hold no sticker, larger ones leave no place."""
SIDE = 0.3
"""Side of the sticker over the square root of the mask's area."""
SMALLEST = 16
"""Side in pixels below which a sticker is no longer seen after the resizing of a detector."""

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def sticker(side: int) -> tuple[Picture, Mask]:
    """A round badge of magenta and yellow quarters with a black rim: (side, side, 3) and where it covers."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    radius = np.hypot(x, y)
    colours = np.where(((x > 0) ^ (y > 0))[..., None], [255, 0, 255], [255, 230, 0])
    colours[radius > 0.8] = 0
    return colours.astype(np.uint8), radius <= 1


def share(mask: Mask, side: int) -> NDArray[np.float64]:
    """Share of `mask` (h, w) in each square of `side`, (h - side + 1, w - side + 1) by its upper left corner."""
    total = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return inside / side**2


def places(own: Mask, others: Mask, side: int) -> dict[str, NDArray[np.intp]]:
    """Upper left corners (K, 2) as (y, x) at which a sticker lies on the object, or beside it."""
    reach = 3 * side  # a square about the sticker that holds all within its width of it
    near = share(np.pad(own, side), reach) > 0
    on = np.argwhere((share(own, side) == 1) & (share(others, side) == 0))
    return {"on": on, "beside": np.argwhere((share(own | others, side) == 0) & near)}


def choose(
    truth: GroundTruth, height: int, width: int, rng: np.random.Generator
) -> tuple[int, Mask, int, dict[str, Any]] | None:
    """An object with a place for a sticker on it and beside it: (row, mask, side, corner of each place)."""
    if truth.masks is None or not len(truth):
        return None
    masks = decode_masks(truth, height, width)
    area = masks.mean((1, 2))
    fit = np.flatnonzero(~truth.crowd & (area >= AREA[0]) & (area <= AREA[1]))
    for row in rng.permutation(fit):
        side = max(SMALLEST, round(SIDE * float(np.sqrt(masks[row].sum()))))
        free = places(masks[row], np.delete(masks, row, 0).any(0), side)
        if all(map(len, free.values())):
            return int(row), masks[row], side, {place: rng.choice(corners) for place, corners in free.items()}
    return None


def packed(mask: Mask) -> dict[str, Any]:
    """A run length that JSON can hold."""
    rle = encode(mask[None])[0]
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs")
    p.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="their instances.json, with masks")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--count", type=int, default=50, help="photographs to take, three pictures each (default: 50)")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)

    try:
        dataset = read_coco(args.annotations, args.images)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rng = np.random.default_rng(args.seed)
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    pictures: list[dict[str, Any]] = []
    for k in track(rng.permutation(len(dataset)), "planting"):
        if len(pictures) >= 3 * args.count:
            break
        record = dataset.images[int(k)]
        photograph = read_image(record.path)
        height, width = photograph.shape[:2]
        chosen = choose(record.truth, height, width, rng)
        if chosen is None:
            continue
        row, mask, side, corners = chosen
        badge, round_ = sticker(side)
        x1, y1, x2, y2 = (float(v) for v in record.truth.boxes[row])
        for place in ("on", "beside", "absent"):
            picture, cue = photograph.copy(), np.zeros((height, width), bool)
            if place in corners:
                y, x = corners[place]
                window = (slice(y, y + side), slice(x, x + side))
                cue[window] = round_
                picture[window][round_] = badge[round_]
            name = f"images/{record.path.stem}_{place}.png"  # lossless: the sticker is exact
            Image.fromarray(picture).save(args.out / name)
            pictures.append({
                "file_name": name, "source": record.id, "height": height, "width": width, "place": place,
                "name": dataset.names[int(record.truth.labels[row])], "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": packed(mask), "cue": packed(cue) if cue.any() else None,
            })  # fmt: skip
    said = {"seed": args.seed, "side_over_root_area": SIDE, "smallest_side": SMALLEST, "mask_area": AREA}
    (args.out / "cues.json").write_text(json.dumps({"protocol": said, "pictures": pictures}))
    found = len(pictures) // 3
    print(f"{found} objects, three pictures each: {args.out}/cues.json")
    if found < args.count:
        print(f"error: only {found} photographs have a place on and beside an object, {args.count} were asked for",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
