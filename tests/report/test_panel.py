"""Panels are written for every kind of instance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reliability_hooks.report.panel import Signed, _window, draw_panel


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


def test_signed_maps_are_blue_where_they_raise_orange_where_they_lower_and_pale_where_unsure(tmp_path: Path) -> None:
    image = np.full((80, 120, 3), 128, np.uint8)
    sure = np.ones((4, 4), bool)

    def drawn(value: float, sure: np.ndarray) -> np.ndarray:
        map_ = Signed(np.full((4, 4), value), sure, [30, 20, 60, 40])
        draw_panel(tmp_path / "s.png", image, [30, 20, 60, 40], None, {}, "t\nwords", signed={"doubt": map_})
        pixels = np.asarray(Image.open(tmp_path / "s.png").convert("RGB")).astype(int)
        return pixels[:-80, pixels.shape[1] // 2 :]  # the second picture, without the scale below

    def tinted(pixels: np.ndarray, one: int, other: int) -> int:
        return int((pixels[..., one] - pixels[..., other] > 40).sum())

    raised, lowered, unsure = drawn(0.2, sure), drawn(-0.2, sure), drawn(0.2, ~sure)
    assert tinted(raised, 2, 0) > 2 * tinted(unsure, 2, 0)
    assert tinted(lowered, 0, 2) > 1000 > tinted(raised, 0, 2)
    drawn(0.0, sure)  # a map of nothing has a scale too


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (110, 70, 120, 80), (0, 0, 120, 80), (50, 30, 51, 31)])
def test_the_window_holds_the_box(box: tuple[int, ...]) -> None:
    x1, y1, x2, y2 = _window(box, 120, 80)
    assert x1 <= box[0]
    assert y1 <= box[1]
    assert x2 >= box[2]
    assert y2 >= box[3]
    assert x2 - x1 == pytest.approx(y2 - y1)
