"""Reading Pascal VOC xml, real and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reliability_hooks.evaluation.voc import read_voc


def write_voc(folder: Path, stem: str, objects: str = "", head: str = "", filename: str = "") -> None:
    (folder / f"{stem}.xml").write_text(
        f"{head}<annotation><filename>{filename or stem + '.jpg'}</filename>"
        f"<size><width>20</width><height>10</height></size>{objects}</annotation>"
    )
    (folder / f"{stem}.jpg").touch()


def voc_object(name: str, *corners: float) -> str:
    tags = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><bndbox>{tags}</bndbox></object>"


def test_voc_small(tmp_path):
    write_voc(
        tmp_path, "one", voc_object("dog", 1, 1, 20, 10) + voc_object("cat", 5, 5, 5, 5) + voc_object("cat", 9, 9, 2, 2)
    )
    write_voc(tmp_path, "two", filename="renamed.png")
    dataset = read_voc(tmp_path, tmp_path)
    assert dataset.names == ("cat", "dog")
    assert dataset.dropped == 1  # the one with its corners exchanged
    one, two = dataset
    np.testing.assert_array_equal(one.truth.boxes, [[0, 0, 20, 10], [4, 4, 5, 5]])
    np.testing.assert_array_equal(one.truth.labels, [1, 0])
    assert (one.id, one.height, one.width, one.truth.masks) == ("one", 10, 20, None)
    assert two.path == tmp_path / "two.jpg"  # by its stem
    assert len(two.truth) == 0
    (tmp_path / "split.txt").write_text("two -1\n\n")
    split = read_voc(tmp_path, tmp_path, split_file=tmp_path / "split.txt")
    assert [image.id for image in split] == ["two"]
    assert split.names == dataset.names  # labels mean the same in every split
    (tmp_path / "split.txt").write_text("three\n")
    with pytest.raises(FileNotFoundError, match=r"annotation file.*three\.xml"):
        read_voc(tmp_path, tmp_path, split_file=tmp_path / "split.txt")
    (tmp_path / "one.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 image file.*one\.jpg"):
        read_voc(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("objects", "head", "message"),
    [
        ("<object><name>x</name></object>", "", "could not convert"),
        ("<object>", "", "mismatched tag"),
        (voc_object("&a;", 1, 1, 2, 2), '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>', "document type"),
        ("", '<!DOCTYPE x SYSTEM "file:///etc/passwd">', "document type"),
    ],
)
def test_broken_voc(tmp_path, objects, head, message):
    write_voc(tmp_path, "one", objects, head)
    with pytest.raises(ValueError, match=rf"one\.xml is no valid.*{message}"):
        read_voc(tmp_path, tmp_path)


def test_voc_without_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.xml"):
        read_voc(tmp_path, tmp_path)


def test_real_raccoons(shared):
    folder = shared / "data/ood/raccoon"
    dataset = read_voc(folder / "annotations", folder / "images")
    assert (dataset.names, len(dataset), dataset.dropped) == (("raccoon",), 200, 0)
    truth = dataset.truth_arrays()
    assert len(truth["gt_boxes"]) == 217
    assert truth["gt_boxes"].min() >= 0
    with pytest.raises(ValueError, match="open_set=True"):
        read_voc(folder / "annotations", folder / "images", names=["person", "cat"])
    unknown = read_voc(folder / "annotations", folder / "images", names=["person", "cat"], open_set=True)
    assert unknown.unmapped == {"raccoon": 217}


def test_real_blood_cells(shared):
    folder = shared / "data/ood/bccd/BCCD"
    parts = [
        read_voc(folder / "Annotations", folder / "JPEGImages", split_file=folder / f"ImageSets/Main/{split}.txt")
        for split in ("train", "val", "test")
    ]
    assert {part.names for part in parts} == {("Platelets", "RBC", "WBC")}
    assert sum(len(part) for part in parts) == 364
    labels = np.concatenate([part.truth_arrays()["gt_labels"] for part in parts])
    np.testing.assert_array_equal(np.bincount(labels), [361, 4155, 372])
