"""Ground truth: what a data set is, and how COCO json is read, labels mapped by name onto the detector's classes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotated objects of one image.

    Attributes:
        boxes: (G, 4) float32 xyxy, absolute pixels.
        labels: (G,) int64, index into the data set's `names`; -1 for a class that `names` lacks.
        crowd: (G,) bool, regions that hold many objects (COCO `iscrowd`).
        masks: G COCO segmentations (polygons or run lengths), see `masks.decode_masks`; None where an object has none.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image: its id, file, size in pixels (None where the annotation does not say) and ground truth."""

    id: int | str
    path: Path
    height: int | None
    width: int | None
    truth: GroundTruth


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """Images with ground truth.

    Attributes:
        names: class names in the order of the labels.
        images: the records.
        unmapped: class name -> number of its objects, for classes that `names` lacks, in all that was read
            (a subset keeps the count of the whole).
        dropped: number of boxes without area that were left out, in all that was read.
        parents: label -> number of its supercategory, for classes that have one.
    """

    names: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    unmapped: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    parents: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self.images)

    def subset(self, indices: Iterable[int]) -> DetectionDataset:
        """The images at `indices`, in that order."""
        return replace(self, images=tuple(self.images[int(i)] for i in indices))

    def split(self, fraction: float, seed: int = 0) -> tuple[DetectionDataset, DetectionDataset]:
        """Two disjoint parts by image, the first with `fraction` (in [0, 1]) of them, each in the order of the whole.

        Raises:
            ValueError: `fraction` is outside [0, 1].
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
        order = np.random.default_rng(seed).permutation(len(self))
        cut = round(fraction * len(self))
        return self.subset(np.sort(order[:cut])), self.subset(np.sort(order[cut:]))

    def truth_arrays(self) -> dict[str, NDArray[Any]]:
        """All ground truth as `gt_boxes`, `gt_labels`, `gt_image_ids`, `gt_crowd`: keywords of `matching.match`."""
        truths = [image.truth for image in self.images]
        ids = np.array([image.id for image in self.images])
        return {
            "gt_boxes": np.concatenate([np.zeros((0, 4), np.float32), *(t.boxes for t in truths)]),
            "gt_labels": np.concatenate([np.zeros(0, np.int64), *(t.labels for t in truths)]),
            "gt_image_ids": np.repeat(ids, [len(t) for t in truths]) if truths else np.zeros(0, np.int64),
            "gt_crowd": np.concatenate([np.zeros(0, bool), *(t.crowd for t in truths)]),
        }


def read_coco(
    annotations_json: str | Path, images_dir: str | Path, names: Sequence[str] | None = None, open_set: bool = False
) -> DetectionDataset:
    """Reads a COCO instances json.

    Args:
        annotations_json: the json, with `images`, `annotations`, `categories`. Boxes are [x, y, width, height] in
            continuous pixels and become [x, y, x + width, y + height]: nothing is shifted.
        images_dir: folder to which each `file_name` is relative.
        names: the detector's class names in its order; categories are mapped by name. None: the categories' own
            names in order of their ids.
        open_set: allow that not one category is among `names`, as in an out-of-distribution set.

    Raises:
        ValueError: the json is broken or lacks a part, `names` repeats itself or knows no category.
        FileNotFoundError: an image is missing.
    """
    source, folder = Path(annotations_json), Path(images_dir)
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise ValueError(f"{source} is no COCO instances file: it needs the lists {', '.join(parts)}")
    try:
        category = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        objects: dict[Any, list[Annotated]] = {image["id"]: [] for image in content["images"]}
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            box, crowd = (x, y, x + w, y + h), bool(a.get("iscrowd", 0))
            objects[a["image_id"]].append(
                Annotated(category[a["category_id"]], box, crowd, a.get("segmentation") or None)
            )
        entries = [
            Entry(i["id"], folder / i["file_name"], i.get("height"), i.get("width"), objects[i["id"]])
            for i in content["images"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: an image, category or annotation is incomplete or refers to an id that is not there ({error!r})"
        ) from error
    dataset = assemble(source, folder, entries, list(category.values()), names, open_set)
    above = {str(c["name"]): str(c["supercategory"]) for c in content["categories"] if c.get("supercategory")}
    number = {name: k for k, name in enumerate(sorted(set(above.values())))}
    return replace(dataset, parents={k: number[above[n]] for k, n in enumerate(dataset.names) if n in above})


@dataclass(frozen=True)
class Annotated:
    """One object as a file describes it: class name and box, xyxy pixels."""

    name: str
    box: tuple[float, float, float, float]
    crowd: bool = False
    segmentation: Any = None


@dataclass(frozen=True)
class Entry:
    """One image as a file describes it."""

    id: int | str
    path: Path
    height: int | None
    width: int | None
    objects: list[Annotated]


def assemble(
    source: Path,
    folder: Path,
    entries: Sequence[Entry],
    found: Sequence[str],
    names: Sequence[str] | None,
    open_set: bool,
) -> DetectionDataset:
    """Maps the labels and checks that the images are there; errors as in `read_coco`."""
    known = tuple(dict.fromkeys(found)) if names is None else tuple(names)
    if len(set(known)) < len(known):
        twice = sorted(name for name, count in Counter(known).items() if count > 1)
        raise ValueError(f"names must differ to map labels by name; given more than once: {', '.join(twice[:3])}")
    if found and not open_set and not set(found) & set(known):
        nearest = "; ".join(f"{n!r} is near {get_close_matches(n, known, 1, 0)}" for n in found[:3])
        raise ValueError(
            f"no class of {source} is among the {len(known)} names given ({nearest}). "
            "Give the detector's own class names, or open_set=True if the set is meant to hold only unknown classes"
        )
    require_files([entry.path for entry in entries if not entry.path.is_file()], folder, "image")
    label = {name: k for k, name in enumerate(known)}
    unmapped = Counter(o.name for entry in entries for o in entry.objects if o.name not in label)
    truths = [_truth(entry.objects, label) for entry in entries]
    images = tuple(ImageRecord(e.id, e.path, e.height, e.width, t) for e, t in zip(entries, truths, strict=True))
    dropped = sum(len(e.objects) - len(t) for e, t in zip(entries, truths, strict=True))
    return DetectionDataset(known, images, dict(unmapped), dropped)


def _truth(objects: Sequence[Annotated], label: dict[str, int]) -> GroundTruth:
    boxes = np.array([o.box for o in objects], np.float32).reshape(-1, 4)
    keep: NDArray[np.bool_] = np.logical_and(np.isfinite(boxes).all(1), (boxes[:, 2:] > boxes[:, :2]).all(1))
    kept = [o for o, ok in zip(objects, keep, strict=True) if ok]
    masks = None if any(o.segmentation is None for o in kept) else [o.segmentation for o in kept]
    return GroundTruth(
        boxes[keep],
        np.array([label.get(o.name, -1) for o in kept], np.int64),
        np.array([o.crowd for o in kept], bool),
        masks,
    )


def require_files(missing: Sequence[Path], folder: Path, what: str) -> None:
    """Raises FileNotFoundError naming the first few of `missing`, if any."""
    if missing:
        some = ", ".join(path.name for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(f"{len(missing)} {what} file(s) missing from {folder}: {some}")
