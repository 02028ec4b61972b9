"""Mondrian groups: class x size x condition as integer codes with names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .state import State

SIZES = ("small", "medium", "large")


def size_codes(area: Tensor) -> Tensor:
    """COCO's size classes of areas (N,) in px^2: 0 small < 32^2 <= 1 medium < 96^2 <= 2 large, -1 for NaN."""
    codes = torch.bucketize(area, torch.tensor([32.0**2, 96.0**2], dtype=area.dtype, device=area.device), right=True)
    return codes.masked_fill(area.isnan(), -1)


@dataclass(frozen=True, eq=False)
class Groups:
    """Combinations of factors, each an integer column, to one code; -1 where a level was not seen in the fit.

    Attributes:
        levels: for each factor its sorted levels.
        names: for each factor level -> name; a level without a name is called "factor=level".
    """

    levels: dict[str, tuple[int, ...]]
    names: dict[str, dict[int, str]] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, factors: Mapping[str, Tensor], names: Mapping[str, Sequence[str] | Mapping[int, str]] | None = None
    ) -> Groups:
        """Learn the levels.

        Args:
            factors: name -> (N,) integers, such as {"class": labels, "size": size_codes(area)}; negative: unknown.
            names: factor -> names of its levels. `size` has COCO's by itself.
        """
        levels = {k: tuple(level for level in torch.unique(v).tolist() if level >= 0) for k, v in factors.items()}
        given = {"size": SIZES, **(names or {})}
        held = {k: dict(v.items() if isinstance(v, Mapping) else enumerate(v)) for k, v in given.items() if k in levels}
        return cls(levels, held)

    def codes(self, factors: Mapping[str, Tensor]) -> Tensor:
        """Factors (N,) each to codes (N,) int64 on the CPU; raises ValueError where a factor is absent."""
        if absent := [name for name in self.levels if name not in factors]:
            raise ValueError(f"the groups were fitted with the factors {list(self.levels)}: {absent} absent")
        n = len(next(iter(factors.values()))) if self.levels else 0
        code, seen = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
        for name, levels in self.levels.items():
            value, known = factors[name].detach().cpu().to(torch.int64), torch.tensor(levels, dtype=torch.int64)
            at = torch.searchsorted(known, value)
            seen &= known[at.clamp(max=len(levels) - 1)] == value if levels else False
            code = code * len(levels) + at
        return code.masked_fill(~seen, -1)

    def name(self, code: int) -> str:
        """Such as "person, small, fog"."""
        if code < 0 or code >= math.prod(len(v) for v in self.levels.values()):
            return "unseen"
        words = []
        for factor, levels in reversed(self.levels.items()):
            code, at = divmod(code, len(levels))
            words.append(self.names.get(factor, {}).get(levels[at], f"{factor}={levels[at]}"))
        return ", ".join(reversed(words))

    def state(self) -> State:
        """Tensors (none) and meta for `from_state`."""
        names = {k: {str(level): name for level, name in v.items()} for k, v in self.names.items()}
        return {}, {"levels": [[k, list(v)] for k, v in self.levels.items()], "names": names}

    @classmethod
    def from_state(cls, state: State) -> Groups:
        """Rebuild from `state()`."""
        meta = state[1]
        names = {k: {int(level): name for level, name in v.items()} for k, v in meta["names"].items()}
        return cls({k: tuple(v) for k, v in meta["levels"]}, names)
