"""Reading ground truth: COCO json and Pascal VOC xml, with labels mapped by name onto the detector's classes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotated objects of one image.

    Attributes:
        boxes: (G, 4) float32 xyxy, absolute pixels.
        labels: (G,) int64, index into the data set's `names`; -1 for a class that `names` lacks.
        crowd: (G,) bool, regions that hold many objects (COCO `iscrowd`).
        masks: G COCO segmentations (polygons or run lengths), see `decode_masks`; None where an object has none.
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
    """

    names: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    unmapped: dict[str, int] = field(default_factory=dict)
    dropped: int = 0

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
        objects: dict[Any, list[_Object]] = {image["id"]: [] for image in content["images"]}
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            box, crowd = (x, y, x + w, y + h), bool(a.get("iscrowd", 0))
            objects[a["image_id"]].append(
                _Object(category[a["category_id"]], box, crowd, a.get("segmentation") or None)
            )
        entries = [
            _Entry(i["id"], folder / i["file_name"], i.get("height"), i.get("width"), objects[i["id"]])
            for i in content["images"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: an image, category or annotation is incomplete or refers to an id that is not there ({error!r})"
        ) from error
    return _assemble(source, folder, entries, list(category.values()), names, open_set)


def read_voc(
    dir_of_xml: str | Path,
    images_dir: str | Path,
    names: Sequence[str] | None = None,
    split_file: str | Path | None = None,
    open_set: bool = False,
) -> DetectionDataset:
    """Reads a folder of Pascal VOC xml files, one for each image; an image's id is the stem of its xml.

    VOC corners are 1-based pixel indices, both ends inside the box; they become [xmin - 1, ymin - 1, xmax, ymax], so
    that xmin = xmax is a box one pixel wide. The image is the file called `<filename>` or, where there is none, the one
    with the stem of the xml. Objects marked difficult are kept as ordinary ones; VOC has no crowds.

    Args:
        dir_of_xml: the annotations; all files are read for the class names, even with a split.
        images_dir: folder of the images.
        names: as in `read_coco`; None: the names found, sorted.
        split_file: text file with the stem of one xml at the start of each line; only these are kept, in this order.
        open_set: as in `read_coco`.

    Raises:
        ValueError: an xml is broken, declares a document type or lacks a part; `names` as in `read_coco`.
        FileNotFoundError: there is no xml, or one of the split or an image is missing.
    """
    source, folder = Path(dir_of_xml), Path(images_dir)
    files = {path.stem: path for path in sorted(source.glob("*.xml"))}
    if not files:
        raise FileNotFoundError(f"no .xml file in {source}")
    by_stem = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _IMAGE_SUFFIXES}
    entries = {stem: _read_xml(path, folder, by_stem) for stem, path in files.items()}
    found = sorted({o.name for entry in entries.values() for o in entry.objects})
    stems = list(entries)
    if split_file is not None:
        stems = [line.split()[0] for line in Path(split_file).read_text(encoding="utf-8").splitlines() if line.strip()]
        _require_files([source / f"{stem}.xml" for stem in stems if stem not in entries], source, "annotation")
    return _assemble(source, folder, [entries[stem] for stem in stems], found, names, open_set)


def decode_masks(truth: GroundTruth, height: int, width: int) -> NDArray[np.bool_]:
    """Decodes the segmentations of an image.

    Returns:
        (G, height, width) bool.

    Raises:
        ValueError: the ground truth has no masks.
    """
    from pycocotools import mask as coco_mask

    if truth.masks is None:
        raise ValueError("this ground truth has boxes only: not every object has a segmentation")
    out = np.zeros((len(truth), height, width), bool)
    for k, segmentation in enumerate(truth.masks):
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, height, width)
        out[k] = coco_mask.decode(segmentation)
    return out


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]
    crowd: bool = False
    segmentation: Any = None


@dataclass(frozen=True)
class _Entry:
    id: int | str
    path: Path
    height: int | None
    width: int | None
    objects: list[_Object]


class _PlainXml(ElementTree.TreeBuilder):
    """Refuses document types, and with them the entities that can blow up or reach outside the file."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("document type declarations are not accepted")


def _read_xml(path: Path, folder: Path, by_stem: dict[str, Path]) -> _Entry:
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_PlainXml()))
        objects = []
        for node in root.iterfind("object"):
            corners = [float(node.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
            name = node.findtext("name", "").strip()
            objects.append(_Object(name, (corners[0] - 1, corners[1] - 1, corners[2], corners[3])))
        height, width = (int(root.findtext(f"size/{key}", "0")) or None for key in ("height", "width"))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is no valid Pascal VOC annotation: {error}") from error
    image = folder / (root.findtext("filename", "").strip() or path.stem)
    return _Entry(path.stem, image if image.is_file() else by_stem.get(path.stem, image), height, width, objects)


def _assemble(
    source: Path,
    folder: Path,
    entries: Sequence[_Entry],
    found: Sequence[str],
    names: Sequence[str] | None,
    open_set: bool,
) -> DetectionDataset:
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
    _require_files([entry.path for entry in entries if not entry.path.is_file()], folder, "image")
    label = {name: k for k, name in enumerate(known)}
    unmapped = Counter(o.name for entry in entries for o in entry.objects if o.name not in label)
    truths = [_truth(entry.objects, label) for entry in entries]
    images = tuple(ImageRecord(e.id, e.path, e.height, e.width, t) for e, t in zip(entries, truths, strict=True))
    dropped = sum(len(e.objects) - len(t) for e, t in zip(entries, truths, strict=True))
    return DetectionDataset(known, images, dict(unmapped), dropped)


def _truth(objects: Sequence[_Object], label: dict[str, int]) -> GroundTruth:
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


def _require_files(missing: Sequence[Path], folder: Path, what: str) -> None:
    if missing:
        some = ", ".join(path.name for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(f"{len(missing)} {what} file(s) missing from {folder}: {some}")
