"""Is there writing on the object, which can turn what a vision-language model says of it?"""

from __future__ import annotations

from math import nan
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vecdot

from ..frame import Frame
from .base import Signal
from .condition import opposites
from .prompts import Anchors

WRITTEN = (
    "a photo of a {label} with text written on it",
    "a photo of a {label} with a word on it",
    "a photo of a {label} with a label that says something",
)
BLANK = (
    "a photo of a {label} without any writing",
    "a photo of a {label} with no text on it",
    "a photo of a {label}",
)


class Typographic(Signal):
    """The risk of a typographic attack (Goh et al., Distill 2021; Materzynska et al., CVPR 2022).

    Columns (N,), NaN where the object is too small to judge: `text` P(there is writing on it) in [0, 1], from opposite
    prompts as in `condition`; `flip` 1 - cos of the embeddings of the crop and of its mirror image, in [0, 2]: mirrored
    writing cannot be read, while most objects stay what they are.
    """

    name = "typographic"
    requires = ("image", "clip")
    columns: ClassVar = {
        "typographic/text": ("no writing on it", "writing on it"),
        "typographic/flip": ("looks the same when mirrored", "looks different when mirrored"),
    }

    def __init__(self) -> None:
        self._anchors = Anchors([WRITTEN, BLANK], ["writing", "no writing"])

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if frame.embed is None:
            raise ValueError("the frame has no embeddings: skip this signal")
        encoder, x = frame.embed.encoder, frame.embed().float()
        text = opposites(x, self._anchors(encoder, frame.instances.labels, frame.names), encoder.logit_scale)
        flip = (1 - vecdot(x, frame.embed(mirrored=True).float())).clamp(min=0)
        table = torch.stack([text.squeeze(1), flip]).masked_fill(frame.embed.too_small, nan)
        return dict(zip(self.columns, table, strict=True))
