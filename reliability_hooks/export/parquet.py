"""COCO results as a Parquet table: one row for each detection, one column for each signal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .coco import Rows
from .optional import require


def write_parquet(path: str | Path, rows: Rows) -> None:
    """Write all of it or nothing. NaN becomes null.

    The keys of `coco.to_coco` are columns; `reliability_interval` becomes `reliability_low` and `reliability_high`, and
    every signal has a column of its own. A table without rows has the columns that every table has.

    Args:
        path: Of the file.
        rows: What `coco.to_coco` gives, of all images; further keys with words in them may be added.

    Raises:
        ImportError: pyarrow is not installed.
    """
    pa, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys([*_types(pa), *(name for row in flat for name in row)]))
    columns = {name: [row.get(name) for row in flat] for name in names}
    ids = columns["image_id"]
    if any(not isinstance(i, int) for i in ids):  # a column has one type
        columns["image_id"] = [str(i) for i in ids]
    table = pa.table({name: _column(pa, name, values) for name, values in columns.items()})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    parquet.write_table(table, draft)
    os.replace(draft, path)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row.get("reliability_interval", (None, None))
    out = {**row, "reliability_low": low, "reliability_high": high, **row.get("columns", {})}
    return {name: value for name, value in out.items() if name not in ("columns", "reliability_interval")}


def _types(pa: Any) -> dict[str, Any]:
    """What every table has; None for a type that the values tell."""
    return {
        "image_id": None, "category_id": pa.int64(), "category_name": pa.string(), "bbox": pa.list_(pa.float64(), 4),
        "score": pa.float64(), "reliability": pa.float64(), "reliability_low": pa.float64(),
        "reliability_high": pa.float64(), "expected_iou": pa.float64(), "verdict": pa.string(),
        "reasons": pa.list_(pa.string()),
    }  # fmt: skip


def _column(pa: Any, name: str, values: list[Any]) -> Any:
    kind = _types(pa).get(name)
    if kind is None and all(value is None or isinstance(value, float) for value in values) and name != "image_id":
        kind = pa.float64()  # nothing but nulls would have no type
    return pa.array(values, type=kind, from_pandas=True)
