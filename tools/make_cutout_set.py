r"""Paste cut-outs of unknown objects on photographs: a set for `evaluate-ood` whose boxes are exact.

The cut-outs are RGBA pictures, one object each, of no class of the detector; `--list` names those to take, a path
relative to `--cutouts` in each line. Each is pasted once, on a photograph of its own, where it covers least of the
annotated objects. Debian's package tuxpaint-stamps-default (GPL-2) has photographic ones, see configs/ood/cutouts.txt:

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default*.deb stamps
    python tools/make_cutout_set.py --cutouts stamps/usr/share/tuxpaint/stamps --list configs/ood/cutouts.txt \
        --images ../shared/data/coco/train2017 --annotations ../shared/data/coco/instances_train2017.json --out cutouts
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from rich.progress import track

PLACES = 40
"""Random places of which the one that covers least of the annotated objects is taken."""


def paste(photograph: Image.Image, cutout: Image.Image, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paste in place; returns the object's box, xyxy pixels."""
    object_box = cutout.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox()
    if object_box is None:
        raise ValueError("a cut-out is wholly transparent")
    cutout = cutout.crop(object_box)
    if rng.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    longer = rng.uniform(0.3, 0.6) * min(photograph.size)
    scale = longer / max(cutout.size)
    w, h = (max(8, round(n * scale)) for n in cutout.size)
    cutout = cutout.resize((w, h), Image.Resampling.LANCZOS)
    alpha = cutout.getchannel("A").filter(ImageFilter.GaussianBlur(0.7))  # a camera has no hard edges
    size = np.array([w, h])
    corner = rng.uniform(size=(PLACES, 2)) * (np.array(photograph.size) - size)
    places = np.concatenate([corner, corner + size], 1).round()
    low, high = np.maximum(places[:, None, :2], boxes[:, :2]), np.minimum(places[:, None, 2:], boxes[:, 2:])
    covered = (high - low).clip(min=0).prod(2).sum(1)
    place = places[int(covered.argmin())]
    photograph.paste(cutout.convert("RGB"), (int(place[0]), int(place[1])), alpha)
    return place


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cutouts", type=Path, required=True, metavar="DIR")
    p.add_argument("--list", type=Path, metavar="FILE", help="which of them; all PNG files without it")
    p.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs to paste on")
    p.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="their COCO instances.json")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()

    if args.list:
        lines = (line.partition("#")[0].strip() for line in args.list.read_text().splitlines())
        files = [args.cutouts / line for line in lines if line]
    else:
        files = sorted(args.cutouts.rglob("*.png"))
    if missing := [str(f) for f in files if not f.is_file()]:
        print(f"error: {len(missing)} cut-outs are not there: {', '.join(missing[:3])}", file=sys.stderr)
        return 2
    coco: dict[str, Any] = json.loads(args.annotations.read_text())
    rng = np.random.default_rng(args.seed)
    order = rng.permutation(len(coco["images"]))
    if len(files) > len(order):
        print(f"error: {len(files)} cut-outs need as many photographs, there are {len(order)}", file=sys.stderr)
        return 2
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    first = 1 + max(c["id"] for c in coco["categories"])
    names = sorted({f.stem for f in files})
    categories = [*coco["categories"], *({"id": first + k, "name": f"unknown {n}"} for k, n in enumerate(names))]
    images, annotations = [], []
    for file, k in zip(track(files, "pasting"), order, strict=False):
        record = coco["images"][int(k)]
        own = [a for a in coco["annotations"] if a["image_id"] == record["id"]]
        boxes = np.array([a["bbox"] for a in own], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        photograph = Image.open(args.images / record["file_name"]).convert("RGB")
        box = paste(photograph, Image.open(file).convert("RGBA"), boxes, rng)
        name = f"{file.stem}_{record['id']}.jpg"
        photograph.save(args.out / "images" / name, quality=95)
        images.append({**record, "file_name": name, "width": photograph.width, "height": photograph.height})
        x1, y1, x2, y2 = (float(v) for v in box)
        annotations += [*own, {
            "id": 10**9 + len(images), "image_id": record["id"], "category_id": first + names.index(file.stem),
            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
        }]  # fmt: skip
    out = {"images": images, "annotations": annotations, "categories": categories}
    (args.out / "instances.json").write_text(json.dumps(out))
    print(f"{len(images)} images with an unknown object each: {args.out}/images, {args.out}/instances.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
