"""Gradient-shaped Bayesian RISE: few random masks, read with what gradients and the object's shape let one expect.

Prior art: GP regression that refines another method's map (Kikuchi et al. 2022, BOREx) and Bayesian linear models of
perturbations (Zhao et al. 2021, BayLIME; Slack et al. 2021) explain one class of a whole image. Here one set of masks
serves all instances and targets of an image, the prior's shapes and amplitudes come from each instance's own gradient
and mask, and the evidence decides for each how far to believe them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..frame import Frame
from .base import Heat, Heats
from .baselines import BoxGaussian, OwnMask
from .effects import Effects, effects
from .gradient import JointGradient
from .masking import Answers, Masking
from .masks import BLOCK, GridMasks, Masks, NestedMasks
from .places import bell, centres, resample
from .targets import Target

SIDE = 64
"""Places of the map along either side of the image."""
MOST = 1024
"""Masks that are read: the work grows with their third power."""
NEAR = 2.0
"""Side of the rectangle with finer cells about an object, over that of its box."""
FLOOR = 0.1
"""Of the amplitude, where the prior expects nothing."""


class BayesRISE(Masking):
    """Effects of places on the target from random masks, by `effects.effects` with a prior of the instance's own.

    It is the square root of the target that is taken for a sum: of a product of probabilities that is nearer the truth,
    and it does not run away near 0 as the logarithm does.

    Every other block of masks has half as many cells over the image, and as many again about each object
    (`masks.NestedMasks`): small objects are then taken apart as large ones are.

    Shapes that the effect may have: the gradient map (`JointGradient`), the mask, a Gaussian in the box. Amplitudes of
    the remainder that the evidence chooses from: the same everywhere, about the box, where the gradient is. Without
    gradients, mask and box alone.

    The map is the posterior mean, 0 where it is negative, over its maximum; its error the posterior standard deviation
    on the same scale.

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
        mean, error = (m.view(n, t, h, w) for m in (found.mean.clamp(min=0), found.error))
        maps = {target.name: [Heat(mean[:, k], whole, error[:, k])] for k, target in enumerate(targets)}
        return Heats(maps, cost.passes, cost.backwards, cost.notes)

    def read(
        self, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int
    ) -> tuple[Effects, Heats]:
        """Effects (rows * targets, h, w) over the whole image, of either sign, and what they cost (without maps)."""
        size = frame.instances.image_size or (0, 0)
        lattice = (min(SIDE, size[0]), min(SIDE, size[1]))
        guides, cost = self.guides(frame, rows, targets, lattice)
        seen = Answers(self, frame, rows, targets, min(max(1, budget - cost.passes), MOST))
        notes = [f"{MOST} masks at the most: for more of them choose drise"] if budget > MOST else []
        device = seen.view.pixels.device
        y, x = (centres(count, side, device) for count, side in zip(lattice, size, strict=True))
        answers, masks, found = [], [], None
        for shown, answer in seen:
            answers.append(answer)
            masks.append(shown.at(y, x))
            done = sum(map(len, answers))
            if self.tolerance is not None and done % BLOCK == 0:
                found = self.posterior(answers, masks, guides)
                if done < seen.budget and self._error(found) <= self.tolerance:
                    notes.append(f"stopped after {done} masks: the error is below {self.tolerance:g}")
                    break
                found = None
        found = self.posterior(answers, masks, guides) if found is None else found
        notes += [*cost.notes, *seen.notes()]
        return found, Heats({}, seen.probe.passes + cost.passes, cost.backwards, tuple(notes))

    def draw(self, block: int, size: tuple[int, int], boxes: Tensor, g: torch.Generator) -> Masks:
        if block % 2 == 0:
            return GridMasks.draw(BLOCK, size, self.grid, self.p, g)
        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * NEAR
        cells = (max(1, self.grid[0] // 2), max(1, self.grid[1] // 2))
        return NestedMasks.draw(BLOCK, size, cells, self.p, torch.cat([middle - half, middle + half], 1), g)

    def posterior(self, answers: list[Tensor], masks: list[Tensor], guides: Tensor) -> Effects:
        """Effects on each row and target, from the answers so far."""
        box, rest = guides[:, 0], guides[:, 2:]
        amplitudes = [torch.ones_like(box), FLOOR + box]
        if rest.shape[1]:
            wide = _soft(guides, 1 / 32)
            amplitudes += [FLOOR + wide[:, 2], FLOOR + wide[:, 2] * wide[:, 1]]
        if not answers:
            nothing = torch.zeros_like(box)
            return Effects(nothing, nothing, nothing.flatten(1).sum(1))
        roots = torch.cat(answers).clamp(min=0).sqrt()
        return effects(roots, torch.cat(masks), amplitudes, _soft(guides, 1 / 64))

    def guides(
        self, frame: Frame, rows: Tensor, targets: Sequence[Target], lattice: tuple[int, int]
    ) -> tuple[Tensor, Heats]:
        """(rows * targets, 2 or 3, h, w) in [0, 1]: Gaussian in the box, mask, and gradient where there is one."""
        view, size, n, t = frame.view, frame.instances.image_size, len(rows), len(targets)
        if view is None or size is None:
            raise ValueError("the detector gives no pixels, so that nothing can be masked")
        fine = (4 * lattice[0], 4 * lattice[1])

        def brought(heats: Sequence[Heat]) -> Tensor:
            whole = sum(resample(heat.values.detach(), heat.boxes, view, size, fine) for heat in heats)
            small = interpolate(torch.as_tensor(whole)[:, None], lattice, mode="area")[:, 0].nan_to_num()
            return small / small.flatten(1).amax(1)[:, None, None].clamp(min=1e-9)

        own = [brought([baseline.heat(frame, rows)[0]]) for baseline in (BoxGaussian(), OwnMask())]
        made = [g[:, None].expand(-1, t, -1, -1) for g in own]
        gradient, cost = JointGradient(), Heats({})
        asked = [target for target in targets if target.raw]
        if not gradient.missing(frame) and len(asked) == t and n:
            cost = gradient.heats(frame, rows, asked, 1)
            made.append(torch.stack([brought(cost.maps[target.name]) for target in targets], 1))
        else:
            cost = Heats({}, notes=("without gradients: the prior is shaped by mask and box",))
        return torch.stack(made, 2).flatten(0, 1), cost

    def _error(self, found: Effects) -> float:
        top = found.mean.flatten(1).amax(1)
        some = top > 0  # false for NaN
        return float((found.error.flatten(1).mean(1)[some] / top[some]).mean()) if bool(some.any()) else 0.0


def _soft(maps: Tensor, reach: float) -> Tensor:
    """(R, K, h, w) under a Gaussian whose standard deviation is a share of a side; maxima 1 again."""
    down, across = (bell(side, reach, maps) for side in maps.shape[-2:])
    soft = (down / down.sum(1, keepdim=True)) @ maps @ (across / across.sum(1, keepdim=True)).mT
    return soft / soft.flatten(2).amax(2)[..., None, None].clamp(min=1e-9)
