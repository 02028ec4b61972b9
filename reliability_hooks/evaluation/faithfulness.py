"""Deletion and insertion: does the answer hang on the pixels that a saliency map names?

Model-agnostic. What is explained is a callable `respond(pictures (B, 3, h, w)) -> (B, N)`, the score of each of N
instances in B changed pictures, 0 where the instance is gone: such as the joint score max_j IoU(i, j) p_j(class).
Several scores of one pass (joint, class only, IoU only) may come as (B, N, R).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .fills import Fill, fill_of, filled

Respond = Callable[[Tensor], Tensor]

AREA = 2.0
"""Range of the area-scaled scores, in areas of the object."""
TIES = "equal saliency: one fixed random order of the pixels; NaN: least salient"


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Scores of N instances, each of shape (N,), or (N, R) where `respond` gives R scores.

    Attributes:
        deletion: area under the score while pixels are removed, most salient first, over the start score; low is good.
        insertion: the same while they are put into the filled picture; high is good. Not bounded by 1, as a part of
            the picture may score above the whole.
        start: f0, the score in the whole picture. Where it is not above 0 the areas are NaN.
        deletion_curve: (N, steps + 1) or (N, steps + 1, R), raw scores. Likewise `insertion_curve`.
        pixels: (N, steps + 1) number of pixels removed, or put in.
        passes: pictures that were shown to `respond`.
        protocol: fill, steps, range and rule for ties; JSON-ready.
    """

    deletion: Tensor
    insertion: Tensor
    start: Tensor
    deletion_curve: Tensor
    insertion_curve: Tensor
    pixels: Tensor
    passes: int
    protocol: dict[str, Any]

    @property
    def oa(self) -> Tensor:
        """Overall score, insertion - deletion."""
        return self.insertion - self.deletion


@torch.no_grad()
def deletion_insertion(
    respond: Respond,
    pixels: Tensor,
    maps: Tensor,
    *,
    masks: Tensor | None = None,
    steps: int = 20,
    area: str = "full",
    fill: str | Fill = "grey",
    batch: int = 16,
) -> Faithfulness:
    """Deletion, insertion and their difference (RISE, Petsiuk et al. 2018; for boxes D-RISE, 2021).

    Each instance loses the pixels of its own map, so the cost is at most 2 + 2 N steps pictures, in batches that mix
    instances and steps; the whole and the wholly filled picture are shared. Memory is that of `batch` pictures and
    of the orders of as many maps.

    Args:
        respond: see the module; called without gradients on up to `batch` pictures on the device of `pixels`.
        pixels: (3, h, w) float RGB of any range.
        maps: (N, h, w) saliency, any real numbers, on any device; only the order of the pixels counts. A map that
            is constant, or NaN throughout, scores as a random order of the pixels.
        masks: (N, h, w) bool, or (N, 4) xyxy boxes in pixels: the objects that set the range for `area="object"`.
        steps: number of equal steps of the trapezoidal rule.
        area: "full": up to the whole picture. "object": up to `AREA` times the object's area, capped at the picture.
        fill: a name in `fills.FILLS`, or a fill.
        batch: pictures in one call.

    Returns:
        See `Faithfulness`. An object without area has no range: NaN in `area="object"`.

    Raises:
        ValueError: a shape does not fit, `area` or `fill` is unknown, steps or batch is below 1, `area="object"`
            without masks, or `respond` gives another shape than promised.
        TypeError: `pixels` or `maps` are not floating point.
    """
    n, height, width = _check(pixels, maps, steps, batch)
    name, made_by = fill_of(fill)
    total = height * width
    reach = torch.full((n,), total, device=pixels.device)
    if area == "object":
        if masks is None:
            raise ValueError('area="object" needs masks (N, h, w) or boxes (N, 4): the range is twice their area')
        reach = (AREA * inside(masks, n, height, width, pixels.device).sum((1, 2))).long().clamp(max=total)
    elif area != "full":
        raise ValueError(f'area must be "full" or "object", got {area!r}')
    protocol = {
        "fill": name, "steps": steps, "range": "the picture" if area == "full" else f"{AREA:g} areas of the object",
        "area": area, "divided_by": "start score", "rule": "trapezoidal", "ties": TIES,
    }  # fmt: skip
    count = (reach[:, None] * torch.arange(steps + 1, device=pixels.device) / steps).round().long()
    if not n:
        none = pixels.new_zeros(0)
        curve = pixels.new_zeros((0, steps + 1))
        return Faithfulness(none, none, none, curve, curve, count, 0, protocol)

    colours = made_by(pixels)
    everything = torch.ones((1, height, width), dtype=torch.bool, device=pixels.device)
    whole, empty = (
        _checked(respond(picture), 1, n)[0] for picture in (pixels[None], filled(pixels, everything, colours))
    )
    # Two curves: [0] while removing, from the whole picture to the empty one; [1] while putting in, the other way.
    start, end = torch.stack([whole, empty]), torch.stack([empty, whole])
    beyond = (count == total).reshape(1, n, steps + 1, *[1] * (whole.ndim - 1))
    curves = torch.where(beyond, end.unsqueeze(2), start.unsqueeze(2))
    open_row, open_step = torch.nonzero((count > 0) & (count < total), as_tuple=True)
    # Side by side for each instance and step: few maps need their pixels in order at a time.
    removes_inserts = torch.arange(2, device=pixels.device).repeat(len(open_row))
    todo = torch.stack([open_row.repeat_interleave(2), open_step.repeat_interleave(2), removes_inserts])
    for begin in range(0, todo.shape[1], batch):
        row, step, inserts = todo[:, begin : begin + batch]
        some, at = torch.unique_consecutive(row, return_inverse=True)
        first = ranks(maps[some.to(maps.device)].to(pixels.device))[at] < count[row, step][:, None, None]
        answer = _checked(respond(filled(pixels, first ^ inserts.bool()[:, None, None], colours)), len(row), n)
        curves[inserts, row, step] = answer[torch.arange(len(row), device=row.device), row].to(curves.dtype)
    share = count / reach.clamp(min=1)[:, None]
    middle = (curves[:, :, 1:] + curves[:, :, :-1]) / 2
    under = (middle * share.diff(dim=1).reshape(1, n, steps, *[1] * (whole.ndim - 1))).sum(2)
    usable = (whole > 0) & (reach > 0).reshape(n, *[1] * (whole.ndim - 1))
    deletion, insertion = torch.where(usable, under / whole, torch.nan)
    return Faithfulness(deletion, insertion, whole, curves[0], curves[1], count, 2 + todo.shape[1], protocol)


def ranks(maps: Tensor) -> Tensor:
    """Place (N, h, w) of each pixel, 0 for the most salient; ties by `TIES`, the same on every device."""
    flat = maps.flatten(1).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(maps.device)
    order = shuffle[torch.argsort(flat[:, shuffle], dim=1, descending=True, stable=True)]
    place = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place).view(maps.shape)


def inside(objects: Tensor, n: int, height: int, width: int, device: torch.device) -> Tensor:
    """(N, h, w) bool of masks, or of boxes (N, 4) xyxy: the pixels whose centre lies in the box; none for NaN.

    Raises:
        ValueError: another shape.
        TypeError: masks that are not bool.
    """
    objects = objects.to(device)
    if objects.shape == (n, 4):
        x1, y1, x2, y2 = objects.unbind(1)
        x, y = (torch.arange(side, device=device) + 0.5 for side in (width, height))
        across = (x >= x1[:, None]) & (x < x2[:, None])
        return across[:, None] & ((y >= y1[:, None]) & (y < y2[:, None]))[:, :, None]
    if objects.shape != (n, height, width):
        raise ValueError(f"objects are masks ({n}, {height}, {width}) or boxes ({n}, 4), not {tuple(objects.shape)}")
    if objects.dtype != torch.bool:
        raise TypeError(f"masks must be bool, got {objects.dtype}: apply the threshold first, as in masks > 0.5")
    return objects


def _check(pixels: Tensor, maps: Tensor, steps: int, batch: int) -> tuple[int, int, int]:
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels must have shape (3, h, w), got {tuple(pixels.shape)}")
    if maps.ndim != 3 or maps.shape[1:] != pixels.shape[1:]:
        raise ValueError(f"maps must have shape (N, {pixels.shape[1]}, {pixels.shape[2]}), got {tuple(maps.shape)}")
    if not (pixels.is_floating_point() and maps.is_floating_point()):
        raise TypeError(f"pixels and maps must be floating point, got {pixels.dtype} and {maps.dtype}")
    if steps < 1 or batch < 1:
        raise ValueError(f"steps and batch must be at least 1, got {steps} and {batch}")
    return len(maps), pixels.shape[1], pixels.shape[2]


def _checked(answer: Tensor, pictures: int, n: int) -> Tensor:
    if answer.ndim not in (2, 3) or answer.shape[:2] != (pictures, n):
        raise ValueError(f"respond must give ({pictures}, {n}) or ({pictures}, {n}, R), got {tuple(answer.shape)}")
    return answer
