"""Fixtures that every room's tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("YOLO_OFFLINE", "true")
torch.set_num_threads(2)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and weights."""
    if not (SHARED / "README.md").is_file():
        pytest.skip(f"real data not here: {SHARED}")
    return SHARED
