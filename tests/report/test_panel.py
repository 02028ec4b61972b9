"""Panels are written for every kind of instance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reliability_hooks.report.panel import _window, draw_panel


def test_maps_and_shares_make_the_picture_wider(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3)).astype(np.uint8)
    mask = np.zeros((80, 120), bool)
    mask[20:40, 30:60] = True
    heat = np.random.default_rng(1).random((40, 60))
    heat[0] = np.nan
    draw_panel(tmp_path / "a.png", image, [30, 20, 60, 40], mask, {"class": heat}, "a $dog$ <b>", [("dark", -0.2)])
    draw_panel(tmp_path / "b.png", image, [30, 20, 60, 40], None, {}, "bare")
    wide, bare = (Image.open(tmp_path / f"{name}.png") for name in "ab")
    assert wide.width > 2 * bare.width
    assert np.asarray(wide.convert("RGB")).std() > 10


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (110, 70, 120, 80), (0, 0, 120, 80), (50, 30, 51, 31)])
def test_the_window_holds_the_box(box: tuple[int, ...]) -> None:
    x1, y1, x2, y2 = _window(box, 120, 80)
    assert x1 <= box[0]
    assert y1 <= box[1]
    assert x2 >= box[2]
    assert y2 >= box[3]
    assert x2 - x1 == pytest.approx(y2 - y1)
