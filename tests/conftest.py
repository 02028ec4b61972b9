"""Fixtures that every room's tests use."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

os.environ.setdefault("YOLO_OFFLINE", "true")
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # one of several side by side, as are the processes that it starts
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = tempfile.TemporaryDirectory(prefix=f"ultralytics_{worker}_")  # else they write to the same file
    os.environ["YOLO_CONFIG_DIR"] = settings.name
    torch.set_num_threads(1)
else:
    torch.set_num_threads(2)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and weights."""
    if not (SHARED / "README.md").is_file():
        pytest.skip(f"real data not here: {SHARED}")
    return SHARED
