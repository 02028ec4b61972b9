from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reliability_hooks.report.weak_spots import Tile, _window, draw_sheet


def tile() -> Tile:
    rng = np.random.default_rng(0)
    mask = np.zeros((80, 120), bool)
    mask[30:50, 40:70] = True
    return Tile(rng.integers(0, 255, (80, 120, 3)).astype(np.uint8), [40, 30, 70, 50], "a $cat$ 0.9", mask,
                [42, 28, 75, 52], mask, rng.random((12, 12)).astype(np.float16), (10, 10, 100, 70), (70, 30, 90, 50))


def test_sheets_of_any_number_and_of_little(tmp_path: Path) -> None:
    full, size = tile(), []
    bare = Tile(full.image, full.box, "bare")
    for k, tiles in enumerate([[full] * 5, [full], [bare, replace(full, heat=full.heat * np.nan)]]):
        draw_sheet(tmp_path / f"{k}.png", "1. shortcut: $cat$ " * 4, tiles, "note " * 30)
        picture = Image.open(tmp_path / f"{k}.png")
        assert np.asarray(picture.convert("RGB")).std() > 10
        size.append(picture.size)
    assert size[0][1] > 1.5 * size[1][1]
    with pytest.raises(ValueError, match="one example"):
        draw_sheet(tmp_path / "none.png", "none", [])


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (110, 70, 120, 80), (0, 0, 120, 80), (50, 30, 51, 31)])
@pytest.mark.parametrize("truth", [None, (0, 0, 60, 40)])
def test_the_window_holds_detection_and_object(
    box: tuple[float, ...], truth: tuple[float, ...] | None
) -> None:
    x1, y1, x2, y2 = _window(replace(tile(), box=box, truth_box=truth), 120, 80)
    for a, b, c, d in [box, *([truth] if truth else [])]:
        assert x1 <= a
        assert y1 <= b
        assert x2 >= c
        assert y2 >= d
