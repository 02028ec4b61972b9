"""Reading COCO json, real and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reliability_hooks.evaluation.datasets import GroundTruth, read_coco
from reliability_hooks.evaluation.masks import decode_masks
from reliability_hooks.evaluation.matching import match

SQUARE = [[1.0, 1, 5, 1, 5, 5, 1, 5]]


def write_coco(folder: Path, **change: Any) -> Path:
    content: dict[str, Any] = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 10, "width": 20},
            {"id": 2, "file_name": "b.jpg", "height": 10, "width": 20},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4], "segmentation": SQUARE, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 0, 4], "segmentation": SQUARE, "iscrowd": 0},
            {
                "id": 3,
                "image_id": 1,
                "category_id": 3,
                "bbox": [0, 0, 2.5, 10],
                "segmentation": {"size": [10, 20], "counts": [0, 20, 180]},
                "iscrowd": 1,
            },
        ],
    }
    for name in ("a.jpg", "b.jpg"):
        (folder / name).touch()
    path = folder / "coco.json"
    path.write_text(json.dumps(content | change))
    return path


def test_coco_small(tmp_path):
    dataset = read_coco(write_coco(tmp_path), tmp_path)
    assert dataset.names == ("cat", "dog")  # by id
    assert dataset.dropped == 1
    assert dataset.unmapped == {}
    first, second = dataset
    assert (first.id, first.height, first.width, first.path) == (1, 10, 20, tmp_path / "a.jpg")
    np.testing.assert_array_equal(first.truth.boxes, [[1, 1, 5, 5], [0, 0, 2.5, 10]])
    np.testing.assert_array_equal(first.truth.labels, [1, 0])
    np.testing.assert_array_equal(first.truth.crowd, [False, True])
    masks = decode_masks(first.truth, 10, 20)
    assert masks.shape == (2, 10, 20)
    assert masks[0, 1:5, 1:5].all()
    assert masks[1, :, :2].all()
    assert masks.sum() == 16 + 20
    assert len(second.truth) == 0
    assert second.truth.boxes.shape == (0, 4)
    assert decode_masks(second.truth, 10, 20).shape == (0, 10, 20)


def test_labels_are_mapped_by_name(tmp_path):
    dataset = read_coco(write_coco(tmp_path), tmp_path, names=["bird", "dog"])
    np.testing.assert_array_equal(dataset.images[0].truth.labels, [1, -1])
    assert dataset.unmapped == {"cat": 2}
    truth = dataset.truth_arrays()
    found = match(truth["gt_boxes"], np.ones(2), truth["gt_labels"], truth["gt_image_ids"], **truth)
    np.testing.assert_array_equal(found.tp, [True, False])
    with pytest.raises(ValueError, match=r"no class of .* is among the 2 names .*'cat' is near \['bat'\].*open_set"):
        read_coco(write_coco(tmp_path), tmp_path, names=["bat", "plane"])
    assert read_coco(write_coco(tmp_path), tmp_path, ["bat"], open_set=True).unmapped == {"dog": 1, "cat": 2}
    with pytest.raises(ValueError, match="more than once: dog"):
        read_coco(write_coco(tmp_path), tmp_path, names=["dog", "dog"])


def test_boxes_without_masks(tmp_path):
    plain = {"id": 1, "image_id": 2, "category_id": 7, "bbox": [1, 1, 4, 4]}
    truth = read_coco(write_coco(tmp_path, annotations=[plain]), tmp_path).images[1].truth
    assert truth.masks is None
    with pytest.raises(ValueError, match="boxes only"):
        decode_masks(truth, 10, 20)


def test_missing_images_are_named(tmp_path):
    path = write_coco(tmp_path, images=[{"id": k, "file_name": f"gone{k}.jpg"} for k in range(5)])
    with pytest.raises(FileNotFoundError, match=rf"5 image file.* {tmp_path}: gone0.jpg, gone1.jpg, gone2.jpg, \.\.\."):
        read_coco(path, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "needs the lists"),
        ({"annotations": [{"image_id": 9, "category_id": 7, "bbox": [0, 0, 1, 1]}]}, r"KeyError\(9\)"),
        ({"annotations": [{"image_id": 1, "category_id": 8, "bbox": [0, 0, 1, 1]}]}, r"KeyError\(8\)"),
        ({"annotations": [{"image_id": 1, "category_id": 7}]}, "bbox"),
        ({"annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2]}]}, "incomplete"),
        ({"images": [{"id": 1}]}, "file_name"),
    ],
)
def test_broken_coco(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_coco(write_coco(tmp_path, **change), tmp_path)


def test_invalid_json(tmp_path):
    (tmp_path / "bad.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"bad\.json is not valid JSON"):
        read_coco(tmp_path / "bad.json", tmp_path)


def test_real_coco(shared):
    from pycocotools.coco import COCO

    path = shared / "data/coco/instances_val2017.json"
    dataset = read_coco(path, shared / "data/coco/val2017")
    oracle = COCO(path)
    assert (len(dataset), len(dataset.names)) == (108, 80)
    assert sum(len(image.truth) for image in dataset) == 877 - dataset.dropped
    for image in dataset.subset(range(0, 108, 9)):
        annotations = oracle.imgToAnns[image.id]
        xywh = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        np.testing.assert_allclose(image.truth.boxes, np.c_[xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], rtol=1e-6)
        assert [dataset.names[k] for k in image.truth.labels] == [
            oracle.cats[a["category_id"]]["name"] for a in annotations
        ]
        assert image.height is not None
        assert image.width is not None
        masks = decode_masks(image.truth, image.height, image.width)
        for mask, annotation in zip(masks, annotations, strict=True):
            np.testing.assert_array_equal(mask, oracle.annToMask(annotation).astype(bool))


def test_split_is_a_partition(tmp_path):
    images = [{"id": k, "file_name": "a.jpg"} for k in range(11)]
    dataset = read_coco(write_coco(tmp_path, images=images, annotations=[]), tmp_path)
    a, b = dataset.split(0.6, seed=1)
    ids = [[image.id for image in part] for part in (a, b)]
    assert (len(a), len(b)) == (7, 4)
    assert sorted(ids[0] + ids[1]) == list(range(11))
    assert ids[0] == sorted(ids[0])
    assert ids[0] == [image.id for image in dataset.split(0.6, seed=1)[0]]
    assert ids[0] != [image.id for image in dataset.split(0.6, seed=2)[0]]
    assert [len(part) for part in dataset.split(0.0)] == [0, 11]
    assert dataset.subset([]).truth_arrays()["gt_boxes"].shape == (0, 4)
    with pytest.raises(ValueError, match="fraction"):
        dataset.split(60)


def test_ground_truth_has_a_length():
    assert len(GroundTruth(np.zeros((3, 4), np.float32), np.zeros(3, np.int64), np.zeros(3, bool))) == 3
