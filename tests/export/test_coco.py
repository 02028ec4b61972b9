from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from reliability_hooks import Instances
from reliability_hooks.export.coco import read_ids, to_coco, write_json


@pytest.fixture
def instances() -> Instances:
    masks = torch.zeros(2, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, :, :1] = True
    return Instances(
        boxes=torch.tensor([[3.0, 2.0, 9.0, 5.0], [0.0, 0.0, 1.0, 10.0]]),
        scores=torch.tensor([0.75, 0.25]),
        labels=torch.tensor([1, 7]),
        masks=masks,
        track_ids=torch.tensor([4, 5]),
        image_size=(10, 20),
        columns={
            "reliability": torch.tensor([0.5, torch.nan]),
            "verdict": torch.tensor([1, 0]),
            "image/x": torch.tensor([1.0, torch.inf]),
        },
    )


def test_rows(instances: Instances) -> None:
    rows = to_coco(instances, 139, {1: "cat", 7: "dog"}, {"cat": 17, "dog": 18}, [["dark (-.2)"], []])
    assert [r["bbox"] for r in rows] == [[3, 2, 6, 3], [0, 0, 1, 10]]
    assert [r["score"] for r in rows] == [0.75, 0.25]
    assert [r["category_id"] for r in rows] == [17, 18]
    assert [r["verdict"] for r in rows] == ["accept", "unknown"]
    assert [r["track_id"] for r in rows] == [4, 5]
    assert rows[0]["reasons"] == ["dark (-.2)"]
    decoded = np.stack([coco_mask.decode(r["segmentation"]) for r in rows]).astype(bool)
    assert np.array_equal(decoded, instances.masks.numpy())
    assert to_coco(instances[:0], 1, {}) == []


def test_masks_come_at_the_size_of_the_image(instances: Instances) -> None:
    rows = to_coco(instances.replace(image_size=(20, 40)), 1, {})
    assert coco_mask.decode(rows[0]["segmentation"]).shape == (20, 40)
    assert coco_mask.area(rows[0]["segmentation"]) == 4 * 18


def test_extra_keys_survive_loadres(instances: Instances, tmp_path: Path) -> None:
    annotations = tmp_path / "gt.json"
    annotations.write_text(json.dumps({
        "info": {}, "images": [{"id": 139, "file_name": "a/b.jpg", "height": 10, "width": 20}], "annotations": [],
        "categories": [{"id": 17, "name": "cat"}],
    }))
    write_json(tmp_path / "p.json", to_coco(instances, 139, {1: "cat", 7: "dog"}))
    results = COCO(str(annotations)).loadRes(str(tmp_path / "p.json"))
    assert results.anns[1]["reliability"] == 0.5
    assert results.anns[2]["reliability"] is None  # NaN
    assert results.anns[2]["columns"]["image/x"] is None  # infinity
    assert read_ids(annotations) == ({"b.jpg": 139}, {"cat": 17})
    with pytest.raises(ValueError, match="no COCO json"):
        read_ids(tmp_path / "p.json")


def test_nothing_is_half_written(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [1]
