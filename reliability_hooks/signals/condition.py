"""What is wrong with the picture of an object: named conditions, asked of a vision-language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import nan
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..frame import Frame
from .base import Signal
from .prompts import Anchors, Antonyms, Source, conditions, parse

TOO_SMALL = "too_small"
RESERVED = (TOO_SMALL, "worst")


class Condition(Signal):
    """P(condition) of each named condition, from opposite prompts (CLIP-IQA: Wang et al., AAAI 2023).

    sigmoid(tau (cos(x, t+) - cos(x, t-))), x being the embedding of the object's crop, t+ and t- the unit mean of the
    embeddings of the paraphrases of the condition and of its absence, with the class name in them, and tau the logit
    scale of the encoder. Each condition is a question of its own: several may hold at once.

    Columns (N,): one for each condition in [0, 1], high = more of it, NaN where the object is too small to judge or the
    encoder knows the words of none of the prompts; `too_small` 1 where it is, else 0.

    Args:
        prompts: A YAML file (or what would stand in one), merged over `assets/conditions.yaml`:
            `NAME: {high: [prompts], low: [prompts]}` adds a condition, `NAME: null` removes one.

    Raises:
        ValueError: A typo in it; the message names the file, the condition and the nearest key.
    """

    name = "condition"
    requires = ("image", "clip")
    columns: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init__(self, prompts: Source | None = None) -> None:
        self._ask(conditions(prompts, RESERVED))

    def _ask(self, antonyms: Mapping[str, Antonyms]) -> None:
        self.antonyms = dict(antonyms)
        pairs = [(name, side) for name, a in antonyms.items() for side in (a.high, a.low)]
        self._anchors = Anchors([side for _, side in pairs], [name for name, _ in pairs])
        own: Any = self  # the columns are those of the prompts
        own.columns = {f"{self.name}/{name}": a.words for name, a in antonyms.items()}
        own.columns[f"{self.name}/{TOO_SMALL}"] = ("large enough to judge", "too small to judge")

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if frame.embed is None:
            raise ValueError("the frame has no embeddings: skip this signal")
        encoder, small, x = frame.embed.encoder, frame.embed.too_small, frame.embed().float()
        values = opposites(x, self._anchors(encoder, frame.instances.labels, frame.names), encoder.logit_scale)
        table = torch.cat([values.masked_fill(small[:, None], nan), small.float()[:, None]], 1)
        return dict(zip(self.columns, table.T.contiguous(), strict=True))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"prompts": {name: a.as_dict() for name, a in self.antonyms.items()}}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self._ask(parse(meta["prompts"], "the saved monitor"))


def opposites(x: Tensor, anchors: Tensor, scale: float) -> Tensor:
    """P(first of two) from (N, D) unit rows and (N, 2 C, D) anchors, those of pair c at 2 c and 2 c + 1: (N, C)."""
    cosines = (anchors @ x[:, :, None]).squeeze(2)
    return (scale * (cosines[:, 0::2] - cosines[:, 1::2])).sigmoid()


def words_of(signals: Iterable[Signal]) -> dict[str, tuple[str, str]]:
    """Column -> phrases for a low and a high value, of each condition that these signals ask for."""
    own = (item for s in signals if s.name == "condition" for item in s.columns.items())
    return {column: words for column, words in own if not column.endswith(f"/{TOO_SMALL}")}
