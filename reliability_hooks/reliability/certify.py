"""From labelled detections to one certified threshold for each group: the sequences of tests of `guarantee`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .betting import STAKES, betting_log_p, binomial_log_p, needed
from .scores import image_codes

STEP = 0.01
"""Distance of the thresholds."""
LIMITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60, 100, 200, 300)
SPARE = 1.5
"""A learnt limit is the largest with so many times the evidence needed: a tighter one loses detections for nothing."""
NO_LIMIT = torch.iinfo(torch.int64).max
Risk = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(accepted (N,) bool, correct (N,) bool, image (N,) in 0 .. I - 1) -> loss of each image (I,) in [0, 1]."""


def miscoverage(accepted: Tensor, correct: Tensor, image: Tensor) -> Tensor:
    """Share of an image's right detections that are not accepted, 0 for an image without any."""
    images = int(image.max()) + 1 if len(image) else 0
    right, lost = (
        torch.zeros(images, dtype=torch.float64).index_add_(0, image, v.to(torch.float64))
        for v in (correct, correct & ~accepted)
    )
    return lost / right.clamp(min=1)


@dataclass(frozen=True)
class Certificate:
    """What a group got on one side.

    Attributes:
        threshold: infinite without certificate.
        limit: accepted detections of the group in one image.
        row: for `Guarantee.describe`, without group and side.
    """

    threshold: float
    limit: int
    row: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """Detections (N,) of a fit; groups, images (in random order) and frames inside them are numbered from 0."""

    r: Tensor
    correct: Tensor
    image: Tensor
    frame: Tensor
    group: Tensor

    def take(self, rows: Tensor) -> Rows:
        """The given rows."""
        return Rows(*(v[rows] for v in vars(self).values()))

    def of(self, group: int) -> Rows:
        """The rows of one group."""
        return self.take(self.group == group)

    def mirrored(self) -> Rows:
        """The same question for wrong ones at low reliability."""
        return Rows(1 - self.r, ~self.correct, self.image, self.frame, self.group)

    def within(self, limit: int | None) -> Rows:
        """The rows that a limit for each frame lets through."""
        if limit is None:
            return self
        return self.take(rank_in_frame(self.r, self.frame, self.group) < limit)

    def sums(self, thresholds: Tensor, values: Tensor) -> Tensor:
        """(I, T): for each image that occurs the sum of values over rows with r >= threshold (descending)."""
        place = image_codes(self.image, len(self.r))
        first = len(thresholds) - torch.searchsorted(thresholds.flip(0), self.r, right=True)
        images, columns = int(place.max()) + 1 if len(place) else 0, len(thresholds) + 1
        flat = torch.zeros(images * columns, dtype=torch.float64).index_add_(0, place * columns + first, values)
        return flat.view(images, columns).cumsum(1)[:, :-1]


@dataclass(frozen=True)
class Precision:
    """Certifies "at least `target` of the detections above the threshold are right"; see `Guarantee.fit`."""

    target: float
    delta: float
    unit: str
    max_per_image: int | None
    learn: float
    start: float | None

    def certify(self, rows: Rows, groups: list[int], below: list[float] | None = None) -> list[Certificate]:
        """One certificate for each group; thresholds stay above `below`, where the other side's verdicts begin."""
        start = self.target if self.start is None else self.start
        thresholds = start - STEP * torch.arange(math.floor(start / STEP + 1e-9) + 1, dtype=torch.float64)
        limits = dict.fromkeys(groups, self.max_per_image if self.unit == "image" else None)
        refused: dict[int, Certificate] = {}
        test = rows
        if self.unit == "image" and self.max_per_image is None and len(rows.r):
            images = image_codes(rows.image, len(rows.r))
            part = math.ceil(self.learn * (int(images.max()) + 1))
            seen, test = rows.take(images < part), rows.take(images >= part)
            scale = (1 - self.learn) / self.learn
            for g in groups:
                mine = seen.of(g)
                limits[g] = limit = self.learn_limit(mine, scale, self.delta / len(groups))
                hope = self.best_case(mine.within(limit), thresholds, limit) * scale
                if hope < -math.log(self.delta):  # its share of delta is better spent on the others
                    refused[g] = self.too_small(rows.of(g), start, self.delta, hope, limit)
        level = self.delta / max(1, len(groups) - len(refused))
        return [
            refused[g] if g in refused
            else self.one(rows.of(g), test.of(g), thresholds, level, limits[g], below[i] if below else -math.inf)
            for i, g in enumerate(groups)
        ]

    def learn_limit(self, rows: Rows, scale: float, level: float) -> int:
        """The limit to certify with, from images that take no part in it, one for every `scale` that do.

        A small limit gives much evidence from each image but accepts less: the largest that promises `SPARE` times
        the evidence needed is taken, or, where none does, the one that promises most.
        """
        first = torch.tensor([self.target if self.start is None else self.start], dtype=torch.float64)
        high = rows.r >= first
        most = int(rank_in_frame(rows.r, rows.frame, rows.group)[high].max()) + 1 if bool(high.any()) else 1
        promises = {}
        for limit in sorted({n for n in LIMITS if n < most} | {most}):
            kept = rows.within(limit)
            sums = kept.sums(first, kept.correct.to(torch.float64) - self.target)
            promises[limit] = float(torch.log1p(STAKES[0] * sums / self.worst(kept, limit)).sum()) * scale
        ample = [limit for limit, promise in promises.items() if promise >= -SPARE * math.log(level)]
        return max(ample) if ample else max(promises, key=lambda limit: promises[limit])

    def one(
        self, every: Rows, test: Rows, thresholds: Tensor, level: float, limit: int | None, below: float
    ) -> Certificate:
        """The sequence of tests of one group at its share of delta, on the rows `test` out of `every`."""
        start, total = float(thresholds[0]), len(test.r)
        test = test.within(limit)
        accepted = test.sums(thresholds, torch.ones_like(test.r))
        right = test.sums(thresholds, test.correct.to(torch.float64))
        n, hits = accepted.sum(0), right.sum(0)
        if limit is None:
            log_p = binomial_log_p(hits, n, self.target)
            hope = -float(n[0]) * math.log(self.target)
        else:
            gain = (right - self.target * accepted) / self.worst(test, limit)
            log_p = betting_log_p(gain, (1 - self.target) / self.target)
            hope = self.best_case(test, thresholds, limit)
        passed = int((log_p <= math.log(level) + 1e-12).to(torch.int64).cumprod(0).sum())
        passed = min(passed, int((thresholds > below).sum()))
        if passed == 0 and hope < -math.log(level) - 1e-12:
            return self.too_small(every, start, level, hope, limit)
        last = int((n == n[passed - 1]).nonzero()[0]) if passed else 0  # the highest that accepts the same
        rate = float(hits[last] / n[last])
        if passed == 0:
            images = int((accepted[:, 0] > 0).sum())
            message = f"not certified: {rate:.3f} of {int(n[0])} in {images} images right from {start:.2f} on"
            return Certificate(math.inf, 1, self.row(total, len(accepted), limit, message, rate))
        row = self.row(total, len(accepted), limit, "certified", rate)
        row |= {"threshold": float(thresholds[last]), "coverage": float(n[last]) / total}
        return Certificate(float(thresholds[last]), NO_LIMIT if limit is None else limit, row)

    def worst(self, rows: Rows, limit: int) -> float:
        """The most that an image can lose: all that the limit lets through in each of its frames is wrong."""
        frames = torch.unique(rows.frame)
        owner = torch.zeros(int(frames.max()) + 1 if len(frames) else 0, dtype=torch.int64)
        owner[rows.frame] = rows.image
        versions = int(torch.bincount(owner[frames]).max()) if len(frames) else 1
        return self.target * limit * versions

    def best_case(self, rows: Rows, thresholds: Tensor, limit: int) -> float:
        """The log wealth at the first threshold if every detection there had been right."""
        accepted = rows.sums(thresholds[:1], torch.ones_like(rows.r))
        return float(torch.log1p(STAKES[0] * (1 - self.target) * accepted / self.worst(rows, limit)).sum())

    def too_small(self, every: Rows, start: float, level: float, hope: float, limit: int | None) -> Certificate:
        """`hope`: the log evidence, had all been right; it grows in proportion to n."""
        high = every.r >= start
        images, detections = len(torch.unique(every.image[high])), int(high.sum())
        if limit is None:
            n = f"{needed(self.target, level)} detections, has {detections}"
        else:
            least = needed(self.target, level, "image")
            n = f"{math.ceil(-math.log(level) / hope * images) if hope > 0 else least} images, has {images}"
        message = f"not certifiable: needs n >= {n} with reliability >= {start:.2f}"
        rate = float(every.correct[high].double().mean()) if detections else None
        row = self.row(len(every.r), len(torch.unique(every.image)), limit, message, rate)
        return Certificate(math.inf, 1, row)

    def row(self, detections: int, images: int, limit: int | None, message: str, rate: float | None) -> dict[str, Any]:
        """A row without threshold."""
        return {
            "detections": detections, "images": images, "threshold": None, "promise": self.target,
            "observed": rate, "coverage": 0.0, "limit": limit, "message": message,
        }


def certify_risk(
    rows: Rows, risk: Risk, level: float, delta: float, start: float | None, ascending: bool
) -> Certificate:
    """The last threshold of the sequence at which the mean loss of an image is certified to be at most `level`."""
    first = (0.0 if ascending else 1.0) if start is None else start
    steps = STEP * torch.arange(round((1 - first if ascending else first) / STEP) + 1, dtype=torch.float64)
    thresholds = first + steps if ascending else first - steps
    image = image_codes(rows.image, len(rows.r))
    losses = torch.stack([risk(rows.r >= t, rows.correct, image).to(torch.float64) for t in thresholds], 1)
    if bool((~((losses >= 0) & (losses <= 1))).any()):
        raise ValueError("a risk must give losses in [0, 1], one for each image")
    log_p = betting_log_p((level - losses) / (1 - level), level / (1 - level))
    passed = int((log_p <= math.log(delta)).to(torch.int64).cumprod(0).sum())
    row: dict[str, Any] = {
        "detections": len(rows.r), "images": len(losses), "threshold": None, "promise": level,
        "observed": float(losses[:, max(passed - 1, 0)].mean()), "coverage": 0.0, "limit": None,
    }
    if passed == 0:
        n = needed(1 - level, delta, "image")
        small = f"not certifiable: needs n >= {n} images, has {len(losses)}"
        row["message"] = small if len(losses) < n else f"not certified at threshold {first:.2f}"
        return Certificate(math.inf, 1, row)
    threshold = float(thresholds[passed - 1])
    row |= {"threshold": threshold, "coverage": float((rows.r >= threshold).double().mean()), "message": "certified"}
    return Certificate(threshold, NO_LIMIT, row)


def rank_in_frame(value: Tensor, frame: Tensor, group: Tensor) -> Tensor:
    """(N,): how many rows of the same frame and group have a higher value (ties: come earlier); NaN is lowest.

    Frames and groups are small numbers from 0.
    """
    order = torch.argsort(value.nan_to_num(-1.0), descending=True, stable=True)
    pair = frame * (int(group.max()) + 1 if len(group) else 1) + group
    order = order[torch.argsort(pair[order], stable=True)]
    ranked = pair[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - torch.searchsorted(ranked, ranked)
    return rank
