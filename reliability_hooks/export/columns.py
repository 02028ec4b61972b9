"""Columns as tables have them: one NumPy array of N values for each name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..instances import Instances

VERDICTS = {-1: "reject", 0: "unknown", 1: "accept"}
"""The words for the column `verdict`."""


def flat_columns(instances: Instances) -> dict[str, NDArray[Any]]:
    """Every column, those of judgement first.

    `reliability_interval` becomes `reliability_low` and `reliability_high`, `verdict` its word; a column of another
    shape (N, k) stays one.
    """
    given = {name: values.detach().cpu().numpy() for name, values in instances.columns.items()}
    first = [name for name in ("reliability", "reliability_interval", "verdict", "expected_iou") if name in given]
    out: dict[str, NDArray[Any]] = {}
    for name in [*first, *(name for name in given if name not in first)]:
        if name == "reliability_interval":
            out["reliability_low"], out["reliability_high"] = given[name].T
        elif name == "verdict":
            out[name] = np.array(list(VERDICTS.values()))[given[name] - min(VERDICTS)]
        else:
            out[name] = given[name]
    return out
