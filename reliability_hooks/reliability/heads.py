"""A fitted answer: parts that are averaged, then recalibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .calibrators import EPS, Isotonic, Platt, logit
from .linear import Linear
from .state import State, StateError, pack, unpack
from .trees import Trees

Part = Platt | Isotonic | Linear | Trees
_PARTS: dict[str, Any] = {"platt": Platt, "isotonic": Isotonic, "linear": Linear, "trees": Trees}


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted answer: the mean of its parts, then slope and intercept, then a probability or an IoU.

    Attributes:
        parts: fitted models by name.
        is_probability: P(correct), combined on the logit scale; else E[IoU], combined as it is.
        slope, intercept: recalibration of the logits; 1 and 0 where there was no need.
    """

    parts: dict[str, Part]
    is_probability: bool
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def needs_columns(self) -> bool:
        """Whether anything but the score is used."""
        return any(isinstance(part, Linear | Trees) for part in self.parts.values())

    def __call__(self, x: Tensor, scores: Tensor) -> Tensor:
        """The matrix (N, F) and scores (N,) to (N,): a probability in [EPS, 1 - EPS], or an IoU in [0, 1]."""
        raw = torch.stack([raw_of(part, x, scores, self.is_probability) for part in self.parts.values()]).mean(
            0
        )
        if not self.is_probability:
            return raw.clamp(0.0, 1.0)
        return torch.sigmoid(self.slope * raw + self.intercept).clamp(EPS, 1 - EPS)

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors, parts = pack({name: part.state() for name, part in self.parts.items()})
        own = {"is_probability": self.is_probability, "slope": self.slope, "intercept": self.intercept}
        return tensors, {**own, "parts": parts}

    @classmethod
    def from_state(cls, state: State) -> Head:
        """Rebuild from `state()`."""
        tensors, meta = state
        held = {name: unpack((tensors, meta["parts"]), name) for name in meta["parts"]}
        if unknown := {part[1]["kind"] for part in held.values()} - set(_PARTS):
            raise StateError(
                f"unknown kinds of model {sorted(unknown)}: upgrade reliability_hooks, or fit again"
            )
        parts = {name: _PARTS[part[1]["kind"]].from_state(part) for name, part in held.items()}
        return cls(parts, meta["is_probability"], meta["slope"], meta["intercept"])


def raw_of(part: Part, x: Tensor, scores: Tensor, is_probability: bool) -> Tensor:
    """(N,) on the scale on which parts are averaged: logits, or IoU."""
    if isinstance(part, Linear | Trees):
        return part.raw(x)
    value = part.predict(scores)
    return logit(value) if is_probability else value
