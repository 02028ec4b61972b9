"""Maps from one score to a probability: the baselines that every other evidence has to beat, and its last step."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .binning import Histogram, Isotonic
from .scaling import Beta, Platt, Temperature, recalibration
from .scores import EPS, as_scores, logit
from .state import State
from .venn_abers import VennAbers

__all__ = [
    "CALIBRATORS",
    "EPS",
    "METHODS",
    "Beta",
    "Calibrator",
    "Histogram",
    "Isotonic",
    "Platt",
    "Temperature",
    "VennAbers",
    "as_scores",
    "logit",
    "recalibration",
]


class Calibrator(Protocol):
    """A map from scores to probabilities: fitted by scikit-learn or scipy, applied in torch."""

    @classmethod
    def fit(cls, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Calibrator:
        """Fit on scores (N,) in [0, 1] and target (N,): bool, or float in [0, 1] such as an IoU."""

    def predict(self, scores: Tensor) -> Tensor:
        """Scores (N,) to float64 (N,) in [0, 1], on the CPU; NaN gives NaN."""

    def state(self) -> State:
        """Tensors and meta for `from_state`."""

    @classmethod
    def from_state(cls, state: State) -> Calibrator:
        """Rebuild from `state()`."""


CALIBRATORS: dict[str, type[Platt] | type[Isotonic]] = {"platt": Platt, "isotonic": Isotonic}
"""The baselines on the confidence alone that `ReliabilityModel` cross-validates, in order of complexity."""

METHODS: dict[str, type[Calibrator]] = {
    "temperature": Temperature,
    "platt": Platt,
    "beta": Beta,
    "isotonic": Isotonic,
    "histogram": Histogram,
    "venn_abers": VennAbers,
}
"""Every calibrator by the `kind` of its state."""
