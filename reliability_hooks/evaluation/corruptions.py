"""Synthetic conditions: what weather, light, optics and transmission do to a photograph, for fitting and benchmarks.

In the spirit of Hendrycks & Dietterich (ICLR 2019), with a severity in (0, 1]. Blur and resolution scale with
the short side, so that one severity means the same at every resolution. At 0.5 the condition is clearly visible.
Each function takes `image` uint8 (3, H, W), `severity` and a `torch.Generator`, its only source of chance, and returns
uint8 (3, H, W) on the image's device.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Corruption = Callable[[Tensor, float, torch.Generator], Tensor]


def blur(image: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Defocus: a Gaussian of standard deviation 1.6 % of the short side times the severity."""
    from torchvision.transforms.v2.functional import gaussian_blur

    height, width = image.shape[-2:]
    sigma = max(0.016 * severity * min(height, width), 0.1)
    # Reflection at the border needs a kernel of less than twice the side.
    radius_y, radius_x = (min(max(round(3 * sigma), 1), side - 1) for side in (height, width))
    return _uint8(gaussian_blur(image.float(), [2 * radius_x + 1, 2 * radius_y + 1], [sigma, sigma]))


def noise(image: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Sensor noise: photon (shot) noise of 12 / severity^2 photons at white, and Gaussian of deviation 0.2 severity."""
    light = image.float() / 255
    shot = (light * severity**2 / 12).sqrt()  # standard deviation of Poisson counts, by its normal approximation
    spread = (shot**2 + (0.2 * severity) ** 2).sqrt()
    return _uint8(255 * (light + spread * _normal(image.shape, generator, image.device)))


def low_light(image: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Darkness: gamma 1 + severity, gain 10^(-1.1 severity), read noise of deviation 0.03 severity."""
    light = (image.float() / 255) ** (1 + severity) * 10 ** (-1.1 * severity)
    return _uint8(255 * (light + 0.03 * severity * _normal(image.shape, generator, image.device)))


def low_resolution(image: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Too few pixels: the short side reduced to 40 / severity pixels and the image brought back to size."""
    height, width = image.shape[-2:]
    scale = min(1.0, 40 / severity / min(height, width))
    small = interpolate(
        image.float()[None],
        size=(max(1, round(scale * height)), max(1, round(scale * width))),
        mode="bilinear",
        antialias=True,
    )
    return _uint8(interpolate(small, size=(height, width), mode="bicubic")[0])


def fog(image: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Fog: a veil toward white of optical depth 3 severity (0.3 + v), v in [0, 1] smooth and random."""
    grid = torch.rand((1, 1, 4, 5), generator=generator, device=generator.device).to(image.device)
    veil = interpolate(grid, size=tuple(image.shape[-2:]), mode="bicubic", align_corners=True)[0].clamp(0, 1)
    transmission = torch.exp(-3 * severity * (0.3 + veil))
    return _uint8(image * transmission + 240 * (1 - transmission))


def jpeg(image: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Transmission: JPEG of quality 5 + 30 (1 - severity)."""
    from PIL import Image

    stream = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(pixels).save(stream, "JPEG", quality=5 + round(30 * (1 - severity)))
    with Image.open(stream) as decoded:
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).contiguous().to(image.device)


#: name -> corruption; `corrupt` also knows "clean".
CONDITIONS: dict[str, Corruption] = {
    "blur": blur,
    "noise": noise,
    "low_light": low_light,
    "low_resolution": low_resolution,
    "fog": fog,
    "jpeg": jpeg,
}


def corrupt(image: Tensor, name: str, severity: float = 0.5, seed: int = 0) -> Tensor:
    """Puts an image under a condition; the same arguments give the same image.

    Args:
        image: uint8 (3, H, W) RGB.
        name: a key of `CONDITIONS`, or "clean" for the image itself.
        severity: in (0, 1].
        seed: of the condition's randomness; give each image its own.

    Returns:
        uint8 (3, H, W).

    Raises:
        TypeError: the image is not uint8.
        ValueError: unknown name, shape or severity.
    """
    if name != "clean" and name not in CONDITIONS:
        known = ["clean", *CONDITIONS]
        nearest = get_close_matches(name, known, 1, 0)[0]
        raise ValueError(f"unknown condition {name!r}, did you mean {nearest!r}? Known: {', '.join(known)}")
    if image.dtype != torch.uint8:
        raise TypeError(f"a corruption needs a uint8 image, got {image.dtype}")
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"a corruption needs an image of shape (3, H, W), got {tuple(image.shape)}")
    if not 0 < severity <= 1:
        raise ValueError(f"severity must lie in (0, 1], got {severity}")
    if name == "clean":
        return image
    return CONDITIONS[name](image, severity, torch.Generator().manual_seed(seed))


def _normal(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    # Drawn where the generator lives, so that a seed means the same image on every device.
    return torch.randn(shape, generator=generator, device=generator.device).to(device)


def _uint8(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)
