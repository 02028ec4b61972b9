"""What would make it reliable? The image is mended as far as plain processing can, and everything is run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..instances import Instances
from .explainer import Watched
from .hooked import answer, partners
from .views import VIEWS

LEAST = 0.05
"""Gain of reliability from which a remedy is said to help."""
SURE = 0.9
"""Level of the one-sided confidence interval of its mean in other views."""
Remedy = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Counterfactual:
    """One remedy that was tried.

    Attributes:
        remedy: In words.
        before: Reliability in the image as it is.
        after: Reliability of the same object in the mended image; NaN where it is not found there, or unknown.
        found: Whether it is found there.
        again: Its gains in other views of the image (`views.VIEWS`), where an object that is not found counts as 0;
            empty where they were not looked at, since there was nothing to confirm.
    """

    remedy: str
    before: float
    after: float
    found: bool
    again: tuple[float, ...] = ()

    @property
    def gain(self) -> float:
        return self.after - self.before

    def helps(self, least: float = LEAST) -> bool:
        """Whether it gains so much in the image, and surely so in other views, where these were looked at.

        The image itself has no say in the second: there the remedy was chosen for its gain. Surely: the lower limit of
        the mean's confidence interval at level `SURE` (Student's t).
        """
        from scipy.special import stdtrit

        gains = np.array(self.again or (self.gain,))
        n = len(gains)
        unsure = stdtrit(n - 1, SURE) * gains.std(ddof=1) / n**0.5 if n > 1 else 0.0
        return self.gain >= least and float(gains.mean() - unsure) >= least


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
    confirm: bool = True,
) -> list[list[Counterfactual]]:
    """For each instance every remedy and what really came of it, the most helpful first.

    One pass of the hooked detector for each remedy, whatever the number of instances. A gain may be chance: remedies
    that seem to help are tried in each of `VIEWS` too, for as many passes and one more.

    Args:
        handle: Of `attach(model, monitor)` with a fitted monitor.
        image: (H, W, 3) uint8 RGB.
        instances: Its N detections, with reliability.
        remedies: Words -> what is done to the image; it keeps its size.
        options: Of `handle.predict`.
        confirm: Without it no other view is looked at.

    Raises:
        ValueError: A remedy changes the size of the image.
    """
    n, before = len(instances), instances.reliability.cpu().float()
    out: list[list[Counterfactual]] = [[] for _ in range(n)]
    if n == 0:
        return out

    def judged(of: Instances, picture: np.ndarray) -> tuple[Tensor, Tensor]:
        found = handle.predict([picture], **dict(options or {}))[0]
        return answer(of, found), partners(of, found) >= 0

    def gained(picture: np.ndarray) -> Tensor:
        """(n, views) reliability there, 0 where it is not found."""
        size = (image.shape[0], image.shape[1])
        seen = [judged(place(instances, size), view(picture)) for view, place in VIEWS.values()]
        return torch.stack([torch.where(there, w, 0.0) for w, there in seen], 1)

    unmended: Tensor | None = None
    for words, remedy in remedies.items():
        mended = remedy(image)
        if mended.shape != image.shape:
            raise ValueError(f"the remedy {words!r} makes {mended.shape} of {image.shape}: it must keep the size")
        after, there = judged(instances, mended)
        seems = after - before >= LEAST
        again: list[tuple[float, ...]] = [()] * n
        if confirm and bool(seems.any()):
            unmended = gained(image) if unmended is None else unmended
            gains = gained(mended) - unmended
            again = [tuple(row) if looked else () for row, looked in zip(gains.tolist(), seems.tolist(), strict=True)]
        for k in range(n):
            out[k].append(Counterfactual(words, float(before[k]), float(after[k]), bool(there[k]), again[k]))
    return [sorted(row, key=lambda c: -c.gain if c.gain == c.gain else 2.0) for row in out]


def helpful(tried: Sequence[Counterfactual], least: float = LEAST) -> list[Counterfactual]:
    """Those that raise the reliability by at least so much, in the other views too where they were looked at."""
    return [c for c in tried if c.helps(least)]


def _uint8(values: np.ndarray) -> np.ndarray:
    out: np.ndarray = values.round().clip(0, 255).astype(np.uint8)
    return out
