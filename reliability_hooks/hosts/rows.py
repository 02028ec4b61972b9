"""Which raw row did a kept box come from? One method for every host.

No framework hands over the logits and features of the boxes that it kept. Each kept box is found again among the raw
rows by its class score and its decoded box, both computed as the framework does; a box that fits no row, or more than
one, is left without evidence (NaN) rather than given somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..frame import Candidates, Classifier, Frame, Pool
from ..instances import Head, Instances
from .look import Kept, LookAt, look_at

SCORE_TOLERANCE = 1e-5
BOX_TOLERANCE = 0.05  # px of the original image: rounding, not neighbouring anchors
CANDIDATE_FLOOR = 0.01
POOL_FLOOR = 0.003
MAX_CANDIDATES = 3000
CELLS = 1 << 22  # of the table kept boxes x pairs that is held at once


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
        classifier: rows (n,) -> the last layer at these rows, or None.
    """

    scores: Tensor
    logits: Tensor
    decode: Callable[[Tensor, Tensor], Tensor]
    head: Head
    background: int | None = None
    features: Callable[[Tensor, Tensor], Tensor] | None = None
    classifier: Callable[[Tensor], Classifier] | None = None

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, labels and scores (M,) of all (row, class) pairs above `CANDIDATE_FLOOR`: one pass serves all uses."""
        return self.above(CANDIDATE_FLOOR)

    def above(self, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, labels and scores (M,) of all (row, class) pairs with a score above `floor`."""
        rows = (self.best > floor).nonzero()[:, 0]
        some = self.scores[rows]
        at, labels = (some > floor).nonzero(as_tuple=True)
        return rows[at], labels, some[at, labels].float()

    @cached_property
    def best(self) -> Tensor:
        """(R,) the highest score of each row: most rows can be passed over, which saves a pass over all classes."""
        return self.scores.amax(1)


def match_rows(boxes: Tensor, scores: Tensor, labels: Tensor, raw: RawRows) -> Tensor:
    """(N,) index of the raw row of each kept box; -1 where none or several fit."""
    found = torch.full_like(labels, -1)
    if len(labels) == 0:
        return found
    # Only a pair that scores as high as the lowest kept box of its label can be one of the kept boxes
    floor = torch.full((raw.scores.shape[1],), torch.inf, device=labels.device)
    floor = floor.scatter_reduce(0, labels, scores.float() - SCORE_TOLERANCE, "amin")
    lowest = float(floor.min())
    rows, names, values = raw.pairs if lowest > CANDIDATE_FLOOR else raw.above(lowest)
    high = values >= floor[names]
    rows, names, values = rows[high], names[high], values[high]
    hits = []
    size = CELLS // max(len(rows), 1) + 1
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        near = ((values - scores[part, None]).abs() <= SCORE_TOLERANCE) & (names == labels[part, None])
        kept, pair = near.nonzero(as_tuple=True)
        hits.append((kept + start, pair))
    kept, pair = hits[0] if len(hits) == 1 else (torch.cat(x) for x in zip(*hits, strict=True))
    row = rows[pair]
    same = ((raw.decode(row, names[pair]).float() - boxes[kept].float()).abs() <= BOX_TOLERANCE).all(1)
    row, kept = row[same], kept[same]
    found[kept] = row
    found[torch.bincount(kept, minlength=len(labels)) != 1] = -1
    return found


def with_evidence(kept: Instances, raw: RawRows, look: LookAt | None = None) -> Frame:
    """All that the raw rows tell of `kept`: NaN, in logits, features and classifier, for a box whose row is not found.

    Args:
        kept: The detections.
        raw: The rows that they came from.
        look: How the host looks at rows in other pixels.
    """
    rows = match_rows(kept.boxes, kept.scores, kept.labels, raw)
    found = rows >= 0
    rows = rows[found]

    def scatter(values: Tensor) -> Tensor:
        full = torch.full((len(kept), values.shape[1]), torch.nan, device=values.device)
        full[found] = values.float()
        return full

    last = None if raw.classifier is None else raw.classifier(rows)
    if last is not None:
        which = torch.zeros_like(kept.labels)
        which[found] = last.which
        last = replace(last, inputs=scatter(last.inputs), which=which)
    instances = kept.replace(
        logits=scatter(raw.logits[rows]),
        head=raw.head,
        background=raw.background,
        features=None if raw.features is None else scatter(raw.features(rows, kept.boxes[found])),
    )
    return Frame(
        instances=instances,
        candidates=candidates(raw),
        look=None if look is None else look_at(look, Kept(rows, kept.labels[found], kept.boxes[found]), found),
        classifier=last,
        pool=partial(pool, raw),
    )


def pool(raw: RawRows) -> Pool:
    """Rows whose best class scores above `POOL_FLOOR`, with their box for that class; at most `MAX_CANDIDATES`."""
    rows = (raw.best > POOL_FLOOR).nonzero()[:, 0]
    if len(rows) > MAX_CANDIDATES:
        rows = rows[raw.best[rows].topk(MAX_CANDIDATES).indices]
    return Pool(raw.decode(rows, raw.scores[rows].argmax(1)).float(), raw.logits[rows].float())


def candidates(raw: RawRows) -> Candidates:
    """All (box, class) pairs with a score above `CANDIDATE_FLOOR`, at most the `MAX_CANDIDATES` highest."""
    rows, labels, scores = raw.pairs
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
