"""Images and videos as people have them -> uint8 RGB arrays, upright."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"])
VIDEO_SUFFIXES = frozenset([".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"])


class ImageError(ValueError):
    """An image that cannot be read; the message names it and says why."""


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    The EXIF orientation is applied. 16-bit images are scaled linearly (65535 -> 255), grey ones repeated over the
    channels; an alpha channel is dropped, as detectors' own readers do.

    Raises:
        ImageError: Missing, truncated, empty or no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I") or image.mode == "F":
                return _from_deep(np.asarray(image), path)
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, ImportError) as e:  # ultralytics patches its way in for HEIF: ImportError
        raise ImageError(f"{path} is no image that can be read") from e
    except FileNotFoundError as e:
        raise ImageError(f"{path} is not there") from e
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:  # Pillow raises all of these
        raise ImageError(f"{path} cannot be read: {e}") from e


def _from_deep(values: np.ndarray, path: str | Path) -> np.ndarray:
    values = values.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{path} has values outside 0..65535; convert it to 8 or 16 bits")
    if values.max() > 1 or not (values % 1).any():
        values = values / 65535  # an integer depth; a float image is taken to lie in [0, 1]
    return np.repeat(np.rint(values * 255).astype(np.uint8)[..., None], 3, axis=2)


def find_images(source: str | Path) -> list[Path]:
    """Images and videos of a file, a folder (not its sub-folders) or a glob pattern, sorted by name.

    A file named outright is taken as it is; in folders and patterns only known suffixes are.

    Raises:
        ImageError: Nothing is there.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    pattern = path.is_dir()
    found = path.iterdir() if pattern else (Path(p) for p in glob.glob(str(source), recursive=True))
    files = sorted(p for p in found if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    if not files:
        where = "holds no images" if pattern else "is no file, folder or pattern that matches one"
        raise ImageError(f"{source} {where} (known: {', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))})")
    return files


def is_video(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_video(path: str | Path) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB frames.

    Raises:
        ImageError: No video, or OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as e:
        raise ImageError("videos need OpenCV: pip install opencv-python-headless") from e
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ImageError(f"{path} is no video that can be read")
    try:
        while True:
            more, frame = capture.read()
            if not more:
                return
            yield np.ascontiguousarray(frame[..., ::-1])
    finally:
        capture.release()
