"""A sheet of examples for each weak spot: what the detector saw there, looked at, and should have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from .plots import BLUE, GREEN, SMALL, VERMILION

ACROSS = 4
CONTEXT = 3.0
"""Sides of what is shown, in the longer side of the box: the frame in which saliency is kept."""


@dataclass(frozen=True, eq=False)
class Tile:
    """One example.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        box: xyxy of the detection, in its pixels.
        caption: A line above.
        mask: (H, W) bool of the detection, or None.
        truth_box: xyxy of the object that it is about, or None.
        truth_mask: (H, W) bool of that, or None.
        heat: (c, c) in [0, 1] over `window`, or None.
        window: xyxy pixels that `heat` covers.
        region: xyxy pixels of the place in question, or None.
    """

    image: np.ndarray
    box: Sequence[float]
    caption: str
    mask: np.ndarray | None = None
    truth_box: Sequence[float] | None = None
    truth_mask: np.ndarray | None = None
    heat: np.ndarray | None = None
    window: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    region: Sequence[float] | None = None


def draw_sheet(path: str | Path, title: str, tiles: Sequence[Tile], note: str = "") -> None:
    """Write one PNG of up to as many tiles as there are.

    Args:
        path: Of the file.
        title: The spot and its figures.
        tiles: At least one.
        note: A second line, smaller.

    Raises:
        ValueError: There are no tiles.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not tiles:
        raise ValueError("a sheet needs at least one example")
    across = ACROSS if len(tiles) > ACROSS else max(2, len(tiles))
    rows = -(-len(tiles) // across)
    figure = Figure(figsize=(2.7 * across, 2.95 * rows + 1.3), layout="constrained", dpi=110)
    width = 26 * across
    figure.suptitle(_plain(fill(title, width)), fontsize=SMALL + 4, x=0.01, ha="left")
    for ax, tile in zip(figure.subplots(rows, across, squeeze=False).flat, [*tiles, *[None] * across], strict=False):
        ax.set_axis_off()
        if tile is not None:
            _tile(ax, tile)
    keys = [Line2D([], [], color=BLUE, label="detection")]
    if any(t.mask is not None for t in tiles):
        keys.append(Line2D([], [], color="white", label="its mask", linewidth=2))
    if any(t.truth_box is not None for t in tiles):
        keys.append(Line2D([], [], color=GREEN, linestyle="--", label="annotated object"))
    if any(t.region is not None for t in tiles):
        keys.append(Line2D([], [], color=VERMILION, linewidth=2, label="place in question"))
    figure.legend(handles=keys, loc="outside lower left", ncols=len(keys), fontsize=SMALL, frameon=True,
                  facecolor="0.75", title=_plain(fill(note, width + 30)) or None, title_fontsize=SMALL,
                  alignment="left")  # fmt: skip
    figure.savefig(path)


def _tile(ax: Any, tile: Tile) -> None:
    height, width = tile.image.shape[:2]
    ax.imshow(tile.image, extent=(0, width, height, 0))
    if tile.heat is not None:
        x1, y1, x2, y2 = tile.window
        heat = np.nan_to_num(tile.heat.astype(np.float32))
        ax.imshow(heat, extent=(x1, x2, y2, y1), cmap="inferno", vmin=0, vmax=1, alpha=0.85 * heat.clip(0, 1),
                  interpolation="bilinear")  # fmt: skip
    for mask, colour, dashes in ((tile.truth_mask, GREEN, "--"), (tile.mask, "white", "-")):
        if mask is not None and mask.any():
            ax.contour(mask, levels=[0.5], colors=colour, linestyles=dashes, linewidths=1.2,
                       extent=(0, width, 0, height))  # fmt: skip
    _rectangle(ax, tile.box, BLUE, 1.2, "-")
    if tile.truth_box is not None and tile.truth_mask is None:
        _rectangle(ax, tile.truth_box, GREEN, 1.2, "--")
    if tile.region is not None:
        _rectangle(ax, tile.region, VERMILION, 2.0, "-")
    x1, y1, x2, y2 = _window(tile, width, height)
    ax.set(xlim=(x1, x2), ylim=(y2, y1))
    ax.set_title(_plain(fill(tile.caption, 34)), fontsize=SMALL)


def _rectangle(ax: Any, box: Sequence[float], colour: str, width: float, dashes: str) -> None:
    x1, y1, x2, y2 = box
    ax.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, linewidth=width, linestyle=dashes, clip_on=True)


def _window(tile: Tile, width: int, height: int) -> tuple[float, float, float, float]:
    """A square that holds detection and object with some context, moved into the picture where it fits."""
    x1, y1, x2, y2 = tile.box
    half = max(x2 - x1, y2 - y1, 16.0) * CONTEXT / 2
    if tile.truth_box is not None:
        a, b, c, d = tile.truth_box
        half = max(half, (x1 + x2) / 2 - a, c - (x1 + x2) / 2, (y1 + y2) / 2 - b, d - (y1 + y2) / 2)
    side = min(2 * half, max(width, height))
    corners = []
    for middle, length in (((x1 + x2) / 2, width), ((y1 + y2) / 2, height)):
        start = min(max(middle - side / 2, 0), max(length - side, 0)) if side <= length else (length - side) / 2
        corners.append((start, start + side))
    return corners[0][0], corners[1][0], corners[0][1], corners[1][1]


def _plain(text: str) -> str:
    """Without the dollar signs that matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
