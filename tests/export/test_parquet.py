from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from reliability_hooks import Instances
from reliability_hooks.export.coco import to_coco
from reliability_hooks.export.parquet import write_parquet

from .conftest import NAMES

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


def test_a_column_for_each_signal(instances: Instances, tmp_path: Path) -> None:
    rows = to_coco(instances, 139, NAMES, {"cat": 17, "dog": 18}, [["dark (-.2)"], []])
    write_parquet(tmp_path / "new" / "p.parquet", [{**row, "file_name": "a.jpg"} for row in rows])
    table = parquet.read_table(tmp_path / "new" / "p.parquet")
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["p.parquet"]
    found = table.to_pydict()
    assert found["image_id"] == [139, 139]
    assert found["category_id"] == [17, 18]
    assert found["bbox"] == [row["bbox"] for row in rows]
    assert found["reliability"] == [0.5, None]
    assert found["reliability_low"] == [0.25, None]
    assert found["reliability_high"] == [0.75, None]
    assert found["verdict"] == ["accept", "unknown"]
    assert found["reasons"] == [["dark (-.2)"], []]
    assert found["image/x"] == [1.0, math.inf]
    assert found["wide"] == [[1, 2], [3, 4]]
    assert found["file_name"] == ["a.jpg", "a.jpg"]
    assert found["segmentation"][0]["counts"] == rows[0]["segmentation"]["counts"]
    assert {"columns", "reliability_interval"}.isdisjoint(found)


def test_empty_tables_and_images_without_a_number(instances: Instances, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_parquet(path, [])
    empty = parquet.read_table(path)
    assert empty.num_rows == 0
    write_parquet(path, [*to_coco(instances, 139, NAMES), *to_coco(instances, "photo", NAMES)])
    table = parquet.read_table(path)
    assert table["image_id"].to_pylist() == ["139", "139", "photo", "photo"]
    assert set(empty.column_names) <= set(table.column_names)
    unknown = instances[1:].replace(columns={"x": instances.column("reliability")[1:]})
    write_parquet(path, to_coco(unknown, 1, NAMES))
    assert str(parquet.read_schema(path).field("x").type) == "double"  # nothing but nulls in it


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"reliability_hooks\[parquet\]"):
        write_parquet(tmp_path / "p.parquet", [])
