"""Attributes of any name, asked of a vision-language model that has been shown a few examples of the degradations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .. import crops
from ..evaluation.corruptions import CONDITIONS, corrupt
from ..frame import Frame, View
from .base import Signal
from .ood.base import SURE
from .prompts import OBJECT, Anchors, conditions, fill, prompts, spoken

if TYPE_CHECKING:
    from ..clip.embed import Embed
    from ..clip.encoder import Encoder

log = logging.getLogger(__name__)

SHOTS = 16
"""Examples of each attribute."""
AN_IMAGE = 4
"""At most that many examples come from one image."""
LARGE = 64
"""View pixels across that an example must have: less, and it is of low resolution before it is made so."""
SOFT, CACHE, SHARPNESS = 0.6, 1.17, 1.0
"""ComCa's alpha (share of the soft labels), lambda (weight of the cache) and beta."""
SEVERITIES = (0.25, 1.0)
CLEAN = ("a photo of a {label}", "a clear photo of a {label}")
DEGRADATIONS = {**{name: name for name in CONDITIONS}, "compression": "jpeg"}
"""Attribute -> the synthetic condition that makes it."""
DEFAULT = ("blur", "noise", "low_light", "low_resolution", "fog", "compression")


class Attribute(Signal):
    """Attributes of each object by a cache of examples (ComCa: Garosi et al., CVPR 2025), without training.

    x being the embedding of a crop, T those of the attributes' prompts and of "a photo of a {label}" (clean):
    logits = x T' + 1.17 exp(-(1 - x K')) V. The keys K are `SHOTS` crops of known objects, as they are and as they look
    with the whole image under each synthetic degradation at random severity; their labels V = .6 K T' + .4 onehot, each
    row brought to the mean and deviation that K T' has as a whole. The paper fetches its examples from the web. An
    attribute that no degradation makes has x T' alone: any list of attributes can be given.

    Columns (N,): one for each attribute in [0, 1], high = more of it: sigmoid(tau (logit - logit of clean)), where
    there are examples centred and scaled by them instead (`reading`). NaN where the object is too small to judge.

    Args:
        attributes: Name -> prompts, which may contain {label}; `{"rusty": ["a photo of a rusty {label}"]}`. Without it
            the conditions of `evaluation.corruptions`, with the prompts of `assets/conditions.yaml`.
        seed: Of the choice of examples and of their degradation.

    Raises:
        ValueError: A prompt with another placeholder, or no prompts.
    """

    name = "attribute"
    requires = ("image", "clip")
    learns = True
    columns: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init__(self, attributes: Mapping[str, Sequence[str]] | None = None, seed: int = 0) -> None:
        words: dict[str, tuple[str, str]] = {}
        if attributes is None:
            known = conditions()
            attributes = {name: known[name].high for name in DEFAULT}
            words = {name: known[name].words for name in DEFAULT}
        self._ask({name: prompts(list(given), f"attribute {name!r}") for name, given in attributes.items()}, words)
        self.keys: Tensor | None = None
        self.values, self.center, self.scale = torch.zeros(0, 0), torch.zeros(0), torch.zeros(0)
        self._encoder: Encoder | None = None
        self._shots, self._ranks = torch.zeros(0), torch.zeros(0)
        self._chance = torch.Generator().manual_seed(seed)

    def _ask(self, attributes: Mapping[str, Sequence[str]], words: Mapping[str, Sequence[str]]) -> None:
        self.attributes = {name: list(given) for name, given in attributes.items()}
        self.words = {name: list(words.get(name, (f"not {spoken(name)}", spoken(name)))) for name in attributes}
        self._anchors = Anchors([*self.attributes.values(), CLEAN], [*self.attributes, "clean"])
        own: Any = self  # the columns are those of the attributes
        own.columns = {f"{self.name}/{name}": (low, high) for name, (low, high) in self.words.items()}

    @property
    def made(self) -> list[str]:
        """The attributes of which there are examples."""
        return [name for name in self.attributes if name in DEGRADATIONS]

    @property
    def _at(self) -> list[int]:
        return [i for i, name in enumerate(self.attributes) if name in DEGRADATIONS]

    def update(self, frame: Frame) -> None:
        """Take in some of the known objects of a frame, as they are and in degraded versions of the frame."""
        if frame.embed is None or frame.view is None:
            raise ValueError("the frame has no embeddings: skip this signal")
        found, self._encoder = frame.instances, frame.embed.encoder
        truth = found.columns.get("truth")
        known = found.scores >= SURE if truth is None else truth == found.labels
        seen = crops.visible(frame.view, found.boxes, found.image_size)
        large = (seen[:, 2:] - seen[:, :2] >= LARGE).all(1)
        rows = (known & large).nonzero().squeeze(1).cpu()
        rows = rows[torch.randperm(len(rows), generator=self._chance)[:AN_IMAGE]]
        # a uniform sample of the stream: those with the largest random numbers, drawn before any work is done
        ranks = torch.cat([self._ranks, torch.rand(len(rows), generator=self._chance)])
        stays = ranks.topk(min(SHOTS, len(ranks))).indices
        old, new = stays[stays < len(self._ranks)], stays[stays >= len(self._ranks)]
        if len(new):
            made = self._examples(frame.embed, frame.view, rows[new - len(self._ranks)])
            self._shots = torch.cat([self._shots[old], made]) if len(old) else made
            self._ranks = ranks[torch.cat([old, new])]

    def _examples(self, embed: Embed, view: View, rows: Tensor) -> Tensor:
        """(n, 1 + made, D) on the CPU: embeddings of the objects as they are and under each degradation."""
        light = view.rgb()
        pixels = (light * 255).round().to(torch.uint8)
        looks = [light]
        for name in self.made:
            severity, seed = torch.rand(2, generator=self._chance).tolist()
            low, high = SEVERITIES
            looks.append(corrupt(pixels, DEGRADATIONS[name], low + (high - low) * severity, int(seed * 2**31)) / 255)
        versions = [replace(embed, view=View(look, view.scale, view.offset), _made={}) for look in looks]
        return torch.stack([embed.encoder.images(v.crops(rows)).float().cpu() for v in versions], 1)

    @torch.inference_mode(False)  # what is kept serves in any mode
    @torch.no_grad()
    def finish(self) -> None:
        """Label the examples."""
        if self._encoder is None:
            raise ValueError(f"{self.name} has seen no frame; see Monitor.learning")
        encoder, texts = self._encoder, self._texts(self._encoder)
        count = len(self._shots)
        if count == 0:
            log.warning("signal %s has seen no known object of %d pixels across: it goes by words alone",
                        self.name, LARGE)
            self._shots = texts.new_zeros(0, *texts.shape)
        self.keys = self._shots.transpose(0, 1).flatten(0, 1).clone()
        self.values = soft_labels(self.keys, texts, torch.arange(len(texts)).repeat_interleave(count))
        self.center = torch.zeros(len(self.attributes))
        self.scale = torch.full((len(self.attributes),), encoder.logit_scale)
        if count:
            whose = torch.arange(count).repeat(len(texts))
            cache = cached(self.keys, self.keys, self.values, skip=whose[:, None] == whose)
            odds = self.keys @ (texts[1:] - texts[:1]).T + cache[:, 1:] - cache[:, :1]
            low, *high = odds.view(len(texts), count, -1).mean(1)
            self.center[self._at], self.scale[self._at] = reading(
                low, torch.stack(high).diagonal(), encoder.logit_scale
            )
        self._shots, self._ranks = torch.zeros(0), torch.zeros(0)

    def _texts(self, encoder: Encoder) -> Tensor:
        """(1 + made, D) of clean and of each attribute that examples are made of, for an object of no named class."""
        groups = [CLEAN, *(self.attributes[name] for name in self.made)]
        return encoder.average([[fill(p, OBJECT) for p in group] for group in groups]).float().cpu()

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if self.keys is None:
            raise ValueError(f"{self.name} has not learnt yet; see Monitor.learning")
        if frame.embed is None:
            raise ValueError("the frame has no embeddings: skip this signal")
        encoder, x = frame.embed.encoder, frame.embed().float()
        anchors = self._anchors(encoder, frame.instances.labels, frame.names)
        base = (anchors @ x[:, :, None]).squeeze(2)
        odds = base[:, :-1] - base[:, -1:]
        if len(self.keys):
            cache = cached(x, self.keys.to(x.device), self.values.to(x.device))
            odds[:, self._at] += cache[:, 1:] - cache[:, :1]
        values = ((odds - self.center.to(x.device)) * self.scale.to(x.device)).sigmoid()
        values = values.masked_fill(frame.embed.too_small[:, None], nan)
        return dict(zip(self.columns, values.T.contiguous(), strict=True))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        held = {"values": self.values, "center": self.center, "scale": self.scale}
        return {} if self.keys is None else {"keys": self.keys, **held}, {
            "attributes": self.attributes, "words": self.words
        }  # fmt: skip

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self._ask(meta["attributes"], meta["words"])
        self.keys = tensors.get("keys")
        if self.keys is not None:
            self.values, self.center, self.scale = (tensors[k] for k in ("values", "center", "scale"))


def soft_labels(keys: Tensor, texts: Tensor, whose: Tensor, share: float = SOFT) -> Tensor:
    """(S, A) labels of the examples: share K T' + (1 - share) onehot, every row rescaled to cosines' size.

    ComCa brings each row to the mean .2064 and the deviation .0438, which its encoder's cosines have; here those of
    K T' are taken, whatever the encoder.

    Args:
        keys: (S, D) unit rows.
        texts: (A, D) unit rows.
        whose: (S,) int64, the attribute that each example was made to show.
        share: Of the soft part.
    """
    cosines = keys @ texts.T
    if cosines.numel() < 2 or cosines.shape[1] < 2:
        return cosines
    mixed = share * cosines + (1 - share) * one_hot(whose, len(texts))
    spread, center = torch.std_mean(mixed, 1, keepdim=True)
    return cosines.mean() + (mixed - center) * (cosines.std() / spread)


def cached(x: Tensor, keys: Tensor, values: Tensor, skip: Tensor | None = None) -> Tensor:
    """(N, A) what the examples say: 1.17 exp(-(1 - x K')) V.

    Args:
        x: (N, D) unit rows.
        keys: (S, D) unit rows.
        values: (S, A).
        skip: (N, S) bool, examples that have no say on an object.
    """
    near = (-SHARPNESS * (1 - x @ keys.T)).exp()
    logits: Tensor = CACHE * ((near if skip is None else near.masked_fill(skip, 0)) @ values)
    return logits


def reading(low: Tensor, high: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """How differences of logits are read: sigmoid(scale (difference - center)), with the (center, scale) given here.

    The sum over all examples multiplies what the words prefer in general, which leaves a ranking as it is but not a
    probability. The middle between the means on clean examples and on those of the attribute becomes .5, and these
    means .12 and .88; the scale never exceeds that of the encoder.

    Args:
        low: (A,) mean difference on clean examples, each judged by those of other objects.
        high: (A,) that on the examples of the attribute.
        temperature: tau of the encoder.
    """
    gap = high - low
    scale = torch.where(gap > 4 / temperature, 4 / gap, torch.full_like(gap, temperature))
    return (low + high) / 2, scale
