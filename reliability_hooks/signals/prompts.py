"""Prompts: what is asked of a vision-language model, read from YAML, filled with class names, embedded once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import nan
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import read_tree

if TYPE_CHECKING:
    from ..clip.encoder import Encoder

log = logging.getLogger(__name__)

ASSETS = Path(__file__).parents[1] / "assets"
OBJECT = "object"
"""What {label} says where the class has no name, or one that the encoder has never learnt."""
Source = str | Path | Mapping[str, Any]
"""A YAML file, or what would stand in one."""


@dataclass(frozen=True)
class Antonyms:
    """Two opposite descriptions.

    Attributes:
        high: Paraphrases of the condition.
        low: Paraphrases of its absence.
        words: A phrase for a low and for a high value.
    """

    high: tuple[str, ...]
    low: tuple[str, ...]
    words: tuple[str, str]

    def as_dict(self) -> dict[str, list[str]]:
        """As in a YAML file."""
        return {"high": list(self.high), "low": list(self.low), "words": list(self.words)}


def tree(source: Source) -> tuple[dict[str, Any], str]:
    """What a source holds, and what to call it in a message.

    Raises:
        ValueError: It cannot be read, or is no mapping (`config.ConfigError`).
    """
    return (dict(source), "the prompts") if isinstance(source, Mapping) else (read_tree(Path(source)), str(source))


def conditions(over: Source | None = None, reserved: Sequence[str] = ()) -> dict[str, Antonyms]:
    """The conditions of `assets/conditions.yaml` with those of `over` merged over them.

    Args:
        over: `NAME: {high: [...], low: [...], words: [...]}` for each condition; of one that there is already, only
            what shall change; null removes it.
        reserved: Names that no condition may have.

    Raises:
        ValueError: A typo; the message names the file, the condition and the nearest key.
    """
    base, base_where = tree(ASSETS / "conditions.yaml")
    given, where = ({}, base_where) if over is None else tree(over)
    for name, entry in given.items():
        at = f"{where}: condition {name!r}"
        if not isinstance(name, str) or not name.replace("_", "").isalnum() or name in reserved:
            raise ValueError(f"{at}: a name is made of letters, digits and _, and none of {list(reserved)}")
        if entry is None:
            if name not in base:
                raise ValueError(f"{at}: there is none to remove{_nearest(name, base)}")
            del base[name]
        elif not isinstance(entry, Mapping):
            raise ValueError(f"{at}: must hold `high: [...]` and `low: [...]`, not {entry!r}")
        else:
            base[name] = {**base.get(name, {}), **entry}
    return parse(base, where)


def parse(entries: Mapping[str, Any], where: str) -> dict[str, Antonyms]:
    """Conditions from what stands in a file; errors as in `conditions`."""
    return {name: _antonyms(name, entry, where) for name, entry in entries.items()}


def _antonyms(name: str, entry: Mapping[str, Any], where: str) -> Antonyms:
    at = f"{where}: condition {name!r}"
    known = ("high", "low", "words")
    for key in entry:
        if key not in known:
            raise ValueError(f"{at}: unknown key {key!r}{_nearest(str(key), known)}; there are: {', '.join(known)}")
    for key in ("high", "low"):
        if key not in entry:
            raise ValueError(f"{at}: {key!r} is missing: a list of prompts")
    words = strings(entry.get("words", [f"no {spoken(name)}", spoken(name)]), f"{at}: words")
    if len(words) != 2 or words[0] == words[1]:
        raise ValueError(f"{at}: words must be two different phrases, for a low and a high value, not {list(words)}")
    return Antonyms(prompts(entry["high"], f"{at}: high"), prompts(entry["low"], f"{at}: low"), (words[0], words[1]))


def strings(value: Any, at: str) -> tuple[str, ...]:
    """A list of at least one text, each of them not empty.

    Raises:
        ValueError: It is something else; the message begins with `at`.
    """
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{at}: must be a list of texts, not {value!r}")
    return tuple(value)


def prompts(value: Any, at: str) -> tuple[str, ...]:
    """As `strings`, with no placeholder but {label}.

    Raises:
        ValueError: It is something else, or a placeholder is not {label}; the message begins with `at`.
    """
    found = strings(value, at)
    for prompt in found:
        try:
            parts = list(Formatter().parse(prompt))
        except ValueError as e:
            raise ValueError(f"{at}: {prompt!r}: {e}; write the class name as {{label}}") from e
        for _, name, spec, conversion in parts:
            if name is not None and (name != "label" or spec or conversion):
                raise ValueError(f"{at}: {prompt!r}: unknown placeholder {{{name}}}; did you mean {{label}}?")
    return found


def fill(prompt: str, label: str) -> str:
    """The prompt with a class name in it."""
    return prompt.format(label=label)


def spoken(name: str) -> str:
    """A class name as one says it: `traffic_light` -> `traffic light`."""
    return " ".join(str(name).replace("_", " ").split())


@torch.inference_mode(False)  # what is kept serves in any mode
def placed(kept: Tensor, device: torch.device) -> Tensor:
    """On a device; what is there already is not copied."""
    return kept.to(device)


def _nearest(name: str, among: Any) -> str:
    near = get_close_matches(name, list(among), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


class Anchors:
    """Groups of prompts as unit vectors, for each class name that occurs; every prompt is embedded once.

    Prompts with words that the encoder has never learnt are left out of their group; a group that is left without any
    is NaN, and named once in the log.

    Args:
        groups: Each the paraphrases of one description.
        titles: What to call each group in the log.
    """

    def __init__(self, groups: Sequence[Sequence[str]], titles: Sequence[str]) -> None:
        self.groups, self.titles = [list(g) for g in groups], list(titles)
        self._encoder: Encoder | None = None
        self._rows: dict[str, int] = {}
        self._table = torch.zeros(0)
        self._known: list[list[str]] = []

    def __call__(self, encoder: Encoder, labels: Tensor, names: Mapping[int, str] | None) -> Tensor:
        """(N, G, D) for (N,) labels, on their device; `names` by label, `OBJECT` for those without one."""
        if encoder is not self._encoder:
            self._learn(encoder)
        ids, which = torch.unique(labels, return_inverse=True)
        words = [spoken((names or {}).get(i, OBJECT)) for i in ids.tolist()]
        if new := [word for word in dict.fromkeys(words) if word not in self._rows]:
            self._add(encoder, new)
        rows = torch.tensor([self._rows[w] for w in words], dtype=torch.int64, device=labels.device)
        self._table = placed(self._table, labels.device)
        return self._table[rows[which]]

    def _learn(self, encoder: Encoder) -> None:
        flat = [fill(p, "") for group in self.groups for p in group]
        known = iter(encoder.knows(flat).tolist())
        self._known = [[p for p in group if next(known)] for group in self.groups]
        if unknown := [t for t, group in zip(self.titles, self._known, strict=True) if not group]:
            log.warning("the encoder %s knows the words of no prompt of: %s", encoder.name, ", ".join(unknown))
        self._encoder, self._rows, self._table = encoder, {}, torch.zeros(0, len(self.groups), encoder.dim)

    @torch.inference_mode(False)  # what is kept serves in any mode
    @torch.no_grad()
    def _add(self, encoder: Encoder, words: list[str]) -> None:
        known = encoder.knows(words).tolist()
        usable = [w if ok else OBJECT for w, ok in zip(words, known, strict=True)]
        asked = [[fill(p, word) for p in group] for word in usable for group in self._known]
        table = torch.full((len(asked), encoder.dim), nan)
        at = [i for i, group in enumerate(asked) if group]
        if at:
            table[at] = encoder.average([asked[i] for i in at]).float().cpu()
        for word in words:
            self._rows[word] = len(self._rows)
        self._table = torch.cat([self._table, table.view(len(words), len(self.groups), -1).to(self._table.device)])
