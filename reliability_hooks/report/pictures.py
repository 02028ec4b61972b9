"""Pixels as a page carries them: photographs as JPEG, masks as outlines, maps as small PNGs with a palette."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..instances import Instances
from .plots import BLUE, VERMILION

LONGEST = 1024
"""Long side of a photograph in a report, in pixels; a larger one is scaled down."""
QUALITY = 82
MAP_LONGEST = 240
LEVELS = 64
"""Colours of a map: few compress well."""
SLACK = 0.75
"""By how much an outline may leave the mask, in its pixels: a staircase becomes a line."""
SPECK = 2.0
"""Sides of a part of a mask, in its pixels, below which it is not drawn."""


def jpeg(image: np.ndarray, longest: int = LONGEST) -> bytes:
    """The picture as JPEG, scaled down to `longest` pixels on its long side where it is larger.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) uint8; an alpha channel is dropped.
        longest: In pixels.

    Raises:
        ValueError: It is no such image.
    """
    from PIL.Image import fromarray

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"a picture must be (H, W, 1, 3 or 4) uint8, not {image.shape} {image.dtype}")
    picture = fromarray(image[..., 0] if image.shape[2:] == (1,) else image).convert("RGB")
    share = longest / max(picture.size)
    if share < 1:
        picture = picture.resize((max(1, round(picture.width * share)), max(1, round(picture.height * share))))
    out = io.BytesIO()
    picture.save(out, "jpeg", quality=QUALITY)
    return out.getvalue()


def outlines(instances: Instances) -> list[str]:
    """For each instance its mask as an SVG path (even-odd) in pixels of the image; empty where there is none.

    The outline is that of contourpy, simplified by `SLACK`; specks are left out.
    """
    if instances.masks is None or instances.image_size is None:
        return [""] * len(instances)
    masks = instances.masks.cpu().numpy()
    scale = np.array([instances.image_size[1] / masks.shape[2], instances.image_size[0] / masks.shape[1]])
    return [_outline(mask, scale) for mask in masks]


def _outline(mask: NDArray[np.bool_], scale: NDArray[np.float64]) -> str:
    from contourpy import contour_generator
    from matplotlib.path import Path

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return ""
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = np.array([columns[0], rows[0]]) - 0.5  # of the padding, whose values are those of pixel centres
    rings: list[str] = []
    for line in contour_generator(z=np.pad(part, 1).astype(float)).lines(0.5):
        ring = np.asarray(line)
        if np.ptp(ring, axis=0).max() < SPECK and rings:
            continue
        path = Path(ring)
        path.simplify_threshold = SLACK
        points = (np.asarray(path.cleaned(simplify=True).vertices, float)[:-1] + corner) * scale
        rings.append("M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) + "Z")
    return "".join(rings).replace(".0,", ",").replace(".0L", "L").replace(".0Z", "Z")


def heat_png(values: np.ndarray, longest: int = MAP_LONGEST) -> bytes:
    """A map in [0, 1], (h, w): dark and clear where low, bright and opaque where high; NaN as 0."""
    level = np.rint(np.clip(np.nan_to_num(_fit(values, longest)), 0, 1) * (LEVELS - 1))
    return _png(level, *_inferno())


def signed_png(values: np.ndarray, sure: np.ndarray, reach: float) -> bytes:
    """A signed map: blue raises, vermilion lowers; what is not sure is faint.

    Args:
        values: (h, w).
        sure: (h, w) bool.
        reach: Of full colour, > 0.
    """
    half = LEVELS // 2 - 1
    level = np.rint(np.clip(np.nan_to_num(values) / reach, -1, 1) * half) + half
    return _png(np.where(sure, level, level + LEVELS), *_diverging())


def _fit(values: np.ndarray, longest: int) -> NDArray[np.float32]:
    from PIL.Image import Resampling, fromarray

    share = longest / max(values.shape)
    if share >= 1:
        return values.astype(np.float32)
    size = max(1, round(values.shape[1] * share)), max(1, round(values.shape[0] * share))
    return np.asarray(fromarray(values.astype(np.float32)).resize(size, Resampling.BOX))


@lru_cache
def _inferno() -> tuple[bytes, bytes]:
    from matplotlib import colormaps

    x = np.linspace(0, 1, LEVELS)
    return _bytes(colormaps["inferno"](x)[:, :3]), _bytes(0.15 + 0.7 * x)


@lru_cache
def _diverging() -> tuple[bytes, bytes]:
    from matplotlib.colors import LinearSegmentedColormap

    x = np.linspace(-1, 1, LEVELS - 1)
    colours = LinearSegmentedColormap.from_list("doubt", [VERMILION, "white", BLUE])((x + 1) / 2)[:, :3]
    rgb, alpha = np.concatenate([colours, colours[-1:]]), np.concatenate([0.35 + 0.5 * np.abs(x), [0.85]])
    return _bytes(np.concatenate([rgb, rgb])), _bytes(np.concatenate([alpha, np.full(LEVELS, 0.1)]))


def _bytes(values: np.ndarray) -> bytes:
    out: bytes = np.rint(255 * values).astype(np.uint8).tobytes()
    return out


def _png(level: np.ndarray, palette: bytes, alpha: bytes) -> bytes:
    from PIL.Image import fromarray

    picture = fromarray(level.astype(np.uint8))
    picture.putpalette(palette)
    out = io.BytesIO()
    picture.save(out, "png", transparency=alpha, optimize=True)
    return out.getvalue()
