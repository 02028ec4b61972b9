"""Reliability in an open world: what a model of known objects cannot know is that some objects are of no known kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .novelty import Novelty
from .scores import image_codes
from .state import State, pack, unpack

SHAPE = 0.2
"""Of the p-values of unknown objects, taken as Beta(SHAPE, 1): half of them below .03, and yet some that look usual."""
PRIORS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Shares of unknown objects that are tried."""
FOLDS = 5
MIN_IMAGES = 50
"""With fewer, what a prior costs cannot be told from chance, and it is 0."""


@dataclass(frozen=True, eq=False)
class Caution:
    """P(right) = P(right | known kind) P(known kind | how unusual it looks).

    The first factor is the model's, which has seen known objects only. The second follows from the conformal p-value
    p of an out-of-distribution score (`novelty.Novelty`): uniform for known objects, of density
    SHAPE p^(SHAPE - 1) for unknown ones, of which there is a share `prior`:
    P(known | p) = (1 - prior) / (1 - prior + prior SHAPE p^(SHAPE - 1)).

    No unknown object is needed for the fit. Without any, the prior cannot be estimated either: it is taken as high as
    the user's allowance permits, the share of the Brier score on known objects that they are ready to pay.

    Attributes:
        novelty: Score -> p-value.
        prior: Share of unknown objects that is reckoned with; 0 changes nothing.
        cost: What it does to the Brier score of the calibration images, a share: negative where it helps even there.
        cross_fitted: (N,) float32, the given reliability with caution, each by p-values of other images. Not saved.
    """

    novelty: Novelty
    prior: float
    cost: float
    cross_fitted: Tensor | None = None

    @classmethod
    def fit(
        cls,
        score: Tensor,
        factors: Mapping[str, Tensor],
        reliability: Tensor,
        correct: Tensor,
        image: Tensor,
        *,
        allowance: float = 0.01,
        alpha: float = 0.05,
        seed: int = 0,
    ) -> Caution:
        """Choose the prior by cross-fitted p-values.

        Args:
            score: (N,) higher = more out-of-distribution.
            factors: Cells of the p-values, as in `Novelty.fit`.
            reliability: (N,) out of fold.
            correct: (N,) bool.
            image: (N,) image, or what it is a version of.
            allowance: Greatest share by which the Brier score on known objects may rise.
            alpha: False-alarm rate of `is_ood`.
            seed: Of the folds.

        Raises:
            ValueError: The allowance is negative, or no right detection has a score.
        """
        if not allowance >= 0:
            raise ValueError(f"the allowance for caution is a share >= 0, not {allowance}")
        right = correct.cpu()
        whole = Novelty.fit(score[correct], image[correct], _rows(factors, correct), alpha)
        codes = image_codes(image, len(score))
        order = torch.randperm(int(codes.max()) + 1, generator=torch.Generator().manual_seed(seed))
        fold = (order % FOLDS)[codes]
        p = torch.full_like(score, torch.nan, dtype=torch.float32).cpu()
        for k in range(FOLDS):
            others, mine = (fold != k) & right, fold == k
            if bool(mine.any()) and bool(score.cpu()[others].isfinite().any()):
                part = Novelty.fit(score.cpu()[others], codes[others], _rows(factors, others), alpha)
                p[mine] = part.p_values(score.cpu()[mine], _rows(factors, mine))
        honest, y = reliability.detach().cpu().double(), right.double()
        known = honest.isfinite()
        loss = [float((honest * chance_known(p, prior) - y)[known].square().mean()) for prior in PRIORS]
        enough = len(order) >= MIN_IMAGES
        best = max(k for k, value in enumerate(loss) if k == 0 or (enough and value <= (1 + allowance) * loss[0]))
        cautious = (honest * chance_known(p, PRIORS[best])).float().to(reliability.device)
        return cls(whole, PRIORS[best], loss[best] / max(loss[0], 1e-12) - 1, cautious)

    def __call__(self, reliability: Tensor, score: Tensor, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`reliability` with caution, and the columns of `Novelty`."""
        found = self.novelty(score, factors)
        factor = chance_known(found["ood_p_value"], self.prior).to(reliability)
        return {"reliability": reliability * factor, **found}

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors, parts = pack({"novelty": self.novelty.state()})
        return tensors, {"prior": self.prior, "cost": self.cost, "parts": parts}

    @classmethod
    def from_state(cls, state: State) -> Caution:
        """Rebuild from `state()`."""
        tensors, meta = state
        return cls(Novelty.from_state(unpack((tensors, meta["parts"]), "novelty")), meta["prior"], meta["cost"])


def chance_known(p_value: Tensor, prior: float) -> Tensor:
    """(N,) P(known kind | p-value) in (0, 1]; 1 - prior for a NaN, which says nothing either way."""
    unknown = prior * SHAPE * p_value.double().clamp(min=1e-6) ** (SHAPE - 1)
    return ((1 - prior) / (1 - prior + unknown)).nan_to_num(1 - prior)


def _rows(factors: Mapping[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
    return {name: value[keep.to(value.device)] for name, value in factors.items()}
