"""Where a saliency map lies: pointing game, energy inside the object, and whether a planted cue is found.

High values are not by themselves good: a map that is the object's mask wins the first two, whatever the model looks at.
A map without information (all pixels equal, none positive for the energy, or NaN) scores as chance, never as NaN: no
method gains by having no answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .faithfulness import inside


def pointing_game(maps: Tensor, objects: Tensor) -> Tensor:
    """Does the most salient pixel lie in the object (Zhang et al., ECCV 2016)? Without their tolerance of 15 pixels.

    Args:
        maps: (N, h, w); NaN is least salient.
        objects: (N, h, w) bool masks, or (N, 4) xyxy boxes in pixels.

    Returns:
        (N,) 1 or 0; where several pixels are the most salient, the share of these that lies in the object.

    Raises:
        ValueError: a shape does not fit.
        TypeError: masks that are not bool.
    """
    region = _region(maps, objects).flatten(1)
    flat = _ordered(maps)
    best = flat == flat.amax(1, keepdim=True)
    return (best & region).sum(1) / best.sum(1)


def energy_inside(maps: Tensor, objects: Tensor) -> Tensor:
    """Share of the positive saliency that lies in the object: the energy-based pointing game (Score-CAM, 2020).

    Args:
        maps: (N, h, w); negative saliency and NaN count 0.
        objects: as in `pointing_game`.

    Returns:
        (N,) in [0, 1]; the object's share of the picture where no saliency is positive.

    Raises:
        ValueError: a shape does not fit.
        TypeError: masks that are not bool.
    """
    region = _region(maps, objects).flatten(1)
    flat = maps.flatten(1).nan_to_num(nan=0.0).clamp(min=0)
    top = flat.amax(1, keepdim=True)
    energy = torch.where(top > 0, flat / torch.where(top > 0, top, 1), 1)  # of at most 1, so that no sum overflows
    return ((energy * region).sum(1) / energy.sum(1)).clamp(max=1)


@dataclass(frozen=True, eq=False)
class CueFound:
    """Whether maps find a planted cue.

    Attributes:
        share: (N,) share of the cue's pixels among the most salient; NaN where there is no cue. Chance is `top`.
        found: (N,) bool: at least half of the cue's pixels are among them, or half of these are the cue's where the
            cue is the larger.
        top: share of the picture that was taken as the most salient.
    """

    share: Tensor
    found: Tensor
    top: float


def cue_found(maps: Tensor, cues: Tensor, top: float = 0.1) -> CueFound:
    """Is the cue among the most salient pixels?

    Args:
        maps: (N, h, w); NaN is least salient.
        cues: (N, h, w) bool masks, or (N, 4) xyxy boxes in pixels; may be empty.
        top: share of the pixels, in (0, 1], that count as the most salient; at least one pixel. Pixels tied at its
            edge count in part: as often as a random choice among them would take them.

    Raises:
        ValueError: a shape does not fit, or `top` is outside (0, 1].
        TypeError: masks that are not bool.
    """
    if not 0 < top <= 1:
        raise ValueError(f"top must lie in (0, 1], got {top}")
    cue, flat = _region(maps, cues).flatten(1), _ordered(maps)
    k = max(1, round(top * flat.shape[1]))
    edge = flat.kthvalue(flat.shape[1] - k + 1, dim=1, keepdim=True).values
    above, tied = flat > edge, flat == edge
    taken = (k - above.sum(1)) / tied.sum(1)
    hits, size = (cue & above).sum(1) + taken * (cue & tied).sum(1), cue.sum(1)
    share = torch.where(size > 0, hits / size.clamp(min=1), torch.nan)
    return CueFound(share, (size > 0) & (hits >= 0.5 * size.clamp(max=k)), top)


def _ordered(maps: Tensor) -> Tensor:
    return maps.flatten(1).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _region(maps: Tensor, objects: Tensor) -> Tensor:
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"maps must have shape (N, h, w), got {tuple(maps.shape)}")
    n, height, width = maps.shape
    return inside(objects, n, height, width, maps.device)
