"""Shortcut suspects: a place beside the object on which a class seems to rest, in image after image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from .checks import Floats
from .faithfulness import Respond
from .fills import fill_of, filled
from .object_frame import REACH
from .pairs import box_iou, overlapping_pairs

Rect = tuple[float, float, float, float]
PEAK = 0.5
"""A region is what hangs together with the peak and is at least half as high."""
MARGIN = 0.05
"""About the object, in sides of its box, that is never filled: the predicted outline may be a little off."""
REGION_OUT = 0.25
"""Sides of the box that a region must reach beyond it, for that to be said."""
LEAST = 0.2
"""Share of the region (in the picture, beside the object) that must be comparable with its mirror image."""


@dataclass(frozen=True, eq=False)
class Suspect:
    """Where the saliency of a class stands out most.

    Attributes:
        label: The class.
        rect: x1, y1, x2, y2 in units of the box, whose corners are (0, 0) and (1, 1).
        statistic: Of the peak cell: mean of the class less that of the others, in deviations of the images.
        p: Permutation test, corrected for all cells and classes.
        share: Mean share of the positive saliency in the rectangle, object left out.
        others: The same of the other classes, at the same sizes.
        top: Share of the class's images in which a cell of the rectangle is among the most salient tenth of a frame.
        images: Of the class.
    """

    label: int
    rect: Rect
    statistic: float
    p: float
    share: float
    others: float
    top: float
    images: int


def suspects(
    frames: ArrayLike, covers: ArrayLike, labels: ArrayLike, image_ids: ArrayLike, bins: ArrayLike,
    least_images: int = 5, draws: int = 2000, seed: int = 0,
) -> list[Suspect]:
    """The peak of each class that is seen in enough images.

    Each cell's share of the saliency, less the mean of all detections of that size, is averaged over the detections of
    a class in an image: a sample is a pair (image, class). The statistic is the difference of means between a class and
    all others over the cell's deviation, its distribution under chance that of the classes dealt out anew among the
    samples; the greatest statistic of all cells corrects for their number (max-T, Westfall and Young 1993), Holm's
    method for the number of classes.

    Args:
        frames: (N, c, c) share of the positive saliency of an instance in each cell of its frame, the object itself
            left out; NaN where there is none.
        covers: (N, c, c) share of each cell that lies in the picture; below .5 it is missing.
        labels: (N,) int.
        image_ids: (N,) int.
        bins: (N,) int, detections of like size.
        least_images: Fewer are not tested.
        draws: Of the permutation.
        seed: Of the permutation.

    Returns:
        One for each class tested, the most significant first.
    """
    frame, cover = np.asarray(frames, np.float64), np.asarray(covers, np.float64)
    known = np.isfinite(frame).all((1, 2))
    label, image, size = (np.asarray(x)[known] for x in (labels, image_ids, bins))
    frame, cover = frame[known], cover[known]
    cells = frame.shape[1]
    seen = (cover >= 0.5).reshape(-1, cells**2)
    value = np.where(seen, frame.reshape(-1, cells**2) / cover.reshape(-1, cells**2).clip(min=0.5), 0)
    rest = np.where(seen, value - _grouped(value, seen, size)[0][size], 0)
    pair, sample = np.unique(np.stack([image, label], 1), axis=0, return_inverse=True)
    sample = sample.reshape(-1)
    mean, count = _grouped(rest, seen, sample)
    there = (count > 0).astype(np.float64)
    total = there.sum(0).clip(min=1)
    middle = (mean * there).sum(0) / total
    deviation = np.sqrt((((mean - middle) * there) ** 2).sum(0) / total)
    deviation = deviation.clip(min=max(0.1 * float(deviation.max(initial=0)), 1e-9))  # cells that nothing ever lights

    def statistic(chosen: Floats) -> Floats:
        """(D, cells) of D choices of samples (D, S) in {0, 1}; cells known of fewer than `least_images` say nothing."""
        n, hits = chosen @ there, chosen @ (mean * there)
        left, others = total - n, (mean * there).sum(0) - hits
        apart = (hits / n.clip(min=1) - others / left.clip(min=1)) / deviation * np.sqrt(n)
        out: Floats = np.where((n >= least_images) & (left >= 1), apart, -np.inf)
        return out

    rng, found = np.random.default_rng(seed), []
    for c in np.unique(label):
        own = pair[:, 1] == c
        if own.sum() < least_images or own.all():
            continue
        real = statistic(own[None].astype(np.float64))[0]
        if not np.isfinite(real).any():
            continue
        dealt = np.argsort(rng.random((draws, len(own))), 1) < own.sum()
        chance = statistic(dealt.astype(np.float64)).max(1)
        p = (1 + (chance >= real.max()).sum()) / (1 + draws)
        at, place = _region(real.reshape(cells, cells))
        mine = label == c
        inside = (frame * at).sum((1, 2))
        others = [float(inside[~mine & (size == b)].mean()) for b in size[mine] if (~mine & (size == b)).any()]
        usual = float(np.mean(others)) if others else float("nan")
        found.append(Suspect(int(c), place, float(real.max()), float(p), float(inside[mine].mean()), usual,
                             float(np.isin(np.unique(image[mine]), image[mine & _top(frame, at)]).mean()),
                             int(own.sum())))  # fmt: skip
    corrected = holm([s.p for s in found])
    return sorted((Suspect(**{**vars(s), "p": p}) for s, p in zip(found, corrected, strict=True)),
                  key=lambda s: (s.p, -s.statistic))  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    out = np.empty(len(order))
    out[order] = np.maximum.accumulate(np.asarray(p, np.float64)[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return [float(v) for v in out]


def words(rect: Rect) -> str:
    """Where a rectangle lies: `below it`, `above and to the left of it`, `in its box beside its mask, above it`"""
    x, y = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
    sides = {"above": -rect[1], "below": rect[3] - 1, "to the left of": -rect[0], "to the right of": rect[2] - 1}
    beyond = [name for name, reach in sides.items() if reach >= REGION_OUT]
    if 0 <= x <= 1 and 0 <= y <= 1:
        if len(beyond) == 4:
            return "all about it"
        return f"in its box beside its mask{''.join(f', {name} it' for name in beyond)}"
    down = "above" if y < 0 else "below" if y > 1 else ""
    across = "to the left of" if x < 0 else "to the right of" if x > 1 else ""
    return f"{' and '.join(part for part in (down, across) if part)} it"


def company(
    rects: ArrayLike, image_ids: ArrayLike, partners: ArrayLike, gt_boxes: ArrayLike, gt_labels: ArrayLike,
    gt_image_ids: ArrayLike, share: float = 0.25,
) -> Mapping[int, float]:
    """What stands there: label -> share of the rectangles of which an annotated object's box covers at least `share`.

    Args:
        rects: (N, 4) xyxy pixels.
        image_ids: (N,).
        partners: (N,) row of the object that the rectangle belongs to, which does not count; -1 for none.
        gt_boxes: (G, 4).
        gt_labels: (G,); of unknown classes, -1, nothing is said.
        gt_image_ids: (G,).
        share: Of the rectangle.
    """
    own, truth = np.asarray(partners), np.asarray(gt_labels)
    if not len(own) or not len(truth):
        return {}
    covered = box_iou(np.asarray(rects, np.float64), np.asarray(gt_boxes, np.float64), np.ones(len(truth), bool))
    det, gt, _ = overlapping_pairs(rects, image_ids, gt_boxes, gt_image_ids, share, covered)
    some = (gt != own[det]) & (truth[gt] >= 0)
    each = np.unique(np.stack([det[some], truth[gt[some]]], 1), axis=0)
    labels, count = np.unique(each[:, 1], return_counts=True)
    order = np.argsort(-count, kind="stable")
    return {int(labels[k]): float(count[k]) / len(own) for k in order}


def holes(rect: Rect, box: Tensor, taken: Tensor) -> tuple[Tensor, Tensor] | None:
    """The region, and an equal area beside the object to compare it with.

    That is its mirror image about the middle of the box, of three mirrors (both axes, left and right, top and bottom)
    the one that leaves the most to compare; where none leaves `LEAST`, as of a region in the middle, the region moved
    by its own width or height.

    Args:
        rect: In units of the box.
        box: (4,) xyxy in the pixels of `taken`.
        taken: (h, w) bool: the object, and what lies beside the picture.

    Returns:
        Two (h, w) bool of equal area, free of what is taken; None where less than `LEAST` of the free region can be
        compared.
    """
    h, w = taken.shape
    x1, y1, x2, y2 = (float(v) for v in box)
    y, x = (torch.arange(n, device=taken.device) for n in (h, w))
    grow = max(1, round(MARGIN * max(x2 - x1, y2 - y1)))
    free = max_pool2d(taken.float()[None, None], 2 * grow + 1, 1, grow)[0, 0] == 0
    left, right = (x1 + share * (x2 - x1) for share in rect[::2])
    top, bottom = (y1 + share * (y2 - y1) for share in rect[1::2])
    region = ((y + 0.5 >= top) & (y + 0.5 < bottom))[:, None] & ((x + 0.5 >= left) & (x + 0.5 < right))
    turned_y, turned_x = round(y1 + y2) - 1 - y, round(x1 + x2) - 1 - x
    wide, high = round(right - left) + 1, round(bottom - top) + 1
    mirrors = [((v, u), (v, u)) for v, u in ((turned_y, turned_x), (y, turned_x), (turned_y, x))]
    moves = [((y, x + d), (y, x - d)) for d in (wide, -wide)] + [((y + d, x), (y - d, x)) for d in (high, -high)]
    for places in (mirrors, moves):
        pairs = []
        for there, back in places:
            usable = region & free & _taken_at(free, *there) & ~_taken_at(region, *there)
            pairs.append((usable, _taken_at(usable, *back)))
        best = max(pairs, key=lambda pair: int(pair[0].sum()))
        if int(best[0].sum()) >= max(1.0, LEAST * int((region & free).sum())):
            return best
    return None


def _taken_at(m: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """(h, w) bool: a mask read at rows (h,) and columns (w,), False beside it."""
    h, w = m.shape
    there: Tensor = ((v >= 0) & (v < h))[:, None] & ((u >= 0) & (u < w))
    return m[v.clamp(0, h - 1)][:, u.clamp(0, w - 1)] & there


@torch.no_grad()
def drops(respond: Respond, pixels: Tensor, region: Tensor, mirror: Tensor, fills: Sequence[str]) -> Floats:
    """(F, 2): the share by which the answer falls when the region, and when its mirror image, is filled.

    Args:
        respond: (3, 3, h, w) -> (3, 1): of the one instance, as in `faithfulness`.
        pixels: (3, h, w).
        region: (h, w) bool.
        mirror: (h, w) bool.
        fills: Names in `fills.FILLS`.

    Returns:
        NaN where the answer to the untouched picture is 0 or unknown.
    """
    out = np.full((len(fills), 2), np.nan)
    for k, name in enumerate(fills):
        colours = fill_of(name)[1](pixels)
        pictures = filled(pixels, torch.stack([torch.zeros_like(region), region, mirror]), colours)
        start, *after = respond(pictures)[:, 0].double().cpu().tolist()
        if start > 0:
            out[k] = [1 - value / start for value in after]
    return out


def _grouped(values: Floats, seen: NDArray[np.bool_], group: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(G, cells) mean of the values that are there in each group, and their number; 0 where there are none."""
    groups = int(group.max(initial=-1)) + 1
    total, count = np.zeros((groups, values.shape[1])), np.zeros((groups, values.shape[1]))
    np.add.at(total, group, values * seen)
    np.add.at(count, group, seen)
    return total / count.clip(min=1), count


def _top(frame: Floats, at: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) bool: a cell of the rectangle is among the most salient tenth."""
    edge = np.quantile(frame, 0.9, axis=(1, 2))
    peak = frame[:, at].max(1)
    out: NDArray[np.bool_] = (peak >= edge) & (peak > 0)
    return out


def _region(values: Floats) -> tuple[NDArray[np.bool_], Rect]:
    """The cells that hang together with the peak, and the rectangle about them in units of the box."""
    from scipy.ndimage import label as connected

    cells = len(values)
    parts, _ = connected(values >= PEAK * values.max() if values.max() > 0 else values >= values.max())
    part = parts == parts[np.unravel_index(values.argmax(), values.shape)]
    y, x = np.nonzero(part)
    start, step = 0.5 - REACH / 2, REACH / cells
    rect = (start + x.min() * step, start + y.min() * step, start + (x.max() + 1) * step, start + (y.max() + 1) * step)
    whole = np.zeros_like(part)
    whole[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    return whole, (float(rect[0]), float(rect[1]), float(rect[2]), float(rect[3]))
