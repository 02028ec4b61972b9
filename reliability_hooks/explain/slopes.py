"""What each place does to an answer, from gradients at masked pictures.

Between a picture and what hides it an answer w has the slope sum_c dw/dx_c (x_c - hidden_c) in how far a place is kept.
Its mean over random masks is what a regression of answers on masks estimates as well (for Gaussian masks the two are
equal, Stein 1981), at every place at once, but only as far as small changes tell. Prior art: expected gradients (Erion
et al. 2021) average over pictures of a data set, I-GOS (Qi et al. 2020) follows such slopes to one mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..frame import Frame
from .base import Probe
from .masks import BLOCK
from .places import centres, pooled, softened
from .targets import Target

SHARE = 0.15
"""Of the budget: pictures that are graded, at most."""
MOST = 0.4
"""Of the budget: their backward passes, at most."""
FEWEST = 4
"""Pictures below which slopes say too little."""
CONTEXT = 2.0
"""Objects share a backward pass whose boxes, so many times as large, do not meet."""
PIXELS = 1 << 20
"""Of the pictures of a backward pass, whose graph takes much memory; one picture at least."""
REACH = 1 / 64
"""Standard deviation of the Gaussian over slopes, which flicker, as a share of a side."""
SMALL = 1e-6


class Slopes:
    """Running means of the slopes of the square roots of R = n * T answers on a lattice over the image.

    One backward pass serves all objects of a group that lie well apart; a place counts for the nearest of them.

    Args:
        frame: That can look.
        rows: (n,) of its instances.
        targets: T of them; those that read no raw output have slopes of 0.
        lattice: (h, w) places.
        budget: Pictures and backward passes together.

    Attributes:
        able: Whether there are gradients at all.
        pictures: How many are graded: the first of each of the first two blocks of masks, or of one where there is one.
        passes: Backward passes of each.
        count: Pictures so far.
    """

    def __init__(
        self, frame: Frame, rows: Tensor, targets: Sequence[Target], lattice: tuple[int, int], budget: int
    ) -> None:
        self.size = frame.instances.image_size or lattice
        boxes = frame.instances.boxes[rows].float().nan_to_num()
        self.groups, self.lattice, self.targets = groups(boxes), lattice, targets
        self.own = _nearest(boxes, self.groups, self.size, lattice)
        raw = sum(target.raw for target in targets)
        self.passes = raw * (int(self.groups.max()) + 1) if len(rows) else 0
        found = 2 * int(min(SHARE * budget, MOST * budget / max(1, self.passes)) / 2)
        self.able = frame.look is not None and frame.has("logits") and self.passes > 0
        self.pictures = min(found, BLOCK) if self.able and found >= FEWEST else 0
        self.each = self.pictures // 2 if budget - self.pictures * self.passes >= 2 * BLOCK else self.pictures
        self.sums = torch.zeros(2, len(rows) * len(targets), *lattice, device=boxes.device)
        self.count = 0

    @property
    def backwards(self) -> int:
        return self.count * self.passes

    def wanted(self, start: int, count: int) -> int:
        """How many of the masks from the start-th, which lie in one block, are to be graded."""
        left = self.each - start % BLOCK if start // BLOCK < 2 and start // BLOCK * self.each < self.pictures else 0
        return min(max(left, 0), count)

    def add(self, probe: Probe, shown: Tensor, change: Tensor) -> Tensor:
        """(B, n, T) answers to pictures (B, 3, h, w), whose slopes are added.

        Args:
            probe: Of the same rows and targets.
            shown: Masked pixels.
            change: What keeping a place does to them: the pixels less what hides them.
        """
        step = max(1, PIXELS // (shown.shape[2] * shown.shape[3]))
        parts = (slice(k, k + step) for k in range(0, len(shown), step))
        return torch.cat([self._few(probe, shown[some], change[some]) for some in parts])

    def mean(self) -> Tensor:
        """(R, h, w)."""
        return self.sums[0] / max(1, self.count)

    def error(self) -> Tensor:
        """(R, h, w) standard error of the mean; 0 without two pictures."""
        spread = (self.sums[1] / max(1, self.count) - self.mean().square()).clamp(min=0)
        return (spread / max(1, self.count - 1)).sqrt()

    def _few(self, probe: Probe, shown: Tensor, change: Tensor) -> Tensor:
        view = probe.reference.frame.view
        assert view is not None
        b, n, t = len(shown), len(self.groups), len(self.targets)
        whole = shown.new_tensor([[0.0, 0.0, shown.shape[3], shown.shape[2]]]).float()
        with torch.inference_mode(False), torch.enable_grad():
            slopes = torch.zeros(b, n, t, *self.lattice, device=self.sums.device)
            pixels = shown.clone().float().requires_grad_()
            answers = probe(pixels, graded=True)
            roots = answers.clamp(min=SMALL).sqrt()  # below it is lost and has no slope
            known = roots.isfinite().all(0)
            for k, target in enumerate(self.targets):
                for group in range(int(self.groups.max()) + 1) if target.raw else ():
                    members = (self.groups == group).nonzero()[:, 0]
                    total = roots[:, members[known[members, k]], k].sum()
                    gradient = _gradient(total, pixels) if total.requires_grad else torch.zeros_like(pixels)
                    slope = pooled((gradient * change.float()).sum(1), whole, view, self.size, self.lattice)
                    slopes[:, members, k] = slope[:, None] * self.own[members]
        soft = softened(slopes.flatten(1, 2), REACH)
        self.sums += torch.stack([soft.sum(0), soft.square().sum(0)])
        self.count += b
        return answers.detach()


def groups(boxes: Tensor) -> Tensor:
    """(n,) int64 from 0: of one group are boxes (n, 4) xyxy that, `CONTEXT` times as large, do not meet."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * CONTEXT
    low, high = middle - half, middle + half
    meet = ((low[:, None] < high) & (low < high[:, None])).all(2).cpu()
    found = torch.full((len(boxes),), -1, dtype=torch.int64)
    for k in range(len(boxes)):
        taken = found[:k][meet[k, :k]]
        free = torch.ones(k + 1, dtype=torch.bool)
        free[taken] = False
        found[k] = int(free.nonzero()[0, 0])
    return found.to(boxes.device)


def _gradient(total: Tensor, pixels: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(total, [pixels], retain_graph=True, allow_unused=True)
    return torch.zeros_like(pixels) if found is None else found.detach().nan_to_num()


def _nearest(boxes: Tensor, group: Tensor, size: tuple[int, int], lattice: tuple[int, int]) -> Tensor:
    """(n, h, w) bool: the places of which no other box of the group is nearer."""
    y, x = (centres(count, side, boxes.device) for count, side in zip(lattice, size, strict=True))
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    across, down = ((torch.maximum(low - at, at - high)).clamp(min=0) for low, at, high in ((x1, x, x2), (y1, y, y2)))
    far = down[:, :, None].square() + across[:, None].square()
    own = torch.ones_like(far, dtype=torch.bool)
    for one in range(int(group.max()) + 1) if len(group) else ():
        members = (group == one).nonzero()[:, 0]
        own[members] = far[members] <= far[members].amin(0)
    return own
