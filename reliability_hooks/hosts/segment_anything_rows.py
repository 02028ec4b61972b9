"""Masks of a Segment Anything model as rows, and the pass of the mask decoder that each of them came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..frame import Prompted, View
from ..instances import Instances
from .rows import pool_features
from .segment_anything_tap import Pass, Prompts, Tap

CHUNK = 64
"""Prompts that are decoded at a time: `points_per_batch` of the automatic mask generators."""


@dataclass(frozen=True)
class Shown:
    """How an image, or a crop of one, lies in the square input of the model: at its upper left, padded or stretched.

    Attributes:
        size: (height, width) of the image or crop.
        side: Of the input.
        inside: (height, width) of the part of the input that shows it.
        corner: (x, y) of the crop in the image.
    """

    size: tuple[int, int]
    side: int
    inside: tuple[int, int]
    corner: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, size: tuple[int, int], side: int, stretched: bool, corner: tuple[float, float] = (0.0, 0.0)) -> Shown:
        """Its longer side fills the input; stretched, both do."""
        gain = side / max(size)
        inside = (side, side) if stretched else (int(size[0] * gain + 0.5), int(size[1] * gain + 0.5))
        return cls(size, side, inside, corner)

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) input pixels in an image pixel."""
        return self.inside[1] / self.size[1], self.inside[0] / self.size[0]

    def view(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> View:
        """Of the input (3, side, side); mean and deviation for pixels in [0, 1]."""
        r, g, b = mean
        sr, sg, sb = std
        return View(pixels[:, : self.inside[0], : self.inside[1]], self.scale, mean=(r, g, b), std=(sr, sg, sb))


@dataclass(frozen=True, eq=False)
class Origin:
    """The decoder's answer that each row is.

    Attributes:
        passes: All that there were.
        which: (N,) int64 the pass; -1 where it is not known.
        prompt: (N,) int64 the prompt of that pass.
        answer: (N,) int64 the answer to that prompt.
        shown: Of each row.
    """

    passes: Sequence[Pass]
    which: Tensor
    prompt: Tensor
    answer: Tensor
    shown: Sequence[Shown]

    @classmethod
    def of_pass(cls, made: Pass, shown: Shown) -> Origin:
        """Rows that are all answers of one pass, in their order."""
        b, c = made.ious.shape
        at = torch.arange(b * c, device=made.ious.device)
        return cls([made], torch.zeros_like(at), at // c, at % c, [shown] * (b * c))

    def take(self, rows: Tensor) -> Origin:
        """Some of them, by index."""
        shown = [self.shown[i] for i in rows.tolist()]
        return Origin(self.passes, self.which[rows], self.prompt[rows], self.answer[rows], shown)

    def groups(self) -> Iterator[tuple[Pass, Prompts, Tensor, Tensor]]:
        """Rows that can be decoded together: a pass of theirs, all its like's prompts, the rows, their prompts."""
        keys = [made.key for made in self.passes]
        for key in dict.fromkeys(keys):
            members = [i for i, k in enumerate(keys) if k == key]
            sizes = torch.tensor([len(self.passes[i].prompts) for i in members], device=self.which.device)
            start = torch.full((len(keys) + 1,), -1, device=self.which.device)
            start[torch.tensor(members, device=self.which.device)] = sizes.cumsum(0) - sizes
            first = start[self.which]  # row -1, unknown, is the last entry: -1
            rows = (first >= 0).nonzero()[:, 0]
            if len(rows):
                prompts = Prompts.cat([self.passes[i].prompts for i in members])
                yield self.passes[members[0]], prompts, rows, first[rows] + self.prompt[rows]


def to_instances(masks: Tensor, ious: Tensor, size: tuple[int, int]) -> Instances:
    """(N, H, W) bool masks with their predicted IoU (N,): one class, and the score a probability."""
    scores = ious.float().clamp(0, 1)
    labels = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    return Instances(tight_boxes(masks), scores, labels, masks=masks, image_size=size)


def tight_boxes(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, 4) float xyxy around all pixels that are inside; zeros for an empty mask."""
    ends = []
    for along in (1, 2):  # columns, rows
        some = masks.any(along)
        position = torch.arange(some.shape[1], device=masks.device)
        last = (some * (position + 1)).amax(1)
        first = torch.where(some, position, some.shape[1]).amin(1)
        ends.append((torch.minimum(first, last).float(), last.float()))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1)


def features(made: Pass, boxes: Tensor, shown: Shown) -> Tensor:
    """(N, D): the mean of the image's embedding in each box (N, 4)."""
    embedding = made.given["image_embeddings"][0].detach()
    return pool_features([embedding], boxes * boxes.new_tensor(shown.scale * 2), (shown.side, shown.side))


def prompted(tap: Tap, origin: Origin, ious: Tensor, boxes: Tensor, threshold: float) -> Prompted:
    """See `Frame.prompted`.

    Args:
        tap: Of the model.
        origin: Of the rows.
        ious: (N,) that it predicted for them.
        boxes: (N, 4) xyxy in the image.
        threshold: Of mask logits.
    """
    n, device = len(ious), ious.device
    known = torch.zeros(n, dtype=torch.bool, device=device)
    movable, own = known.clone(), torch.zeros(n, dtype=torch.int64, device=device)
    logits = torch.full((n, 1, 1), torch.nan, device=device)
    others, other_ious = known.new_zeros(n, 1, 1, 1), logits[..., 0].clone()
    with torch.no_grad():
        for made, prompts, rows, at in origin.groups():
            masks, given = _every(tap, prompts[at], made)
            k = given.shape[1]
            # asked for several, a prompt is answered by all but the first; for one, by the first or (SAM 2) the best
            nearest = (given - ious[rows, None]).abs().argmin(1)
            own[rows] = origin.answer[rows] + 1 if made.ious.shape[1] == k - 1 else nearest
            turn = (own[rows, None] + torch.arange(k, device=device)) % k
            masks = masks.gather(1, turn[..., None, None].expand_as(masks)) - threshold
            if logits.shape[1:] != masks.shape[2:]:
                logits = logits.expand(n, *masks.shape[2:]).clone()
                others = known.new_zeros(n, k - 1, *masks.shape[2:])
                other_ious = logits.new_full((n, k - 1), torch.nan)
            logits[rows], others[rows] = masks[:, 0], masks[:, 1:] > 0
            other_ious[rows], known[rows], movable[rows] = given.gather(1, turn)[:, 1:], True, prompts.movable
        beyond = _beyond(origin.shown, logits)
        logits = torch.where(beyond & known[:, None, None], -torch.inf, logits)
        others = others & ~beyond[:, None]
    again = partial(_reprompt, tap, origin, own, boxes, ~beyond, threshold)
    return Prompted(logits, torch.where(known, ious, torch.nan), others, other_ious, movable, again)


def _reprompt(
    tap: Tap, origin: Origin, own: Tensor, boxes: Tensor, visible: Tensor, threshold: float, moved: Tensor
) -> tuple[Tensor, Tensor]:
    """See `Frame.Reprompt`; `own` (N,) is the decoder's answer that each row is, `visible` its cells in the image."""
    j, n = moved.shape[:2]
    masks = torch.zeros(j, *visible.shape, dtype=torch.bool, device=boxes.device)
    ious = torch.full((j, n), torch.nan, device=boxes.device)
    corner = boxes.new_tensor([s.corner * 2 for s in origin.shown]).reshape(n, 4)
    scale = boxes.new_tensor([s.scale * 2 for s in origin.shown]).reshape(n, 4)
    before, after = (boxes - corner) * scale, (moved.to(boxes) - corner) * scale
    size = (before[:, 2:] - before[:, :2]).clamp(min=1)
    stretch = (after[..., 2:] - after[..., :2]).clamp(min=1) / size
    shift = after[..., :2] - before[:, :2] * stretch
    with torch.no_grad():
        for made, prompts, rows, at in origin.groups():
            every = prompts[at.repeat(j)].moved(stretch[:, rows].flatten(0, 1), shift[:, rows].flatten(0, 1))
            picked = partial(_own, own[rows].repeat(j), threshold)
            found, given = _every(tap, every, made, picked)
            masks[:, rows], ious[:, rows] = found.view(j, len(rows), *found.shape[1:]), given.view(j, len(rows))
    return masks & visible, ious


def _own(own: Tensor, threshold: float, start: int, masks: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (b, h, w) bool and predicted IoU (b,) of one answer to each of the prompts from `start` on."""
    rows = torch.arange(len(ious), device=ious.device)
    answer = own[start : start + len(ious)]
    return masks[rows, answer] > threshold, ious[rows, answer]


def _every(
    tap: Tap, prompts: Prompts, made: Pass, keep: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
) -> tuple[Tensor, Tensor]:
    """All answers to prompts on the image of a pass, or what `keep` leaves of them."""
    found = []
    for start in range(0, len(prompts), CHUNK):
        masks, ious = tap.decode(prompts[slice(start, start + CHUNK)], made.given)
        found.append((masks, ious) if keep is None else keep(start, masks, ious))
    masks, ious = (torch.cat(part) for part in zip(*found, strict=True))
    return masks, ious


def _beyond(shown: Sequence[Shown], logits: Tensor) -> Tensor:
    """(N, h, w) bool, cells of the grid whose centre lies in the padding."""
    h, w = logits.shape[1:]
    ends = logits.new_tensor([(s.inside[0] / s.side, s.inside[1] / s.side) for s in shown]).reshape(-1, 2)
    y, x = ((torch.arange(k, device=logits.device) + 0.5) / k for k in (h, w))
    return (y > ends[:, :1])[:, :, None] | (x > ends[:, 1:])[:, None, :]
