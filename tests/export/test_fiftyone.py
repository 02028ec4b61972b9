from __future__ import annotations

import numpy as np
import pytest
import torch

from reliability_hooks import Instances
from reliability_hooks.export.fiftyone import to_fiftyone

from .conftest import NAMES


def test_fields(instances: Instances) -> None:
    cat, dog = to_fiftyone(instances, NAMES)
    assert cat["label"] == "cat"
    assert cat["bounding_box"] == pytest.approx([6 / 40, 4 / 20, 12 / 40, 6 / 20])
    assert (cat["confidence"], cat["index"], cat["verdict"]) == (0.75, 4, "accept")
    assert (cat["reliability"], dog["reliability"]) == (0.5, None)
    assert cat["image_x"] == 1.0
    assert cat["wide"] == [1, 2]
    assert cat["mask"].shape == (6, 12)
    assert cat["mask"].all()
    assert dog["mask"].shape == (20, 2)
    whole = np.zeros((20, 40), bool)
    whole[4:10, 6:18] = cat["mask"]
    assert np.array_equal(whole, instances.masks_at((20, 40))[0].numpy())
    assert to_fiftyone(instances[:0]) == []
    assert to_fiftyone(instances)[0]["label"] == "1"


def test_what_has_no_place(instances: Instances) -> None:
    with pytest.raises(ValueError, match="image_size"):
        to_fiftyone(instances.replace(image_size=None))
    with pytest.raises(ValueError, match="not finite"):
        to_fiftyone(instances.replace(boxes=instances.boxes * torch.nan))


def test_fiftyone_takes_them(instances: Instances) -> None:
    fo = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    found = fo.Detections(detections=[fo.Detection(**row) for row in to_fiftyone(instances, NAMES)])
    assert [d["reliability"] for d in found.detections] == [0.5, None]
