"""Videos made from photographs: a camera that pans and zooms over one, and a stranger that walks in.

Tracks with known boxes, for as many scenes as there are annotated photographs. What they lack of real videos: objects
do not move by themselves, there is no parallax, no motion blur and no compression, and the noise of the photograph
moves with it. Frames are made one by one and nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[float, float, float, float]
VISIBLE = 0.5
"""An object counts while at least this share of its box lies in the frame."""


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame and what is in it.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (G, 4) float32 xyxy in pixels of the frame, clipped to it; objects less than half visible are left out.
        object_ids: (G,) int64, the same for one object in all frames: its row in the photograph's boxes, or their
            number for the stranger.
        is_ood: (G,) bool, the stranger.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    object_ids: NDArray[np.int64]
    is_ood: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Stranger:
    """A cut-out object that comes into the scene from a side and goes on to a place in it.

    Attributes:
        image: (h, w, 4) uint8 RGBA.
        box: Of the object in `image`, xyxy pixels.
        enters: Frame at which it begins to come in.
        frames: Frames that it takes to its place, where it then stays, swaying; at least 1.
        height: Of its box, as a share of the frame's height.
        place: (x, y) of the centre of its box at the end, as shares of the frame.
        from_left: The side from which it comes.
    """

    image: NDArray[np.uint8]
    box: Box
    enters: int = 0
    frames: int = 8
    height: float = 0.5
    place: tuple[float, float] = (0.5, 0.6)
    from_left: bool = True

    def __post_init__(self) -> None:
        x1, y1, x2, y2 = self.box
        if self.image.ndim != 3 or self.image.shape[2] != 4 or self.image.dtype != np.uint8:
            raise ValueError(f"a stranger is (h, w, 4) uint8 RGBA, not {self.image.shape} {self.image.dtype}")
        if not (x1 < x2 and y1 < y2) or self.frames < 1 or self.height <= 0:
            raise ValueError("a stranger needs a box with an area, frames >= 1 and height > 0")

    def at(self, frame: int, size: tuple[int, int]) -> tuple[float, float, float]:
        """(scale, left, top) of `image` in a frame of (height, width)."""
        height, width = size
        x1, y1, x2, y2 = self.box
        scale = self.height * height / (y2 - y1)
        half = (x2 - x1) * scale / 2
        way = min((frame - self.enters) / self.frames, 1.0)
        outside = -half if self.from_left else width + half
        sway = 0.01 * width * math.sin(0.4 * (frame - self.enters))
        x = outside + (self.place[0] * width - outside) * math.sin(way * math.pi / 2) + sway
        return scale, x - half - x1 * scale, self.place[1] * height - (y1 + y2) / 2 * scale


def cut_out(photo: NDArray[np.uint8], box: ArrayLike, feather: float = 0.12) -> tuple[NDArray[np.uint8], Box]:
    """The crop around a box with edges that fade out, and the box in it: what a `Stranger` is made of.

    The alpha is 1 on the box and falls to 0 over `feather` of its longer side beyond it, or inside the box where the
    photograph ends there.

    Raises:
        ValueError: The photograph is not (H, W, 3) uint8 or the box has no area in it.
    """
    _check_photo(photo)
    height, width = photo.shape[:2]
    x1, y1, x2, y2 = (float(v) for v in np.clip(np.asarray(box, float), 0, [width, height, width, height]))
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"the box {box!r} has no area in a photograph of {width} x {height}")
    rim = max(1.0, feather * max(x2 - x1, y2 - y1))
    left, top = max(0, math.floor(x1 - rim)), max(0, math.floor(y1 - rim))
    right, bottom = min(width, math.ceil(x2 + rim)), min(height, math.ceil(y2 + rim))

    def fade(n: int) -> NDArray[np.float64]:
        ends = np.arange(n) + 0.5
        up: NDArray[np.float64] = np.clip(np.minimum(ends, n - ends) / rim, 0, 1)
        return up

    alpha = np.outer(fade(bottom - top), fade(right - left))
    rgba = np.dstack([photo[top:bottom, left:right], np.rint(255 * alpha).astype(np.uint8)])
    return rgba, (x1 - left, y1 - top, x2 - left, y2 - top)


def moving_crop(
    photo: NDArray[np.uint8],
    boxes: ArrayLike,
    *,
    frames: int = 30,
    size: tuple[int, int] = (360, 480),
    zoom: tuple[float, float] = (0.6, 0.9),
    flicker: float = 0.03,
    stranger: Stranger | None = None,
    seed: int = 0,
) -> Iterator[VideoFrame]:
    """A window that pans and zooms smoothly over a photograph; equal arguments give equal videos.

    Args:
        photo: (H, W, 3) uint8.
        boxes: (G, 4) xyxy pixels of the photograph.
        frames: Length of the video.
        size: (height, width) of the frames.
        zoom: Smallest and largest window, as shares of the largest of the frame's shape that fits the photograph.
        flicker: Deviation of the brightness, as a share, from frame to frame.
        stranger: An object that comes in; it moves in the frame, in front of everything.
        seed: Of the camera's way and of the flicker.

    Raises:
        ValueError: The photograph is not (H, W, 3) uint8, or zoom does not lie in (0, 1].
    """
    _check_photo(photo)
    if not 0 < zoom[0] <= zoom[1] <= 1:
        raise ValueError(f"zoom needs 0 < smallest <= largest <= 1, not {zoom}")
    known = np.asarray(boxes, np.float64).reshape(-1, 4)
    return _frames(photo, known, frames, size, zoom, flicker, stranger, np.random.default_rng(seed))


def _frames(
    photo: NDArray[np.uint8], known: NDArray[np.float64], frames: int, size: tuple[int, int], zoom: tuple[float, float],
    flicker: float, stranger: Stranger | None, rng: np.random.Generator,
) -> Iterator[VideoFrame]:  # fmt: skip
    from PIL import Image

    picture, (height, width) = Image.fromarray(photo), size
    largest = min(photo.shape[1] / width, photo.shape[0] / height)
    ways = [_way(rng, frames) for _ in range(3)]
    gains = 1 + flicker * rng.standard_normal(frames)
    ids = np.arange(len(known) + (stranger is not None))
    for t, (a, b, c) in enumerate(zip(*ways, strict=True)):
        scale = largest * (zoom[0] + (zoom[1] - zoom[0]) * c)  # photograph's pixels in one of the frame
        left, top = a * (photo.shape[1] - width * scale), b * (photo.shape[0] - height * scale)
        window = (left, top, min(left + width * scale, photo.shape[1]), min(top + height * scale, photo.shape[0]))
        image = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=window), np.float64)
        moved = (known - [left, top, left, top]) / scale
        if stranger is not None:
            image, own = _paste(image, stranger, t)
            moved = np.concatenate([moved, own])
        clipped = np.clip(moved, 0, [width, height, width, height])
        seen = _area(clipped) >= VISIBLE * np.maximum(_area(moved), 1e-9)
        yield VideoFrame(
            image=np.rint(image * gains[t]).clip(0, 255).astype(np.uint8),
            boxes=clipped[seen].astype(np.float32),
            object_ids=ids[seen],
            is_ood=ids[seen] >= len(known),
        )


def _way(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """(frames,) in [0, 1]: two slow waves, of 60 to 160 frames each."""
    period, phase = rng.uniform(60, 160, 2), rng.uniform(0, 2 * np.pi, 2)
    waves = np.sin(2 * np.pi * np.arange(frames)[:, None] / period + phase)
    way: NDArray[np.float64] = 0.5 + 0.5 * (waves * [0.7, 0.3]).sum(1)
    return way


def _paste(
    image: NDArray[np.float64], stranger: Stranger, t: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The frame with the stranger in it, and its box (1, 4); a box without area before it enters."""
    from PIL import Image

    if t < stranger.enters:
        return image, np.zeros((1, 4))
    height, width = image.shape[:2]
    scale, left, top = stranger.at(t, (height, width))
    x, y = round(left), round(top)
    h, w = stranger.image.shape[:2]
    fitted = max(1, round(w * scale)), max(1, round(h * scale))
    rgba = np.asarray(Image.fromarray(stranger.image).resize(fitted, Image.Resampling.BILINEAR), np.float64)
    ratio = np.array([fitted[0] / w, fitted[1] / h] * 2)
    box = np.asarray(stranger.box) * ratio + [x, y, x, y]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + fitted[0], width), min(y + fitted[1], height)
    if x1 < x2 and y1 < y2:
        part = rgba[y1 - y : y2 - y, x1 - x : x2 - x]
        alpha = part[..., 3:] / 255
        image = image.copy()
        image[y1:y2, x1:x2] = alpha * part[..., :3] + (1 - alpha) * image[y1:y2, x1:x2]
    return image, box[None]


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)
    return area


def _check_photo(photo: NDArray[np.uint8]) -> None:
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or 0 in photo.shape:
        raise ValueError(f"a photograph is (H, W, 3) uint8, not {photo.shape} {photo.dtype}")
