"""ODIN: how sure is it, flattened by a temperature, once the pixels are nudged towards what it says?"""

from __future__ import annotations

from math import nan
from typing import ClassVar

import torch
from torch import Tensor

from ...frame import Frame
from ...instances import Head
from ..base import Signal
from .base import Info, column
from .pixels import gradient_sign, log_probabilities, moved

TEMPERATURE = 1000.0
MAGNITUDE = 0.0014
"""Of the range of the pixels, [0, 1]: what Liang et al. take before their division by the standard deviation."""


def surprise(logits: Tensor, head: Head) -> Tensor:
    """(N,) -T log S, S = max_c softmax(f / T)_c (Liang et al. 2018, eq. 1); the factor T leaves its gradient's sign."""
    return -TEMPERATURE * log_probabilities(logits / TEMPERATURE, head).amax(1)


class ODIN(Signal):
    """-max softmax(f(x~) / T), x~ = x - e sign(-grad log max softmax(f(x) / T)) (Liang et al. 2018, eq. 1 and 2).

    T = 1000, and e = 0.0014 of the pixels' range. Two forward passes and one backward pass for all objects of an
    image: x~ comes from the sum of their losses, so that objects which see the same pixels share one nudge, where the
    paper has one object in an image. The softmax is over the classes, without a background.

    Sigmoid heads: max_c sigmoid(f_c / T) takes the place of the softmax's. The losses -log of it are then weighted
    nearly alike, and the score ranks as the largest logit at x~.

    Column (N,): `score`, in (-1, 0). NaN where the logits are not finite.
    """

    name = "ood/odin"
    info = Info(
        "ODIN",
        "Liang et al. 2018, Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
        "logits; two further passes with one gradient by the pixels",
        "negated; the sigmoid's maximum for a sigmoid head; one perturbation for all objects of an image",
    )
    requires = ("image", "look", "logits")
    columns: ClassVar = column(name)
    scores = tuple(columns)

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        found, view, look = frame.instances, frame.view, frame.look
        if found.logits is None or found.head is None or view is None or look is None:
            raise ValueError("the frame has no logits, no view or no look: skip this signal")
        head = found.head
        out = torch.full((len(found),), nan, device=found.device)
        known = found.logits.isfinite().all(1)
        if bool(known.any()):
            towards = -gradient_sign(frame, lambda logits: surprise(logits, head), known)
            logits = found.without_background(look(moved(view, MAGNITUDE * towards)[None]).logits[0])[known]
            # float64: the probabilities differ from one another by 1 / T
            flat = log_probabilities(logits.detach().double() / TEMPERATURE, head).amax(1).exp()
            out[known] = torch.where(flat.isfinite(), -flat, nan).float()
        return {f"{self.name}/score": out}
