"""What would make it reliable? The image is mended as far as plain processing can, and everything is run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..instances import Instances
from ..signals.geometry import ious
from .explainer import Watched

Remedy = Callable[[np.ndarray], np.ndarray]
SAME = 0.5
"""IoU from which a detection of the same class in the mended image is the same one."""


@dataclass(frozen=True)
class Counterfactual:
    """One remedy that was tried.

    Attributes:
        remedy: In words.
        before: Reliability in the image as it is.
        after: Reliability of the same object in the mended image; NaN where it is not found there, or unknown.
        found: Whether it is found there.
    """

    remedy: str
    before: float
    after: float
    found: bool

    @property
    def gain(self) -> float:
        return self.after - self.before


def brightened(stops: float) -> Remedy:
    """More light (or less, below 0) by so many stops, in linear values."""

    def remedy(image: np.ndarray) -> np.ndarray:
        linear = (image / 255.0) ** 2.2 * 2**stops
        return _uint8(linear.clip(0, 1) ** (1 / 2.2) * 255)

    return remedy


def denoised(image: np.ndarray) -> np.ndarray:
    """A median over 3 x 3 pixels, then a Gaussian of .8 pixels."""
    from scipy.ndimage import gaussian_filter, median_filter

    return _uint8(gaussian_filter(median_filter(image, (3, 3, 1)).astype(np.float32), (0.8, 0.8, 0)))


def sharpened(image: np.ndarray) -> np.ndarray:
    """Unsharp masking, radius 3 pixels."""
    from PIL import Image, ImageFilter

    return np.array(Image.fromarray(image).filter(ImageFilter.UnsharpMask(3, 180, 0)))


def contrasted(image: np.ndarray) -> np.ndarray:
    """The darkest and the lightest percent stretched to black and white, as against haze."""
    from PIL import Image, ImageOps

    return np.array(ImageOps.autocontrast(Image.fromarray(image), cutoff=1, preserve_tone=True))


REMEDIES: dict[str, Remedy] = {
    "brightened by 1.5 stops": brightened(1.5),
    "darkened by 1 stop": brightened(-1),
    "denoised": denoised,
    "sharpened": sharpened,
    "contrast stretched": contrasted,
}


def counterfactuals(
    handle: Watched,
    image: np.ndarray,
    instances: Instances,
    remedies: Mapping[str, Remedy] = REMEDIES,
    options: Mapping[str, Any] | None = None,
) -> list[list[Counterfactual]]:
    """For each instance every remedy and what really came of it, the most helpful first.

    One pass of the hooked detector for each remedy, whatever the number of instances.

    Args:
        handle: Of `attach(model, monitor)` with a fitted monitor.
        image: (H, W, 3) uint8 RGB.
        instances: Its N detections, with reliability.
        remedies: Words -> what is done to the image; it keeps its size.
        options: Of `handle.predict`.

    Raises:
        ValueError: A remedy changes the size of the image.
    """
    before = instances.reliability.cpu().tolist()
    out: list[list[Counterfactual]] = [[] for _ in before]
    if not before:
        return out
    for words, remedy in remedies.items():
        mended = remedy(image)
        if mended.shape != image.shape:
            raise ValueError(f"the remedy {words!r} makes {mended.shape} of {image.shape}: it must keep the size")
        after, found = _same(instances, handle.predict([mended], **dict(options or {}))[0])
        for k, (value, was) in enumerate(zip(after, found, strict=True)):
            out[k].append(Counterfactual(words, before[k], value, was))
    return [sorted(row, key=lambda c: -c.gain if c.gain == c.gain else 2.0) for row in out]


def helpful(tried: Sequence[Counterfactual], least: float = 0.05) -> list[Counterfactual]:
    """Those that raise the reliability by at least so much."""
    return [c for c in tried if c.gain >= least]


def _same(instances: Instances, mended: Instances) -> tuple[list[float], list[bool]]:
    """Reliability of each instance in the mended image, and whether it is there."""
    n = len(instances)
    if len(mended) == 0:
        return [float("nan")] * n, [False] * n
    overlap = ious(instances.boxes.cpu().float(), mended.boxes.cpu().float())
    overlap = overlap.masked_fill(instances.labels.cpu()[:, None] != mended.labels.cpu(), 0.0)
    best, at = overlap.nan_to_num().max(1)
    value = torch.where(best >= SAME, mended.reliability.cpu()[at], torch.nan)
    return value.tolist(), (best >= SAME).tolist()


def _uint8(values: np.ndarray) -> np.ndarray:
    out: np.ndarray = values.round().clip(0, 255).astype(np.uint8)
    return out
