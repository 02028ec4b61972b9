"""What is claimed of a place: which it is, in words, and what came of changing it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..frame import View
from .places import centres, resample

SURE = 2.0
"""Standard errors from which an effect is established."""
LEADING = 0.5
"""Of the greatest effect: a place that has less is not part of what is claimed."""
MOST = 0.6
"""Of the box: a region that covers as much lies on all of the object."""


@dataclass(frozen=True, eq=False)
class Claim:
    """A place that was said to raise the reliability, and the picture in which it alone was changed.

    Attributes:
        kind: `restored` or `removed`.
        how: What was done there, in words.
        where: Which place it is, in words.
        region: (L, L) bool, on the map.
        before: Reliability in the picture as it is.
        after: Reliability with the place changed; NaN where the object is not found then.
        least: Gain from which a claim holds.
    """

    kind: str
    how: str
    where: str
    region: Tensor
    before: float
    after: float
    least: float

    @property
    def holds(self) -> bool:
        return self.after - self.before >= self.least


def established(effect: Tensor, error: Tensor) -> Tensor:
    """Where an effect exceeds `SURE` standard errors."""
    return effect.abs() > SURE * error


def region_of(effect: Tensor, error: Tensor) -> Tensor:
    """(L, L) bool, the places that raise the reliability most, of those that are established; perhaps none."""
    raising = torch.where(established(effect, error), effect, 0).clamp(min=0)
    return (raising > 0) & (raising >= LEADING * raising.max())


def spread(region: Tensor, window: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) in [0, 1] over an image of (height, width) of a region (L, L) on its window (4,), with soft edges."""
    whole = View(torch.zeros(3, 1, 1))
    return resample(region[None].float(), window[None].float(), whole, size)[0]


def whereabouts(region: Tensor, window: Tensor, box: Tensor) -> str:
    """Where a region (L, L) on a window lies on, or beside, the object: windows and box (4,) xyxy."""
    side, (x1, y1, x2, y2) = len(region), box.tolist()
    x, y = (window[k] + centres(side, 1.0) * (window[k + 2] - window[k]) for k in (0, 1))
    inside = ((y >= y1) & (y <= y2))[:, None] & ((x >= x1) & (x <= x2))
    if inside.any() and float(region[inside].float().mean()) >= MOST:
        return "all of the object"
    beside = float(inside[region].float().mean()) < 0.5
    down, across = (region & ~inside if beside else region).nonzero().unbind(1)
    u = (float(x[across].mean()) - x1) / max(x2 - x1, 1e-6)
    v = (float(y[down].mean()) - y1) / max(y2 - y1, 1e-6)
    if beside:
        far = max((-u, "left of"), (u - 1, "right of"), (-v, "above"), (v - 1, "below"))
        return f"what lies {far[1]} it" if far[0] > 0 else "what lies around it"
    words = [_third(v, "upper", "lower"), _third(u, "left", "right")]
    named = " ".join(word for word in words if word)
    return f"the {named or 'middle'}{' part' if words[0] and not words[1] else ''} of the object"


def said(kinds: Sequence[tuple[str, str]], claims: Sequence[Claim]) -> str:
    """A sentence about one object.

    Args:
        kinds: (kind, how) of each map that was made.
        claims: At most one for each.
    """
    parts = []
    for kind, how in kinds:
        claim = next((c for c in claims if c.kind == kind), None)
        run = "" if claim is None else f"{number(claim.before)} -> {number(claim.after)} (checked)"
        if claim is None:
            parts.append(f"no place is established that gains if {how}")
        elif not claim.holds:
            parts.append(f"no place gains much if {how}: {claim.where} {run}")
        elif kind == "restored":
            parts.append(f"doubt lies on {claim.where}: {how} there {run}")
        else:
            parts.append(f"{claim.where} misleads: {how} there {run}")
    return "; ".join(parts)


def number(value: float) -> str:
    """`.31`, or `lost`."""
    return "lost" if value != value else f"{value:.2f}".removeprefix("0")


def _third(share: float, low: str, high: str) -> str:
    return low if share < 1 / 3 else high if share > 2 / 3 else ""
