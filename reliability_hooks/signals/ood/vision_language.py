"""Out-of-distribution scores of a vision-language model, which knows what was never taught to the detector."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...frame import Frame
from ..agreement import Vocabulary
from ..base import Signal
from ..prompts import ASSETS, fill, placed, spoken, strings, tree
from .base import Info

if TYPE_CHECKING:
    from ...clip.encoder import Encoder

log = logging.getLogger(__name__)

TEMPLATE = "a photo of a {label}"
SHARE = 0.5
"""Of the candidates, that many become negative labels: those least like the known classes (the paper takes 15 % of
70,000 words of all kinds)."""
QUANTILE = 0.95
"""A candidate is as near as this quantile of its similarities to the known classes: the paper's eta of .05."""
GROUP = 100
"""Negative labels that are weighed at once, as in the paper."""


class VisionLanguage(Signal):
    """MCM, GL-MCM and NegLabel over the detector's class names.

    Columns (N,), higher = more out-of-distribution, NaN where the object is too small to judge: `mcm`; `gl_mcm`, NaN
    where the encoder gives no embeddings of parts; `neg_label`, NaN where it knows none of the candidates.

    Args:
        negatives: Candidates for the negative labels; those of `assets/negatives.yaml` without it.
        ratio: The crop is the box enlarged by this factor, to show its context.
    """

    name = "ood/vision_language"
    info = Info(
        "MCM, GL-MCM, NegLabel",
        "Ming et al. 2022, Delving into OOD detection with vision-language representations; Miyai et al. 2025, GL-MCM; "
        "Jiang et al. 2024, Negative label guided OOD detection",
        "pixels, a CLIP, class names", "negated",
    )  # fmt: skip
    requires = ("image", "clip", "names")
    columns: ClassVar = {
        "ood/vision_language/mcm": ("CLIP sees a known class", "CLIP sees no known class"),
        "ood/vision_language/gl_mcm": ("CLIP sees a known class in a part", "CLIP sees no known class in any part"),
        "ood/vision_language/neg_label": ("known for CLIP", "CLIP sees something else"),
    }
    scores = tuple(columns)

    def __init__(self, negatives: Sequence[str] | None = None, ratio: float = 1.0) -> None:
        given = tree(ASSETS / "negatives.yaml")[0]["nouns"] if negatives is None else negatives
        self.negatives, self.ratio = strings(list(given), "negatives"), ratio
        self.vocabulary = Vocabulary({}, (TEMPLATE,))
        self._made_for: tuple[Encoder, dict[int, str]] | None = None
        self._against = torch.zeros(0, 0, 0)

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if frame.embed is None or frame.names is None:
            raise ValueError("the frame has no embeddings or no class names: skip this signal")
        embed, encoder, names = frame.embed, frame.embed.encoder, frame.names
        x = embed(ratio=self.ratio).float()
        cosines = self.vocabulary.similarities(encoder, x, names)
        values = x.new_full((3, len(x)), nan)
        if cosines.shape[1]:
            values[0] = mcm(cosines)
            dense = embed.dense(ratio=self.ratio)
            if dense is not None:
                cells = dense.float().flatten(2).transpose(1, 2)
                values[1] = gl_mcm(cosines, self.vocabulary.similarities(encoder, cells, names))
            against = self._negatives(encoder, names, x.device)
            if len(against):
                values[2] = neg_label(cosines, torch.einsum("nd,gmd->ngm", x, against), encoder.logit_scale)
        return dict(zip(self.columns, values.masked_fill(embed.too_small, nan), strict=True))

    @torch.inference_mode(False)  # what is kept serves in any mode
    @torch.no_grad()
    def _negatives(self, encoder: Encoder, names: Mapping[int, str], device: torch.device) -> Tensor:
        """(groups, labels, D) text embeddings of the negative labels; chosen once for each encoder and label set."""
        made_for = self._made_for
        if made_for is None or made_for[0] is not encoder or made_for[1] != names:
            self.vocabulary.prepare(encoder, names, device)
            taken = {spoken(n).lower() for n in names.values()}
            words = [w for w in dict.fromkeys(map(spoken, self.negatives)) if w.lower() not in taken]
            words = [w for w, ok in zip(words, encoder.knows(words).tolist(), strict=True) if ok]
            if words:
                texts = encoder.average([[fill(TEMPLATE, w)] for w in words]).float().cpu()
                self._against = grouped(texts[mine(texts, self.vocabulary.texts.cpu())])
            else:
                log.warning("%s has no NegLabel: the encoder %s knows none of the negative labels",
                            self.name, encoder.name)
                self._against = torch.zeros(0, 0, encoder.dim)
            self._made_for = encoder, dict(names)
        self._against = placed(self._against, device)
        return self._against

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"negatives": list(self.negatives), "ratio": self.ratio}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.negatives, self.ratio, self._made_for = tuple(meta["negatives"]), meta["ratio"], None


def mcm(cosines: Tensor) -> Tensor:
    """Maximum Concept Matching (Ming et al., NeurIPS 2022), negated: -max softmax(cosines), at the paper's T = 1.

    Args:
        cosines: (..., K) of the image with each class, in [-1, 1]: not multiplied by the logit scale.
    """
    return -(cosines.amax(-1) - cosines.logsumexp(-1)).exp()


def gl_mcm(cosines: Tensor, cells: Tensor) -> Tensor:
    """GL-MCM (Miyai et al., IJCV 2025): MCM of the whole plus that of its best part, negated; the paper's lambda = 1.

    Args:
        cosines: (N, K) of the image with each class.
        cells: (N, P, K) of each of its parts.
    """
    return mcm(cosines) + mcm(cells).amin(-1)


def neg_label(known: Tensor, negative: Tensor, scale: float) -> Tensor:
    """NegLabel (Jiang et al., ICLR 2024) from 1: the softmax mass on the negative labels, mean over their groups.

    The softmax runs over the known labels and one group of negative ones. The published score is the mass on the known
    labels, which near 1 has no digits left.

    Args:
        known: (N, K) cosines with the known labels.
        negative: (N, groups, M) cosines with the negative labels.
        scale: 1 / temperature; the paper's .01 is that of CLIP.
    """
    return ((scale * negative).logsumexp(-1) - (scale * known).logsumexp(-1, keepdim=True)).sigmoid().mean(-1)


def mine(candidates: Tensor, known: Tensor, share: float = SHARE) -> Tensor:
    """NegMining: rows of the candidates (M, D) that are least like the known labels (K, D), in order of the candidates.

    A quantile instead of the maximum, so that one odd label does not decide.
    """
    near = (candidates @ known.T).quantile(QUANTILE, dim=1)
    return near.argsort(stable=True)[: max(1, round(share * len(candidates)))].sort().values


def grouped(negatives: Tensor, size: int = GROUP, seed: int = 0) -> Tensor:
    """(M, D) -> (groups, size, D) in random order; what fills no group is dropped, fewer than `size` are one group."""
    order = torch.randperm(len(negatives), generator=torch.Generator().manual_seed(seed))
    groups = max(1, len(negatives) // size)
    size = min(size, len(negatives))
    return negatives[order[: groups * size]].view(groups, size, -1)
