"""Which raw row did a kept box come from? One method for every host.

No framework hands over the logits and features of the boxes that it kept. Each kept box is found again among the raw
rows by its class score and its decoded box, both computed as the framework does; a box that fits no row, or more than
one, is left without evidence (NaN) rather than given somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..frame import Candidates
from ..instances import Head, Instances

SCORE_TOLERANCE = 1e-5
BOX_TOLERANCE = 0.05  # px of the original image: rounding, not neighbouring anchors
CANDIDATE_FLOOR = 0.01
MAX_CANDIDATES = 3000


@dataclass(frozen=True, eq=False)
class RawRows:
    """The rows of one image before suppression.

    Attributes:
        scores: (R, K), column k the final score of class k; 0 where a class can never be detected (background).
        logits: (R, K).
        decode: (rows (n,), labels (n,)) -> (n, 4) final boxes, xyxy in original pixels.
        head: How logits become scores.
        background: Column of the background.
        features: (rows (n,), boxes (n, 4) in original pixels) -> (n, D), or None.
    """

    scores: Tensor
    logits: Tensor
    decode: Callable[[Tensor, Tensor], Tensor]
    head: Head
    background: int | None = None
    features: Callable[[Tensor, Tensor], Tensor] | None = None

    @cached_property
    def best(self) -> Tensor:
        """(R,) the highest score of each row: what lets most rows be passed over at once."""
        return self.scores.amax(1)


def match_rows(boxes: Tensor, scores: Tensor, labels: Tensor, raw: RawRows) -> Tensor:
    """(N,) index of the raw row of each kept box; -1 where none or several fit."""
    # Only a (row, label) that scores as high as the lowest kept box of that label can be one of the kept boxes.
    floor = raw.scores.new_full((raw.scores.shape[1],), torch.inf)
    floor = floor.scatter_reduce(0, labels, (scores - SCORE_TOLERANCE).to(floor.dtype), "amin")
    rows = (raw.best >= floor.min()).nonzero()[:, 0]
    row, label = (raw.scores[rows] >= floor).nonzero(as_tuple=True)
    row = rows[row]
    decoded = raw.decode(row, label)
    pair, kept = _join(_box_key(decoded, label), _box_key(boxes, labels), 4 * BOX_TOLERANCE)
    row, label = row[pair], label[pair]
    same = ((decoded[pair].float() - boxes[kept].float()).abs() <= BOX_TOLERANCE).all(1) & (label == labels[kept])
    same &= (raw.scores[row, label].float() - scores[kept].float()).abs() <= SCORE_TOLERANCE
    row, kept = row[same], kept[same]
    found = torch.full_like(labels, -1)
    found[kept] = row
    found[torch.bincount(kept, minlength=len(labels)) != 1] = -1
    return found


def _box_key(boxes: Tensor, labels: Tensor) -> Tensor:
    """(N,) one number for a box and its label; boxes that agree within t differ by at most 4 t."""
    return boxes.double().sum(1) + 1e7 * labels  # labels lie further apart than any image is wide


def _join(left: Tensor, right: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """All pairs (i, j) with |left[i] - right[j]| <= tolerance, by bisection instead of a table of left x right."""
    right, order = right.sort()
    first = torch.searchsorted(right, left - tolerance)
    count = torch.searchsorted(right, left + tolerance, right=True) - first
    i = torch.arange(len(left), device=left.device).repeat_interleave(count)
    within = torch.arange(len(i), device=left.device) - (count.cumsum(0) - count)[i]
    return i, order[first[i] + within]


def with_evidence(kept: Instances, raw: RawRows) -> Instances:
    """`kept` with logits and features of the raw row that each box came from; NaN where it is not found."""
    rows = match_rows(kept.boxes, kept.scores, kept.labels, raw)
    found = rows >= 0
    rows = rows[found]

    def scatter(values: Tensor) -> Tensor:
        full = torch.full((len(kept), values.shape[1]), torch.nan, device=values.device)
        full[found] = values.float()
        return full

    return kept.replace(
        logits=scatter(raw.logits[rows]),
        head=raw.head,
        background=raw.background,
        features=None if raw.features is None else scatter(raw.features(rows, kept.boxes[found])),
    )


def candidates(raw: RawRows) -> Candidates:
    """All (box, class) pairs with a score above `CANDIDATE_FLOOR`, at most the `MAX_CANDIDATES` highest."""
    rows = (raw.best > CANDIDATE_FLOOR).nonzero()[:, 0]
    if len(rows) > MAX_CANDIDATES:  # the highest pairs lie in the highest rows
        rows = rows[raw.best[rows].topk(MAX_CANDIDATES).indices]
    row, labels = (raw.scores[rows] > CANDIDATE_FLOOR).nonzero(as_tuple=True)
    rows = rows[row]
    scores = raw.scores[rows, labels].float()
    if len(scores) > MAX_CANDIDATES:
        scores, top = scores.topk(MAX_CANDIDATES)
        rows, labels = rows[top], labels[top]
    return Candidates(boxes=raw.decode(rows, labels).float(), scores=scores, labels=labels)


def pool_features(maps: Sequence[Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, sum of channels): the mean of each feature map inside each box, levels side by side.

    Args:
        maps: Feature maps (C, h, w) of one image, each covering the whole input.
        boxes: (N, 4) xyxy in input pixels.
        size: (height, width) of the input.
    """
    relative = boxes.float().nan_to_num() / boxes.new_tensor([size[1], size[0]] * 2, dtype=torch.float32)
    parts = []
    for level in maps:
        _, h, w = level.shape
        x1, y1, x2, y2 = (relative * relative.new_tensor([w, h, w, h])).unbind(1)
        # One product for each level: exact, and several times faster than roi_align on many channels (CPU)
        weights = _cover(y1, y2, h)[:, :, None] * _cover(x1, x2, w)[:, None, :]
        with torch.autocast(boxes.device.type, enabled=False):
            parts.append(weights.flatten(1) @ level.float().flatten(1).T)
    return torch.cat(parts, 1)


def _cover(low: Tensor, high: Tensor, n: int) -> Tensor:
    """(N, n) the share of each interval [low, high] that lies in each of the cells [k, k + 1]; rows sum to 1."""
    low = low.clamp(0, n - 0.01)
    high = torch.maximum(high.clamp(max=n), low + 0.01)  # what has no width, or lies outside, is its nearest point
    edges = torch.arange(n + 1, device=low.device, dtype=low.dtype)
    return edges.clamp(low[:, None], high[:, None]).diff(dim=1) / (high - low)[:, None]
