"""What cameras do to photographs, by Pillow and scipy: shares no code with what the embedded CLIP was trained on.

Each function takes (H, W, 3) uint8, a level from 1 to 5 (3: plainly visible) and a generator.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage

Degradation = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def blur(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Three passes of a box filter."""
    image = Image.fromarray(x)
    for _ in range(3):
        image = image.filter(ImageFilter.BoxBlur(0.7 * level))
    return np.array(image)


def motion_blur(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """A straight line, turned."""
    n = 3 + 5 * level
    line = np.zeros((n, n))
    line[n // 2] = 1
    kernel = ndimage.rotate(line, rng.uniform(0, 180), reshape=False, order=1).clip(0)
    return np.stack([ndimage.convolve(x[..., c], kernel / kernel.sum(), float, mode="nearest") for c in range(3)], -1)


def noise(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Photons counted, and Laplacian noise of the electronics."""
    photons = 150 / level**2
    return rng.poisson(x / 255 * photons) / photons * 255 + rng.laplace(0, 3.0 * level, x.shape)


def low_light(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Pillow's brightness."""
    return np.array(ImageEnhance.Brightness(Image.fromarray(x)).enhance(1 / (1 + 0.9 * level)))


def over_exposure(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Stops of light in linear values, clipped, and back."""
    linear = (x / 255) ** 2.2 * 2 ** (0.8 * level)
    return linear.clip(0, 1) ** (1 / 2.2) * 255


def fog(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Lighter towards the top, as with distance."""
    depth = np.linspace(1.25, 0.75, len(x))[:, None, None] * 0.16 * level
    clear = np.exp(-2 * depth)
    return x * clear + np.array([205, 210, 215]) * (1 - clear)


def low_resolution(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Every n-th pixel of a mean, enlarged by Lanczos."""
    image = Image.fromarray(x)
    return np.array(image.reduce(1 + level).resize(image.size, Image.Resampling.LANCZOS))


def compression(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """JPEG of the whole photograph, colours at half resolution."""
    stream = io.BytesIO()
    Image.fromarray(x).save(stream, "JPEG", quality=(30, 20, 13, 8, 4)[level - 1], subsampling=2)
    return np.array(Image.open(stream))


CAMERA: dict[str, Degradation] = {f.__name__: f for f in (
    blur, motion_blur, noise, low_light, over_exposure, fog, low_resolution, compression
)}  # fmt: skip


def degrade(x: np.ndarray, name: str, level: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 under a condition of `CAMERA`."""
    seen = np.asarray(CAMERA[name](x, level, np.random.default_rng([seed, level])))
    return seen.round().clip(0, 255).astype(np.uint8)


def occlude(
    x: np.ndarray, mask: np.ndarray, other: np.ndarray, aim: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """A patch of another photograph, with a wavy outline, over the object until `aim` of its mask is hidden.

    Returns:
        The photograph, and the visible fraction of the mask.
    """
    y, x_ = np.nonzero(mask)
    wave = ndimage.gaussian_filter(rng.standard_normal(mask.shape), 12, mode="reflect")
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * np.arange(mask.shape[1])[None] + np.sin(angle) * np.arange(mask.shape[0])[:, None]
    size = max(np.ptp(y), np.ptp(x_), 1)
    field = along / size + 0.15 * wave / wave.std()
    front = field <= np.quantile(field[mask], aim)
    center = (y.mean(), x_.mean())
    reach = np.hypot(np.arange(mask.shape[0])[:, None] - center[0], np.arange(mask.shape[1])[None] - center[1])
    front &= reach < 0.9 * size  # a thing in front, not half of the picture
    patch = np.asarray(Image.fromarray(other).resize(mask.shape[::-1]))
    return np.where(front[..., None], patch, x), float((mask & ~front).sum() / mask.sum())
