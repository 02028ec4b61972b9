"""Reading Pascal VOC xml, with labels mapped by name onto the detector's classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from .datasets import Annotated, DetectionDataset, Entry, assemble, require_files

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


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
        names: as in `datasets.read_coco`; None: the names found, sorted.
        split_file: text file with the stem of one xml at the start of each line; only these are kept, in this order.
        open_set: as in `datasets.read_coco`.

    Raises:
        ValueError: an xml is broken, declares a document type or lacks a part; `names` as in `datasets.read_coco`.
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
        require_files([source / f"{stem}.xml" for stem in stems if stem not in entries], source, "annotation")
    return assemble(source, folder, [entries[stem] for stem in stems], found, names, open_set)


class _PlainXml(ElementTree.TreeBuilder):
    """Refuses document types, and with them the entities that can blow up or reach outside the file."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("document type declarations are not accepted")


def _read_xml(path: Path, folder: Path, by_stem: dict[str, Path]) -> Entry:
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_PlainXml()))
        objects = []
        for node in root.iterfind("object"):
            corners = [float(node.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
            name = node.findtext("name", "").strip()
            objects.append(Annotated(name, (corners[0] - 1, corners[1] - 1, corners[2], corners[3])))
        height, width = (int(root.findtext(f"size/{key}", "0")) or None for key in ("height", "width"))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is no valid Pascal VOC annotation: {error}") from error
    image = folder / (root.findtext("filename", "").strip() or path.stem)
    return Entry(path.stem, image if image.is_file() else by_stem.get(path.stem, image), height, width, objects)
