"""What stands in a removed pixel's place: a faithfulness score depends on it, so more than one is needed.

A fill is made once for a picture, and then gives colours for any holes in it. It only ever fills: pixels outside the
hole stay bit for bit what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

#: holes (B, h, w) bool -> colours, broadcastable to (B, 3, h, w); only those inside the holes are used.
Colours = Callable[[Tensor], Tensor]
#: picture (3, h, w) -> its `Colours`.
Fill = Callable[[Tensor], Colours]

BLUR = 0.05
"""Standard deviation of the blur, as a share of the picture's short side."""


def grey(pixels: Tensor) -> Colours:
    """The mean colour of the picture."""
    mean = pixels.mean((1, 2), keepdim=True)
    return lambda hole: mean


def blur(pixels: Tensor) -> Colours:
    """The picture under a Gaussian of standard deviation `BLUR` x its short side."""
    from torchvision.transforms.v2.functional import gaussian_blur

    height, width = pixels.shape[-2:]
    sigma = max(BLUR * min(height, width), 0.5)
    # Reflection at the border needs a radius below the side; one axis at a time, as the kernel is large.
    x, y = (2 * min(round(3 * sigma), side - 1) + 1 for side in (width, height))
    soft = gaussian_blur(gaussian_blur(pixels, [x, 1], [sigma, sigma]), [1, y], [sigma, sigma])
    return lambda hole: soft


def inpaint(pixels: Tensor) -> Colours:
    """The colours around the hole, carried in smoothly: push-pull (Gortler et al., SIGGRAPH 1996, section 3.4).

    Where nothing of the picture is left, its mean colour.
    """
    mean = pixels.mean((1, 2), keepdim=True)

    def colours(hole: Tensor) -> Tensor:
        weight = (~hole)[:, None].to(pixels.dtype)
        levels = [(pixels * weight, weight)]
        while max(weight.shape[-2:]) > 1:
            # Sums of the 2 x 2 cells below; a cell is known (weight 1) once one of its pixels is.
            some, weight = (4 * avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in levels[-1])
            known = weight.clamp(max=1)
            some, weight = some * known / weight.clamp(min=1e-12), known
            levels.append((some, weight))
        out = mean.expand(len(hole), -1, 1, 1)
        for some, weight in reversed(levels[1:]):
            out = some + (1 - weight) * interpolate(out, size=tuple(some.shape[-2:]), mode="bilinear")
        return interpolate(out, size=tuple(hole.shape[-2:]), mode="bilinear")  # at the finest level only holes count

    return colours


#: name -> fill.
FILLS: dict[str, Fill] = {"grey": grey, "blur": blur, "inpaint": inpaint}


def fill_of(fill: str | Fill) -> tuple[str, Fill]:
    """(name, fill) of a name in `FILLS` or of a fill itself.

    Raises:
        ValueError: no fill has this name.
    """
    if not isinstance(fill, str):
        return getattr(fill, "__name__", type(fill).__name__), fill
    if fill not in FILLS:
        nearest = get_close_matches(fill, FILLS, 1, 0)[0]
        raise ValueError(f"unknown fill {fill!r}, did you mean {nearest!r}? Known: {', '.join(FILLS)}")
    return fill, FILLS[fill]


def filled(pixels: Tensor, hole: Tensor, colours: Colours) -> Tensor:
    """The pictures (B, 3, h, w) that are left of `pixels` (3, h, w) with `hole` (B, h, w) bool filled."""
    return torch.where(hole[:, None], colours(hole), pixels)
