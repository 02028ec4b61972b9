"""What one training step asks of the heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, normalize

from .captions import TEMPLATES, caption, every_caption_word
from .model import Heads

PARAPHRASES = 1
LABELLED = 3
NEGATIVES = 80
CAPTIONS = 64
Part = tuple[list[str], Callable[[Tensor], Tensor]]
"""Texts, and the loss that is made of their embeddings."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Names and prompts.

    Attributes:
        names: Of all classes, the `known` first ones COCO's.
        known: How many are COCO's.
        other: COCO class -> further names.
        of_whole: (len(names),) COCO class that an ImageNet class is a kind of; -1 for none.
        imagenet: (1000,) index into `names`.
        prompts: For each condition high and low paraphrases.
    """

    names: tuple[str, ...]
    known: int
    other: dict[str, list[str]]
    of_whole: Tensor
    imagenet: Tensor
    prompts: list[tuple[list[str], list[str]]]

    def every(self) -> list[str]:
        """Texts in which every word of training occurs."""
        names = [*self.names, *(n for more in self.other.values() for n in more), "object"]
        pairs = [text for pair in self.prompts for side in pair for text in side]
        lines = [text.format(label=name) for text in (*pairs, *TEMPLATES) for name in ("object", "dog")]
        return [*names, *lines, *every_caption_word()]

    def say(self, label: int, rng: np.random.Generator) -> str:
        """A name of the class."""
        name = self.names[label]
        more = self.other.get(name, []) if label < self.known else []
        return more[rng.integers(len(more))] if more and rng.random() < 0.3 else name


def losses(
    heads: Heads, words: Vocabulary, batch: dict[str, Tensor], teacher: Tensor, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Each part of the loss.

    Args:
        heads: What is trained.
        words: Names and prompts.
        batch: `standard` (B, D), `label` (B,), `target` and `weight` (B, C).
        teacher: (B, 1000) logits of the ImageNet classifier behind the frozen trunk.
        rng: Chooses words.
    """
    image = heads.images(batch["standard"])
    tau = heads.logit_scale.exp().clamp(max=100)
    label = batch["label"]
    mapped = torch.where(words.of_whole[label] >= 0, words.of_whole[label], label)
    label = torch.where(torch.from_numpy(rng.random(len(label)) < 0.6), mapped, label)
    parts = {
        "condition": _conditions(words, batch, label, image, tau, rng),
        "class": _classes(words, label, image, tau, rng),
        "teacher": _distilled(words, teacher, image, tau, rng),
        "caption": _captions(words, batch, label, image, tau, rng),
    }
    texts = heads.texts([text for said, _ in parts.values() for text in said])
    split = texts.split([len(said) for said, _ in parts.values()])
    return {name: of(text) for (name, (_, of)), text in zip(parts.items(), split, strict=True)}


def _conditions(
    words: Vocabulary, batch: dict[str, Tensor], label: Tensor, image: Tensor, tau: Tensor, rng: np.random.Generator
) -> Part:
    """A sigmoid of the difference for each condition; prompts name the class of some, and "object" for the rest."""
    groups = torch.unique(label[torch.from_numpy(rng.choice(len(label), LABELLED, replace=False))]).tolist()
    said = ["object", *(words.say(g, rng) for g in groups)]
    texts = [side[k].format(label=name) for name in said for pair in words.prompts for side in pair
             for k in rng.choice(len(side), PARAPHRASES)]  # fmt: skip
    group = torch.zeros_like(label)
    for k, g in enumerate(groups):
        group[label == g] = k + 1
    top, at = batch["target"].max(1)
    alone = (top > 0.55) & ((batch["target"] > 0.3).sum(1) == 1)

    def loss(text: Tensor) -> Tensor:
        text = text.view(len(said), len(words.prompts), 2, PARAPHRASES, -1).mean(3)
        difference = torch.subtract(*normalize(text, dim=-1).unbind(2))
        logit = tau * (image[:, None] * difference[group]).sum(-1)
        each = binary_cross_entropy_with_logits(logit, batch["target"], batch["weight"], reduction="none").mean()
        # the one that was applied should stand out from the others
        rank = cross_entropy(logit[alone], at[alone]) if bool(alone.any()) else logit.sum() * 0
        return 4 * each + 0.3 * rank

    return texts, loss


def _classes(words: Vocabulary, label: Tensor, image: Tensor, tau: Tensor, rng: np.random.Generator) -> Part:
    """Which of COCO's names, or of some others, is it? A kind of a COCO class is no wrong name for it."""
    own = torch.unique(label[label >= words.known])
    spare = torch.from_numpy(rng.integers(words.known, len(words.names), NEGATIVES))
    listed = torch.unique(torch.cat([torch.arange(words.known), own, spare]))
    said = [_template(rng).format(label=words.say(int(k), rng)) for k in listed]
    place = torch.searchsorted(listed, label)
    family = torch.where(words.of_whole[listed] >= 0, words.of_whole[listed], listed)
    kin = (family[None] == family[place][:, None]).scatter(1, place[:, None], False)
    return said, lambda text: cross_entropy((tau * image @ text.T).masked_fill(kin, -1e4), place)


def _distilled(words: Vocabulary, teacher: Tensor, image: Tensor, tau: Tensor, rng: np.random.Generator) -> Part:
    """The ImageNet classifier's opinion among some of its classes: what COCO's few photographs cannot teach."""
    likely = teacher.softmax(1).mean(0).topk(40).indices
    some = torch.unique(torch.cat([likely, torch.from_numpy(rng.integers(0, 1000, 40))]))
    said = [_template(rng).format(label=words.names[int(words.imagenet[k])]) for k in some]
    opinion = teacher[:, some].log_softmax(1)
    return said, lambda text: 0.5 * kl_div((tau * image @ text.T).log_softmax(1), opinion, reduction="batchmean",
                                           log_target=True)


def _captions(
    words: Vocabulary, batch: dict[str, Tensor], label: Tensor, image: Tensor, tau: Tensor, rng: np.random.Generator
) -> Part:
    """The contrastive loss (Radford et al. 2021) on whole captions; equal captions are no negatives."""
    said = [caption(words.say(int(k), rng), t, rng) for k, t in
            zip(label[:CAPTIONS], batch["target"][:CAPTIONS], strict=True)]  # fmt: skip
    at = torch.arange(len(said))
    same = torch.tensor([[a == b for b in said] for a in said]) & ~torch.eye(len(said), dtype=torch.bool)

    def loss(text: Tensor) -> Tensor:
        logits = (tau * image[:CAPTIONS] @ text.T).masked_fill(same, -1e4)
        return (cross_entropy(logits, at) + cross_entropy(logits.T, at)) / 4

    return said, loss


def _template(rng: np.random.Generator) -> str:
    return TEMPLATES[rng.integers(len(TEMPLATES))]
