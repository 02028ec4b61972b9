"""What can be wrong with a crop, at a random strength in (0, 1], and how far a caption should say so.

Kept apart from `reliability_hooks.evaluation.corruptions` on purpose: what tests and benchmarks degrade with must not
be what the model was trained on. Each function takes float RGB (3, h, w) in [0, 1], a strength and a generator.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad


def blur(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A disc or a Gaussian of .8 to 5 % of the side."""
    radius = max(min(x.shape[1:]) * (0.008 + 0.04 * strength), 0.6)
    n = max(math.ceil(2.5 * radius), 1)
    grid = torch.arange(-n, n + 1).float()
    distance = (grid[:, None] ** 2 + grid[None] ** 2).sqrt()
    soft = torch.exp(-((distance / radius) ** 2) / 2)
    return _filter(x, soft if rng.random() < 0.5 else (1.6 * radius + 0.5 - distance).clamp(0, 1))


def motion_blur(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A line of 4 to 25 % of the side in any direction."""
    length = max(min(x.shape[1:]) * (0.04 + 0.2 * strength), 3.0)
    n = math.ceil(length / 2)
    angle, bow = rng.uniform(0, math.pi), rng.uniform(-0.15, 0.15)
    kernel = torch.zeros(2 * n + 1, 2 * n + 1)
    for t in np.linspace(-1, 1, 8 * n + 1):
        along, across = t * length / 2, bow * length * (t * t - 0.3)
        i = round(n + along * math.sin(angle) + across * math.cos(angle))
        j = round(n + along * math.cos(angle) - across * math.sin(angle))
        if 0 <= i <= 2 * n and 0 <= j <= 2 * n:
            kernel[i, j] += 1
    return _filter(x, kernel)


def noise(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Gaussian, coloured or grey, dependent on light or not, fine or of two pixels; or salt and pepper."""
    spread, kind = 0.03 + 0.22 * strength**1.3, rng.random()
    if kind < 0.15:
        hit = torch.from_numpy(rng.random(x.shape[1:])) < spread / 3
        return torch.where(hit, torch.from_numpy(rng.integers(0, 2, x.shape[1:])).float(), x)
    channels = 3 if rng.random() < 0.7 else 1
    size = [x.shape[1], x.shape[2]]
    coarse = rng.random() < 0.2
    at = [max(s // 2, 1) for s in size] if coarse else size
    grain = torch.from_numpy(rng.standard_normal((1, channels, *at))).float()
    if coarse:
        grain = interpolate(grain, size, mode="bilinear")
    scale = (x + 0.05).sqrt() * 1.4 if kind < 0.5 else 1.0
    return x + spread * scale * grain[0]


def low_light(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """2 to 20 times less light, with some of the grain that comes with it."""
    dark = x ** rng.uniform(1, 1.6) * 10 ** -(0.3 + strength)
    tint = torch.tensor(rng.uniform(0.8, 1.2, 3)).float()[:, None, None]
    grain = torch.from_numpy(rng.standard_normal(tuple(x.shape))).float() * rng.uniform(0, 0.015)
    return dark * tint + grain


def over_exposure(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """1.5 to 5 times too much light, or a lifted curve; what is white stays white."""
    if rng.random() < 0.5:
        return x * (1.5 + 3.5 * strength)
    return (x ** (1 / (1 + 1.5 * strength))) * (1.15 + 1.2 * strength)


def fog(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A light veil, even or drifting; or contrast lost towards a grey."""
    depth = 0.3 + 0.6 * strength
    if rng.random() < 0.3:
        grey = rng.uniform(0.35, 0.8)
        return x * (1 - depth) + grey * depth
    drift = torch.from_numpy(rng.random((1, 1, 3, 3))).float()
    veil = interpolate(drift, x.shape[1:], mode="bicubic", align_corners=True)[0].clamp(0, 1)
    alpha = (depth * (0.7 + 0.6 * veil)).clamp(0, 0.97)
    return x * (1 - alpha) + rng.uniform(0.72, 0.95) * alpha


def low_resolution(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """The short side left with 64 down to 10 pixels."""
    return _resample(x, (64 * (10 / 64) ** strength) / min(x.shape[1:]), rng)


def compression(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """JPEG of quality 30 to 3, or WebP of 15 to 0."""
    kind, quality = ("JPEG", 30 - 27 * strength) if rng.random() < 0.8 else ("WEBP", 15 * (1 - strength))
    stream = io.BytesIO()
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(stream, kind, quality=round(quality))
    with Image.open(stream) as decoded:
        return torch.from_numpy(np.array(decoded.convert("RGB"))).permute(2, 0, 1).float() / 255


LIGHT = {"low_light": low_light, "over_exposure": over_exposure, "fog": fog}
OPTICS = {"blur": blur, "motion_blur": motion_blur}
SENSOR = {"low_resolution": low_resolution, "noise": noise, "compression": compression}
CAMERA = {**LIGHT, **OPTICS, **SENSOR}
"""Every degradation of the picture, in the order in which light meets them."""


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    ry, rx = kernel.shape[0] // 2, kernel.shape[1] // 2
    weight = (kernel / kernel.sum()).expand(3, 1, -1, -1)
    return conv2d(pad(x[None], (rx, rx, ry, ry), "replicate"), weight, groups=3)[0]


def _resample(x: Tensor, scale: float, rng: np.random.Generator) -> Tensor:
    if scale >= 1:
        return x
    size = [max(round(s * scale), 2) for s in x.shape[1:]]
    small = interpolate(x[None], size, mode="bilinear", antialias=bool(rng.random() < 0.8))
    up = ("bilinear", "bicubic", "nearest")[rng.choice(3, p=[0.45, 0.4, 0.15])]
    return interpolate(small, x.shape[1:], mode=up)[0]
