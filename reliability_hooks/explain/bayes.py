"""Bayesian RISE: few random masks, read with what the object's shape and gradients let one expect.

Prior art: GP regression that refines another method's map (Kikuchi et al. 2022, BOREx) and Bayesian linear models of
perturbations (Zhao et al. 2021, BayLIME; Slack et al. 2021) explain one class of a whole image. Here one set of masks
serves all instances and targets of an image, the prior's shapes and amplitudes come from each instance's own mask and
gradients, the evidence decides for each how far to believe them, and the pictures that are shown tell twice: by their
answers and by their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..frame import Frame
from .base import Heat, Heats
from .baselines import BoxGaussian, OwnMask
from .effects import Effects, effects
from .masking import Answers, Masking
from .masks import BLOCK, GridMasks, Masks, NestedMasks
from .places import centres, pooled, softened
from .slopes import Slopes
from .targets import Target

SIDE = 64
"""Places of the map along either side of the image."""
MOST = 1024
"""Masks that are read: the work grows with their third power."""
NEAR = 2.0
"""Side of the rectangle with finer cells about an object, over that of its box."""
FLOOR = 0.1
"""Of the amplitude, where the prior expects nothing."""
TRUSTED = 24
"""Graded pictures from which slopes count as much as the regression."""
OWN = 0.12
"""Of the object itself, over the maximum of the map, where regression and slopes lie evenly on it."""


class BayesRISE(Masking):
    """What places do to the target under random masks: a regression, slopes, and the object itself, added up.

    The regression is `effects.effects`, of the square root of the target: of a product of probabilities that is nearer
    to a sum, and it does not run away near 0 as the logarithm does. Shapes that the effect may have: the slopes, the
    mask, a Gaussian in the box. Amplitudes of the remainder that the evidence chooses from: the same everywhere, about
    the box, where the slopes are.

    The slopes (`slopes.Slopes`) are the gradients at some of the same pictures. Their backward passes count as
    pictures of the budget. Without gradients, regression, mask and box alone.

    Every other block of masks has half as many cells over the image, and as many again about each object
    (`masks.NestedMasks`): small objects are then taken apart as large ones are.

    The map is the sum of posterior mean and mean slope, each 0 where it is negative and over its maximum. To that over
    its maximum the predicted mask is added, `OWN` times the squared cosine between the two, so that a cue that lies
    elsewhere, or on little of the object, puts it aside. The error is that of the two, on the same scale.

    Args:
        grid: See `Masking`, as are p, fill, seed and batch.
        p: As grid.
        fill: As grid.
        seed: As grid.
        batch: As grid.
        tolerance: Stop when the error, over the map's maximum and in the mean over map and instances, is below it;
            looked at after every `masks.BLOCK` masks. The whole budget is spent without it.
    """

    name = "bayes"

    def __init__(
        self,
        grid: int | tuple[int, int] = 16,
        p: float = 0.5,
        fill: str = "blur",
        seed: int = 0,
        batch: int = 8,
        tolerance: float | None = None,
    ) -> None:
        super().__init__(grid, p, fill, seed, batch)
        self.tolerance = tolerance

    def heats(self, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int) -> Heats:
        found, cost = self.read(frame, rows, targets, budget)
        (h, w), n, t = found.mean.shape[1:], len(rows), len(targets)
        if frame.view is None or frame.instances.image_size is None:
            raise ValueError("the detector gives no pixels, so that nothing can be masked")
        high, wide = frame.instances.image_size
        whole = frame.view.to_view(found.mean.new_tensor([[0.0, 0.0, wide, high]]))
        mean, error = (m.view(n, t, h, w) for m in (found.mean, found.error))
        maps = {target.name: [Heat(mean[:, k], whole, error[:, k])] for k, target in enumerate(targets)}
        return Heats(maps, cost.passes, cost.backwards, cost.notes)

    def read(
        self, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int
    ) -> tuple[Effects, Heats]:
        """Maps (rows * targets, h, w) >= 0 over the whole image with errors, and what they cost (without maps)."""
        size = frame.instances.image_size or (0, 0)
        lattice = (min(SIDE, size[0]), min(SIDE, size[1]))
        own = self.own(frame, rows, len(targets), lattice)
        slopes = Slopes(frame, rows, targets, lattice, budget)
        pictures = max(1, budget - slopes.pictures * slopes.passes)
        seen = Answers(self, frame, rows, targets, min(pictures, MOST), slopes)
        notes = [f"{MOST} masks at the most: for more of them choose drise"] if budget > MOST else []
        if not slopes.pictures and len(rows):
            why = ", which would take most of the budget" if slopes.able else ""
            notes.append(f"without gradients{why}: mask and box alone shape the prior")
        device = seen.view.pixels.device
        y, x = (centres(count, side, device) for count, side in zip(lattice, size, strict=True))
        answers, masks, found = [], [], None
        for shown, answer in seen:
            answers.append(answer)
            masks.append(shown.at(y, x))
            done = sum(map(len, answers))
            if self.tolerance is not None and done % BLOCK == 0:
                found = self.posterior(answers, masks, own, slopes)
                if done < seen.budget and self._error(found) <= self.tolerance:
                    notes.append(f"stopped after {done} masks: the error is below {self.tolerance:g}")
                    break
                found = None
        found = self.posterior(answers, masks, own, slopes) if found is None else found
        return found, Heats({}, seen.probe.passes, slopes.backwards, (*notes, *seen.notes()))

    def draw(self, block: int, size: tuple[int, int], boxes: Tensor, g: torch.Generator) -> Masks:
        if block % 2 == 0:
            return GridMasks.draw(BLOCK, size, self.grid, self.p, g)
        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * NEAR
        cells = (max(1, self.grid[0] // 2), max(1, self.grid[1] // 2))
        return NestedMasks.draw(BLOCK, size, cells, self.p, torch.cat([middle - half, middle + half], 1), g)

    def posterior(self, answers: list[Tensor], masks: list[Tensor], own: Tensor, slopes: Slopes) -> Effects:
        """The maps, from the answers and slopes so far; `own` as from the method of that name."""
        if not answers:
            nothing = torch.zeros_like(own[:, 0])
            return Effects(nothing, nothing, nothing.flatten(1).sum(1))
        box, share = own[:, 0], min(1.0, slopes.count / TRUSTED)
        amplitudes, shapes = [torch.ones_like(box), FLOOR + box], _soft(own, 1 / 64)
        steep, unsure = slopes.mean().clamp(min=0), slopes.error()
        if share:
            wide = _soft(torch.stack([own[:, 1], steep], 1), 1 / 32)
            amplitudes += [FLOOR + wide[:, 1], FLOOR + wide[:, 1] * wide[:, 0]]
            shapes = torch.cat([shapes, wide[:, 1:]], 1)
        roots = torch.cat(answers).clamp(min=0).sqrt()
        told = effects(roots, torch.cat(masks), amplitudes, shapes)
        mean, error = _over_top(told.mean.clamp(min=0), told.error)
        steep, unsure = _over_top(steep, unsure)
        mean, error = _over_top(mean + share * steep, torch.hypot(error, share * unsure))
        object_ = _soft(own[:, 1:], 1 / 64)[:, 0]
        agreed = cosine_similarity(mean.flatten(1), object_.flatten(1))
        return Effects(mean + OWN * agreed.square()[:, None, None] * object_, error, told.evidence)

    def own(self, frame: Frame, rows: Tensor, targets: int, lattice: tuple[int, int]) -> Tensor:
        """(rows * targets, 2, h, w) in [0, 1]: Gaussian in the box, and mask."""
        view, size = frame.view, frame.instances.image_size
        if view is None or size is None:
            raise ValueError("the detector gives no pixels, so that nothing can be masked")
        made = []
        for baseline in (BoxGaussian(), OwnMask()):
            heat = baseline.heat(frame, rows)[0]
            made.append(_scaled(pooled(heat.values.detach(), heat.boxes, view, size, lattice).nan_to_num()))
        return torch.stack(made, 1).repeat_interleave(targets, 0)

    def _error(self, found: Effects) -> float:
        top = found.mean.flatten(1).amax(1)
        some = top > 0  # false for NaN
        return float((found.error.flatten(1).mean(1)[some] / top[some]).mean()) if bool(some.any()) else 0.0


def _scaled(maps: Tensor) -> Tensor:
    """(..., h, w) over their maxima; zeros stay."""
    return maps / maps.flatten(-2).amax(-1)[..., None, None].clamp(min=1e-9)


def _over_top(maps: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (R, h, w) over their maxima, and errors on the same scale; both 0 where a map is."""
    top = maps.flatten(1).amax(1)[:, None, None]
    scale = torch.where(top > 0, 1 / top, top * 0)  # NaN stays NaN
    return maps * scale, errors * scale


def _soft(maps: Tensor, reach: float) -> Tensor:
    """(R, K, h, w) under a Gaussian whose standard deviation is a share of a side; maxima 1 again."""
    return _scaled(softened(maps, reach))
