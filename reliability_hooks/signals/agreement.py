"""Does a vision-language model, asked for the class, name the one that the detector named?"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from math import log as ln
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..frame import Frame
from .base import Signal
from .prompts import ASSETS, Source, fill, placed, prompts, spoken, strings, tree

if TYPE_CHECKING:
    from ..clip.encoder import Encoder

log = logging.getLogger(__name__)

TEMPLATES = (
    "a photo of a {label}",
    "a cropped photo of a {label}",
    "a picture of a {label}",
    "a photo of the {label}",
)
NO_CLASS = re.compile(r"(__)?background(__)?|n/a|class \d+|", re.IGNORECASE)
"""Names of places in label lists that stand for no class, or for one whose name nobody gave."""


class Vocabulary:
    """The detector's classes as texts: each by its name and its synonyms, all of them by several templates.

    Args:
        synonyms: Class name in lower case -> further names.
        templates: With {label}; their embeddings are averaged.

    Attributes:
        classes: (K,) labels of the classes that the encoder knows, sorted; empty until prepared.
        texts: (names, D) unit embeddings of all their names.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]], templates: Sequence[str] = TEMPLATES) -> None:
        self.synonyms = {name: [spoken(s) for s in others] for name, others in synonyms.items()}
        self.templates = list(templates)
        self._made_for: tuple[Encoder, dict[int, str]] | None = None
        self.classes = torch.zeros(0, dtype=torch.int64)
        self._owner = torch.zeros(0, dtype=torch.int64)
        self.texts = torch.zeros(0, 0)

    def similarities(self, encoder: Encoder, x: Tensor, names: Mapping[int, str]) -> Tensor:
        """(..., D) unit rows -> (..., K) cosine with the best name of each class of `classes`."""
        self.prepare(encoder, names, x.device)
        cosines = x @ self.texts.T
        best = cosines.new_full((*x.shape[:-1], len(self.classes)), -torch.inf)
        return best.scatter_reduce(-1, self._owner.expand_as(cosines), cosines, "amax")

    def columns(self, labels: Tensor) -> Tensor:
        """(N,) column of each label among `classes`; -1 where the encoder does not know its name."""
        if len(self.classes) == 0:
            return torch.full_like(labels, -1)
        at = torch.searchsorted(self.classes, labels.contiguous()).clamp(max=len(self.classes) - 1)
        return torch.where(self.classes[at] == labels, at, -1)

    def prepare(self, encoder: Encoder, names: Mapping[int, str], device: torch.device) -> None:
        """Embed the classes, once for each encoder and label set; `classes` then holds their label ids, sorted."""
        made_for = self._made_for
        if made_for is None or made_for[0] is not encoder or made_for[1] != names:
            said = {i: spoken(n) for i, n in sorted(names.items())}
            self._embed(encoder, {i: n for i, n in said.items() if not NO_CLASS.fullmatch(n)})
            self._made_for = encoder, dict(names)
        self.texts, self._owner = placed(self.texts, device), placed(self._owner, device)
        self.classes = placed(self.classes, device)

    @torch.inference_mode(False)  # what is kept serves in any mode
    @torch.no_grad()
    def _embed(self, encoder: Encoder, names: dict[int, str]) -> None:
        taken = {name.lower() for name in names.values()}
        said = [
            (i, word)
            for i, name in names.items()
            for word in [name, *(s for s in self.synonyms.get(name.lower(), ()) if s.lower() not in taken)]
        ]
        known = encoder.knows([word for _, word in said]).tolist()
        said = [pair for pair, ok in zip(said, known, strict=True) if ok]
        kept = sorted({i for i, _ in said})
        if unknown := [name for i, name in names.items() if i not in set(kept)]:
            log.warning("the encoder %s does not know the classes: %s", encoder.name, ", ".join(unknown))
        self.classes = torch.tensor(kept, dtype=torch.int64)
        column = {label: k for k, label in enumerate(kept)}
        self._owner = torch.tensor([column[i] for i, _ in said], dtype=torch.int64)
        asked = [[fill(t, word) for t in self.templates] for _, word in said]
        self.texts = encoder.average(asked).float() if asked else torch.zeros(0, encoder.dim)


class Agreement(Signal):
    """Zero-shot classification (Radford et al., ICML 2021) over the detector's own class names, read at its label.

    The similarity s of a class is the greatest cosine of the crop's embedding with one of its names, each name averaged
    over templates; p = softmax(tau s), tau the logit scale of the encoder, over the K classes that it knows.

    Columns (N,): `p` of the detector's label in [0, 1]; `rank` (classes with a greater s) / (K - 1), 0 where K = 1;
    `margin` tau (s of the label - greatest other s), NaN where K = 1; `entropy` of p / log K, 0 where K = 1. NaN where
    the object is too small to judge, or the encoder has never learnt the name of its class (said once in the log).

    Args:
        synonyms: A YAML file (or what would stand in one) `CLASS: [further names]`, merged over `assets/synonyms.yaml`;
            `CLASS: null` removes those of a class.
        templates: Prompts with {label}.
        ratio: The crop is the box enlarged by this factor, to show its context.
        masked: The background outside the object's mask is blanked.

    Raises:
        ValueError: Synonyms are no lists of texts, or a template has another placeholder.
    """

    name = "agreement"
    requires = ("image", "clip", "names")
    columns: ClassVar = {
        "agreement/p": ("CLIP would name another class", "CLIP names the same class"),
        "agreement/rank": ("its class comes first for CLIP", "its class comes late for CLIP"),
        "agreement/margin": ("CLIP prefers another class", "CLIP prefers its class clearly"),
        "agreement/entropy": ("CLIP is sure of a class", "CLIP is unsure of the class"),
    }

    def __init__(
        self,
        synonyms: Source | None = None,
        templates: Sequence[str] = TEMPLATES,
        ratio: float = 1.0,
        masked: bool = False,
    ) -> None:
        groups: dict[str, Sequence[str]] = {}
        for source in (ASSETS / "synonyms.yaml", {} if synonyms is None else synonyms):
            entries, where = tree(source)
            for name, others in entries.items():
                groups[spoken(name).lower()] = () if others is None else strings(others, f"{where}: {name}")
        self._ask(groups, prompts(list(templates), "templates"), ratio, masked)

    def _ask(self, synonyms: Mapping[str, Sequence[str]], templates: Sequence[str], ratio: float, masked: bool) -> None:
        self.vocabulary, self.ratio, self.masked = Vocabulary(synonyms, templates), ratio, masked
        own: Any = self
        own.requires = (*type(self).requires, *(("masks",) if masked else ()))

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if frame.embed is None or frame.names is None:
            raise ValueError("the frame has no embeddings or no class names: skip this signal")
        x, encoder = frame.embed(ratio=self.ratio, masked=self.masked).float(), frame.embed.encoder
        cosines = self.vocabulary.similarities(encoder, x, frame.names)
        values = at_label(cosines * encoder.logit_scale, self.vocabulary.columns(frame.instances.labels))
        return dict(zip(self.columns, values.masked_fill(frame.embed.too_small, nan), strict=True))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        v = self.vocabulary
        return {}, {"synonyms": v.synonyms, "templates": v.templates, "ratio": self.ratio, "masked": self.masked}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self._ask(meta["synonyms"], meta["templates"], meta["ratio"], meta["masked"])


def at_label(logits: Tensor, columns: Tensor) -> Tensor:
    """(N, K) logits and (N,) column of the label (-1: none) -> (4, N) probability, rank, margin, entropy."""
    n, k = logits.shape
    if k == 0:
        return logits.new_full((4, n), nan)
    at = columns.clamp(min=0)[:, None]
    own = logits.gather(1, at)
    others = logits.scatter(1, at, -torch.inf).amax(1, keepdim=True) if k > 1 else torch.full_like(own, nan)
    p = logits.softmax(1)
    entropy = torch.special.entr(p).sum(1, keepdim=True) / ln(k) if k > 1 else torch.zeros_like(own)
    rank = (logits > own).sum(1, keepdim=True) / max(k - 1, 1)
    table = torch.cat([p.gather(1, at), rank, own - others, entropy], 1).T
    return table.masked_fill((columns < 0) | logits.isnan().any(1), nan)
