"""A picture for each explained instance: the object, a map for each target, and what its reliability is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from .plots import BLUE, GREY, SMALL, VERMILION

CONTEXT = 2.0
"""Side of what is shown, in boxes."""
BARS = 7
LETTERS = 13
"""Of the title in an inch."""
FAINTEST = 0.01
"""Change of the reliability that a signed map shows in full colour at least."""


@dataclass(frozen=True, eq=False)
class Signed:
    """A signed map on a part of the image.

    Attributes:
        values: (h, w), what a place does to the reliability.
        sure: (h, w) bool, whether that is established; the rest is drawn faintly.
        window: xyxy in pixels of the image.
    """

    values: np.ndarray
    sure: np.ndarray
    window: Sequence[float]


def draw_panel(
    path: str | Path,
    image: np.ndarray,
    box: Sequence[float],
    mask: np.ndarray | None,
    maps: Mapping[str, np.ndarray],
    title: str,
    shares: Sequence[tuple[str, float]] = (),
    signed: Mapping[str, Signed] | None = None,
) -> None:
    """Write one PNG.

    Args:
        path: Of the file.
        image: (H, W, 3) uint8 RGB.
        box: xyxy in its pixels.
        mask: (H, W) bool, or None.
        maps: Target -> (h, w) in [0, 1] over the whole image, at any resolution.
        title: A line above, or several.
        shares: Words and what they add to the reliability, the greatest first.
        signed: Heading -> a map of what places do to the reliability: blue raises it, orange lowers it.
    """
    from matplotlib.figure import Figure

    signed = signed or {}
    count = 1 + len(maps) + len(signed)
    width = 2.6 * count + (3.8 if shares else 0)
    title = "\n".join(fill(line, int(width * LETTERS)) for line in title.split("\n"))
    height = 3.0 + 0.16 * title.count("\n") + (0.4 if signed else 0)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = figure.subplots(1, count + bool(shares), squeeze=False, width_ratios=[1] * count + [1.6] * bool(shares))[0]
    figure.suptitle(_plain(title), fontsize=SMALL + 2, x=0.01, ha="left")
    x1, y1, x2, y2 = _window(box, image.shape[1], image.shape[0])
    for ax, name in zip(axes, ["object", *maps, *signed], strict=False):
        ax.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
        if name in signed:
            _signed(figure, ax, signed[name])
        elif name != "object":
            values = np.nan_to_num(maps[name])
            ax.imshow(values, extent=(0, image.shape[1], image.shape[0], 0), cmap="inferno", vmin=0, vmax=1,
                      alpha=0.15 + 0.7 * np.clip(values, 0, 1), interpolation="bilinear")  # fmt: skip
        if mask is not None and mask.any():
            ax.contour(mask, levels=[0.5], colors="white", linewidths=1, extent=(0, image.shape[1], 0, image.shape[0]))
        ax.plot([box[0], box[2], box[2], box[0], box[0]], [box[1], box[1], box[3], box[3], box[1]], color=BLUE, lw=1)
        ax.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
        ax.set_title(_plain(name), fontsize=SMALL)
    if shares:
        _bars(axes[-1], shares[:BARS])
    figure.savefig(path)


def _signed(figure: Any, ax: Any, map_: Signed) -> None:
    """Over a paled picture, on a scale of its own that is written below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("doubt", [VERMILION, "white", BLUE])
    most = max(FAINTEST, float(np.abs(map_.values[map_.sure]).max(initial=0.0)))
    x1, y1, x2, y2 = map_.window
    strength = np.clip(np.abs(map_.values) / most, 0, 1)
    ax.imshow(np.clip(map_.values, -most, most), extent=(x1, x2, y2, y1), cmap=colours, vmin=-most, vmax=most,
              alpha=np.where(map_.sure, 0.35 + 0.5 * strength, 0.1), interpolation="nearest")  # fmt: skip
    ax.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=GREY, lw=0.7, ls=":")
    bar = figure.colorbar(ScalarMappable(Normalize(-most, most), colours), ax=ax, orientation="horizontal",
                          shrink=0.8, aspect=25, ticks=[-most, 0, most])  # fmt: skip
    bar.ax.set_xticklabels([f"{-most:.2f}", "0", f"+{most:.2f}"], fontsize=SMALL - 1)
    bar.outline.set_visible(False)


def _bars(ax: Any, shares: Sequence[tuple[str, float]]) -> None:
    """Signed bars; the sign is also written, for those who cannot tell the colours apart."""
    changes = [change for _, change in shares]
    ax.barh(range(len(shares)), changes, height=0.3, color=[BLUE if c > 0 else VERMILION for c in changes])
    reach = max(0.05, *(abs(c) for c in changes))
    for row, (words, change) in enumerate(shares):
        ax.text(0, row - 0.22, f"{_plain(words)} ({change:+.2f})", fontsize=SMALL - 1, ha="center", va="bottom",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set(xlim=(-1.3 * reach, 1.3 * reach), ylim=(len(shares) - 0.4, -1), yticks=[])
    ax.tick_params(labelsize=SMALL - 1)
    ax.set_title("what it adds to the reliability", fontsize=SMALL)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _window(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """A square about the box with some context, moved into the image where it fits."""
    side = min(max(box[2] - box[0], box[3] - box[1], 16.0) * CONTEXT, max(width, height))
    corners = []
    for middle, length in (((box[0] + box[2]) / 2, width), ((box[1] + box[3]) / 2, height)):
        start = min(max(middle - side / 2, 0), max(length - side, 0)) if side <= length else (length - side) / 2
        corners.append((start, start + side))
    (x1, x2), (y1, y2) = corners
    return x1, y1, x2, y2


def _plain(text: str) -> str:
    """Without the dollar signs that matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
