from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reliability_hooks import Instances
from reliability_hooks.export.supervision import to_supervision
from reliability_hooks.hosts.supervision_rows import to_instances

from .conftest import NAMES

sv = pytest.importorskip("supervision", reason="supervision is not installed")


def test_there_and_back(instances: Instances) -> None:
    found = to_supervision(instances, NAMES)
    assert found.data["class_name"].tolist() == ["cat", "dog"]
    assert list(found.data)[:5] == ["reliability", "reliability_low", "reliability_high", "verdict", "expected_iou"]
    assert found.data["verdict"].tolist() == ["accept", "unknown"]
    assert found.data["wide"].shape == (2, 2)
    assert found[found.data["reliability"] > 0.4].class_id.tolist() == [1]
    back = to_instances(found, np.zeros((20, 40, 3), np.uint8))
    assert torch.equal(back.boxes, instances.boxes)
    assert torch.equal(back.scores, instances.scores)
    assert torch.equal(back.labels, instances.labels)
    assert back.track_ids is not None
    assert back.track_ids.tolist() == [4, 5]
    assert back.masks is not None
    assert torch.equal(back.masks, instances.masks_at((20, 40)))


def test_its_sinks_write_the_columns(instances: Instances, tmp_path: Path) -> None:
    table, lines = sv.CSVSink(str(tmp_path / "a.csv")), sv.JSONSink(str(tmp_path / "a.json"))
    with table, lines:
        for part in (instances[:0], instances):
            table.append(to_supervision(part, NAMES))
            lines.append(to_supervision(part, NAMES))
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [float(r["reliability_low"]) for r in rows] == pytest.approx([0.25, np.nan], nan_ok=True)
    assert [r["verdict"] for r in rows] == ["accept", "unknown"]
    assert json.loads(rows[1]["wide"]) == [3, 4]
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [r["reliability"] for r in rows] == pytest.approx([0.5, np.nan], nan_ok=True)
    assert [r["class_name"] for r in rows] == ["cat", "dog"]


def test_empty_and_not_finite(instances: Instances) -> None:
    assert len(to_supervision(instances[:0])) == 0
    assert len(to_supervision(Instances.empty())) == 0
    with pytest.raises(ValueError, match="finite"):
        to_supervision(instances.replace(boxes=instances.boxes * torch.nan))


def test_without_the_package(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"reliability_hooks\[supervision\]"):
        to_supervision(instances)
