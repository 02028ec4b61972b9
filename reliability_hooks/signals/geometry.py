"""Where an object lies in its image, how big it is, what it overlaps, and how its mask fits its box."""

from __future__ import annotations

from math import ceil, nan
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vecdot
from torch.nn.functional import pad

from ..frame import Frame
from .base import Signal

TOUCHING = 0.005
"""A side this near to the image's border (as a share of the image's side) touches it: the object may be cut off."""
NEAR = 2.0
"""A neighbour has its centre within the box enlarged by this factor about its own centre."""
MASK_SIDE = 128
"""Larger masks are read at every n-th pixel: bounds the cost, and keeps boundary lengths comparable between hosts."""


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) common area of every box of `a` (N, 4) with every box of `b` (M, 4), both xyxy; px^2, 0 if apart."""
    ax1, ay1, ax2, ay2 = a.T.contiguous().unsqueeze(-1)
    bx1, by1, bx2, by2 = b.T.contiguous()  # whole planes: three times as fast as a trailing dimension of two
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    return width.mul_((torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0))


def areas(boxes: Tensor) -> Tensor:
    """(N, 4) xyxy -> (N,) area in px^2; 0 for a box without extent."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x2 - x1).clamp_(min=0).mul_((y2 - y1).clamp_(min=0))


def ious(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) intersection over union of every box of `a` (N, 4) with every box of `b` (M, 4), both xyxy; in [0, 1]."""
    common = intersections(a, b)
    return common / (areas(a)[:, None] + areas(b) - common).clamp(min=1e-9)


class Geometry(Signal):
    """Size, place, overlap, rank and mask shape of each object.

    Lengths have a floor of one pixel before a logarithm. Undefined, hence NaN: the whole row where the box is not
    finite; `rank` where the score is NaN; what is relative to the image where `image_size` is None; the mask columns
    without masks; `mask_boundary` of an empty mask. Objects with a box that is not finite are no neighbours.

    Columns (N,): `area` log(box area / image area); `width`, `height` log px; `aspect` log(width / height);
    `center_x`, `center_y` as a share of the image; `border` the smallest distance to a border as a share of the
    image's side, 0 outside; `truncated` share of the four sides that touch the border; `overlap` greatest IoU with
    another object; `overlap_other_class` the same with another class; `covered` greatest share of the box covered by
    one other; `crowding` log(1 + neighbours); `rank` share of the other objects with a higher score; `count`
    log(1 + N); `mask_fill` mask area / box area; `mask_boundary` boundary length / sqrt(area) of the mask (a square
    has 4, counted along pixel edges); `mask_fit` IoU of the box with the tight box of the mask.
    """

    name = "geometry"
    columns: ClassVar = {
        "geometry/area": ("small", "large"),
        "geometry/width": ("narrow", "wide"),
        "geometry/height": ("low", "tall"),
        "geometry/aspect": ("upright shape", "lying shape"),
        "geometry/center_x": ("far left", "far right"),
        "geometry/center_y": ("at the top", "at the bottom"),
        "geometry/border": ("at the image border", "away from the border"),
        "geometry/truncated": ("whole", "cut off by the image border"),
        "geometry/overlap": ("stands alone", "overlaps another object"),
        "geometry/overlap_other_class": ("no other class on it", "overlaps an object of another class"),
        "geometry/covered": ("uncovered", "covered by another object"),
        "geometry/crowding": ("isolated", "crowded"),
        "geometry/rank": ("among the surest of its image", "among the least sure of its image"),
        "geometry/count": ("few objects", "many objects"),
        "geometry/mask_fill": ("mask fills little of the box", "mask fills the box"),
        "geometry/mask_boundary": ("compact mask", "ragged mask"),
        "geometry/mask_fit": ("mask and box disagree", "mask and box agree"),
    }

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        found = frame.instances
        boxes, scores, n = found.boxes.float(), found.scores.float(), len(found)
        finite = boxes.isfinite().all(1, keepdim=True)
        boxes = torch.where(finite, boxes, nan)  # NaN compares false: no neighbour of any other
        corner, opposite = boxes[:, :2], boxes[:, 2:]
        center, size = (corner + opposite) / 2, (opposite - corner).clamp(min=1)
        log_size = size.log()
        image = boxes.new_tensor([nan, nan] if found.image_size is None else found.image_size[::-1])
        margins = torch.cat([corner, image - opposite], 1) / image.repeat(2)
        relative = center / image

        common = intersections(boxes, boxes).nan_to_num(0).fill_diagonal_(0) if n else boxes.new_zeros(0, 0)
        own = areas(boxes)
        iou = common / (own + own[:, None] - common).clamp(min=1e-9)
        iou = iou.nan_to_num(0)
        other = found.labels != found.labels[:, None]
        near = ((center - center[:, None]).abs() <= size[:, None] * (NEAR / 2)).all(-1)
        ranked = (scores > scores[:, None]).sum(1) / max(n - 1, 1)

        values = {
            "area": (size / image).log().sum(1),
            "width": log_size[:, 0],
            "height": log_size[:, 1],
            "aspect": log_size[:, 0] - log_size[:, 1],
            "center_x": relative[:, 0],
            "center_y": relative[:, 1],
            "border": margins.amin(1).clamp(min=0),
            "truncated": torch.where(margins.isnan(), nan, (margins <= TOUCHING).float()).mean(1),
            "overlap": _most(iou),
            "overlap_other_class": _most(iou * other),
            "covered": _most(common) / own.clamp(min=1e-9),
            "crowding": (near.sum(1) - 1).log1p(),  # without itself
            "rank": torch.where(scores.isnan(), nan, ranked),
            "count": boxes.new_full((n,), n).log1p(),
            **_mask_shape(found.masks, boxes, image),
        }
        table = torch.stack(list(values.values()))
        table.masked_fill_(~finite.squeeze(1), nan)
        return {f"{self.name}/{key}": row for key, row in zip(values, table, strict=True)}


def _most(pairs: Tensor) -> Tensor:
    """(N, N) -> (N,) the largest of each row; 0 where there is no other object."""
    return pad(pairs, (0, 1)).amax(1)


def _mask_shape(masks: Tensor | None, boxes: Tensor, image: Tensor) -> dict[str, Tensor]:
    """Mask columns from (N, h, w) masks over an image of size `image` (x, y), with the boxes in its pixels."""
    if masks is None:
        return dict.fromkeys(("mask_fill", "mask_boundary", "mask_fit"), boxes.new_full((len(boxes),), nan))
    step = max(1, ceil(max(masks.shape[1:]) / MASK_SIDE))
    inside = masks[:, ::step, ::step].float()
    height, width = inside.shape[1:]
    pixel_x, pixel_y = image / image.new_tensor([width, height])
    rows, columns = inside.sum(2), inside.sum(1)
    count = rows.sum(1)
    area = count * (pixel_x * pixel_y)

    # a pixel edge is on the boundary unless both its pixels are inside: 2 (count - pairs of neighbours inside)
    flat = inside.flatten(1)
    wrapped = (inside[:, 1:, 0] * inside[:, :-1, -1]).sum(1)  # the end of a row is no neighbour of the next's start
    beside = vecdot(flat[:, 1:], flat[:, :-1]) - wrapped
    below = vecdot(flat[:, width:], flat[:, :-width])
    boundary = 2 * ((count - beside) * pixel_y + (count - below) * pixel_x)
    (left, right), (top, bottom) = _extent(columns), _extent(rows)
    tight = torch.stack([left * pixel_x, top * pixel_y, right * pixel_x, bottom * pixel_y], 1)
    low, high = torch.maximum(tight[:, :2], boxes[:, :2]), torch.minimum(tight[:, 2:], boxes[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    box_area = areas(boxes)
    return {
        "mask_fill": area / box_area.clamp(min=1),
        "mask_boundary": boundary / area.sqrt(),
        "mask_fit": common / (areas(tight) + box_area - common).clamp(min=1e-9),
    }


def _extent(profile: Tensor) -> tuple[Tensor, Tensor]:
    """(N, L) profile of a mask -> first and one past the last position where it is not zero; (0, 0) for none."""
    some = profile > 0
    position = torch.arange(profile.shape[1], device=profile.device)
    last = (some * (position + 1)).amax(1)
    first = torch.where(some, position, profile.shape[1]).amin(1)
    return torch.minimum(first, last).float(), last.float()
