"""What the boxes before non-maximum suppression say about a box that was kept (MetaDetect)."""

from __future__ import annotations

from math import nan
from typing import ClassVar

import torch
from torch import Tensor

from ..frame import Candidates, Frame
from .base import Signal
from .geometry import areas, intersections

SUPPORT_IOU = 0.45
"""A candidate with at least this IoU speaks of the same object (the suppression threshold of MetaDetect)."""
PARTIAL_IOU = 0.1
"""From here up to `SUPPORT_IOU` it overlaps in part: a rival for where the object is."""
_MATRIX = 2**18
"""Most IoU computed at a time: 1 MiB for each intermediate matrix, which a processor's cache holds."""


class CandidateStatistics(Signal):
    """Agreement among the raw boxes that stand behind each kept one (Schubert, Kahl, Rottmann 2021, MetaDetect).

    *Supporters* of a kept box: candidates of its class with IoU >= 0.45; the box itself is normally one of them.
    *Competitors*: candidates of another class with IoU >= 0.45. *Partial* ones: its class, 0.1 <= IoU < 0.45.
    Boxes are clipped to the image first, as kept boxes usually are. Candidates with a value that is not finite do
    not count. Deviations are those of the population (0 for a single one).

    Undefined, hence NaN: the whole row where the kept box is not finite; means, deviations and extremes over no
    supporters at all; `other_ratio` where the kept score is 0 or NaN.

    Columns (N,): `count` log(1 + supporters); `score_sum|mean|std|min|max` of the supporters; `x|y|w|h_offset` mean
    of (theirs - ours) over our width (x, w) or height (y, h), x and y being the centre; `x|y|w|h_std` its deviation;
    `iou_mean|min|std` of the supporters with the kept box; `other_class` highest score of a competitor, 0 for none;
    `other_ratio` that over our score; `other_sum` of the competitors' scores; `partial` highest score of a partial
    candidate, 0 for none.
    """

    name = "candidates"
    requires = ("candidates",)
    columns: ClassVar = {
        "candidates/count": ("few raw boxes behind it", "many raw boxes behind it"),
        "candidates/score_sum": ("little support from raw boxes", "much support from raw boxes"),
        "candidates/score_mean": ("raw boxes are unsure", "raw boxes are sure"),
        "candidates/score_std": ("raw scores agree", "raw scores disagree"),
        "candidates/score_min": ("some raw boxes are unsure", "all raw boxes are sure"),
        "candidates/score_max": ("no raw box is sure", "a raw box here is surer"),
        "candidates/x_offset": ("raw boxes lie further left", "raw boxes lie further right"),
        "candidates/y_offset": ("raw boxes lie higher", "raw boxes lie lower"),
        "candidates/w_offset": ("raw boxes are narrower", "raw boxes are wider"),
        "candidates/h_offset": ("raw boxes are shorter", "raw boxes are taller"),
        "candidates/x_std": ("horizontal place agreed", "horizontal place disputed"),
        "candidates/y_std": ("vertical place agreed", "vertical place disputed"),
        "candidates/w_std": ("width agreed", "width disputed"),
        "candidates/h_std": ("height agreed", "height disputed"),
        "candidates/iou_mean": ("raw boxes scatter", "raw boxes coincide"),
        "candidates/iou_min": ("some raw boxes lie apart", "no raw box lies apart"),
        "candidates/iou_std": ("overlap of raw boxes even", "overlap of raw boxes uneven"),
        "candidates/other_class": ("one class only", "another class competes"),
        "candidates/other_ratio": ("no rival class", "rival class nearly as sure"),
        "candidates/other_sum": ("one class only", "other classes add up"),
        "candidates/partial": ("no other raw box beside it", "a sure raw box overlaps in part"),
    }

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        kept, candidates = frame.instances, frame.candidates
        if candidates is None:
            raise ValueError("the frame has no candidates (boxes before suppression): skip this signal")
        boxes, raw, scores = kept.boxes.float(), candidates.boxes.float(), candidates.scores.float()
        broken = ~boxes.isfinite().all(1)
        # what is not finite becomes NaN, times zero; NaN compares false, so that the candidate overlaps nothing
        wrong = (raw.sum(1) + scores) * 0
        if kept.image_size is not None:
            low, high = boxes.new_tensor([[0, 0, 0, 0], kept.image_size[::-1] * 2])
            boxes, raw = boxes.clamp(low, high), raw.clamp(low, high)
        pool = Candidates(raw + wrong[:, None], scores, candidates.labels)
        table = _statistics(boxes, kept.scores.float(), kept.labels, pool)
        return dict(zip(self.columns, table.masked_fill_(broken, nan), strict=True))


def _pairs(boxes: Tensor, pool: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of (n, 4) and of (M, 4), and the IoU, of all pairs with at least `PARTIAL_IOU`; few, in order of n."""
    own, theirs = areas(boxes), areas(pool)
    found = []
    step = max(1, _MATRIX // max(len(pool), 1))
    for start in range(0, max(len(boxes), 1), step):
        common = intersections(boxes[start : start + step], pool)
        iou = common.div_((own[start : start + step, None] + theirs).sub_(common))
        row, candidate = (iou >= PARTIAL_IOU).nonzero(as_tuple=True)
        found.append((row + start, candidate, iou[row, candidate]))
    if len(found) == 1:
        return found[0]
    row, candidate, iou = (torch.cat(part) for part in zip(*found, strict=True))
    return row, candidate, iou


def _statistics(boxes: Tensor, scores: Tensor, labels: Tensor, pool: Candidates) -> Tensor:
    """(columns, N) in the order of `CandidateStatistics.columns`."""
    n = len(boxes)
    row, candidate, iou = _pairs(boxes, pool.boxes)
    score = pool.scores.index_select(0, candidate)
    same = labels.index_select(0, row) == pool.labels.index_select(0, candidate)
    close = iou >= SUPPORT_IOU
    # the strongest of each kind: no supporter (other class, or its class but beside it) adds to a box, 0 for none
    rivals = torch.stack([score * (close & ~same), score * (same & ~close)], 1)
    strongest = _largest(rivals, row, n, 0.0)
    other_sum = _sum(rivals[:, 0], row, n)

    supports = (same & close).nonzero().squeeze(1)
    row, iou, score = (values.index_select(0, supports) for values in (row, iou, score))
    to_box = boxes.index_select(0, row)
    offset = pool.boxes.index_select(0, candidate.index_select(0, supports)) - to_box
    low, high = offset[:, :2], offset[:, 2:]
    size = to_box[:, 2:] - to_box[:, :2]
    values = torch.cat([score[:, None], iou[:, None], (low + high) / (2 * size), (high - low) / size], 1)
    count = _sum(torch.ones_like(score), row, n)
    total = _sum(values, row, n)
    mean = total / count[:, None]
    spread = _sum((values - mean.index_select(0, row)).square_(), row, n)
    std = (spread / count[:, None]).sqrt()
    extremes = _largest(torch.cat([values[:, :1], -values[:, :2]], 1), row, n, nan)
    own = torch.where(scores > 0, scores, nan)
    return torch.stack([
        count.log1p(), total[:, 0], mean[:, 0], std[:, 0], -extremes[:, 1], extremes[:, 0],
        *mean[:, 2:].T, *std[:, 2:].T, mean[:, 1], -extremes[:, 2], std[:, 1],
        strongest[:, 0], strongest[:, 0] / own, other_sum, strongest[:, 1],
    ])  # fmt: skip


def _sum(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """(P, ...) -> (groups, ...) sums."""
    return values.new_zeros(groups, *values.shape[1:]).index_add_(0, group, values)


def _largest(values: Tensor, group: Tensor, groups: int, empty: float) -> Tensor:
    """(P, k) -> (groups, k) maxima; `empty` for a group without members."""
    result = values.new_full((groups, values.shape[1]), empty)
    return result.scatter_reduce_(0, group[:, None].expand_as(values), values, "amax", include_self=False)
