"""The scores of `scores.py` and plain statistics of the logits as a signal."""

from __future__ import annotations

from math import nan
from typing import ClassVar

import torch
from torch import Tensor

from ...frame import Frame
from ..base import Signal
from . import scores

LIMIT = 1e4
"""Logits are clipped to +-LIMIT, so that a class masked out with -inf leaves every column finite."""


class LogitScores(Signal):
    """Out-of-distribution scores and statistics of each object's logits.

    The columns are the same for every head, and each is the variant that the head defines; a score that would be
    mis-specified is never computed. With head `softmax+background` the background's column is dropped and the
    softmax taken over the rest; `probability_sum` alone uses the full softmax.

    | Column | softmax, softmax+background | sigmoid |
    |---|---|---|
    | `msp` | -max softmax | -max sigmoid |
    | `energy` | Energy, T = 1 | JointEnergy |
    | `entropy` | of the classes | sum of the binary ones |
    | `gen` | gamma = .1, all classes, p = softmax | the same, p = sigmoid |
    | `second_probability` | second-largest p | the same |
    | `probability_sum` | sum of p: 1, or 1 - p(background) | sum of p: expected number of classes |

    Alike for all: `max_logit` (-max f); `margin` largest minus second-largest logit; `label_logit` that of the
    predicted label; `label_rank` log(1 + classes with a higher logit than the label); `logit_mean`, `logit_std`
    (population). `msp`, `max_logit`, `energy`, `entropy`, `gen`: higher = more out-of-distribution.

    Undefined, hence NaN: the whole row where a logit is NaN; `margin` and `second_probability` with one class;
    `label_logit` and `label_rank` where the label is no column of the logits.
    """

    name = "ood/logits"
    requires = ("logits",)
    columns: ClassVar = {
        "ood/logits/msp": ("one class is convincing", "no class is convincing"),
        "ood/logits/max_logit": ("strong evidence for a class", "weak evidence for any class"),
        "ood/logits/energy": ("looks familiar", "looks unfamiliar"),
        "ood/logits/entropy": ("classes are clear", "classes are unclear"),
        "ood/logits/gen": ("classes are clear", "classes are spread"),
        "ood/logits/margin": ("two classes are close", "one class leads clearly"),
        "ood/logits/label_logit": ("weak evidence for the label", "strong evidence for the label"),
        "ood/logits/label_rank": ("the label is the first class", "another class has more evidence"),
        "ood/logits/second_probability": ("no second class", "a second class is likely"),
        "ood/logits/logit_mean": ("little evidence for any class", "evidence for many classes"),
        "ood/logits/logit_std": ("classes hardly differ", "classes differ clearly"),
        "ood/logits/probability_sum": ("little evidence of an object", "evidence for more than one class"),
    }

    scores = tuple(f"ood/logits/{name}" for name in ("msp", "max_logit", "energy", "entropy", "gen"))

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        found = frame.instances
        if found.logits is None or found.head is None:
            raise ValueError("the instances have no logits: skip this signal")
        head, all_logits = found.head, found.logits.float().clamp(-LIMIT, LIMIT)
        f = found.without_background(all_logits)
        p = scores.probabilities(f, head)
        sigmoid = head == "sigmoid"

        known = (found.labels >= 0) & (found.labels < all_logits.shape[1])
        label = all_logits.gather(1, torch.where(known, found.labels, 0)[:, None]).squeeze(1)
        label = torch.where(known, label, nan)
        two = f.topk(min(2, f.shape[1])).values
        second = two[:, 1] if two.shape[1] == 2 else torch.full_like(label, nan)
        whole = p if found.background is None else found.without_background(all_logits.softmax(-1))
        values = {
            "msp": -p.amax(1),
            "max_logit": scores.max_logit(f),
            "energy": scores.joint_energy(f) if sigmoid else scores.energy(f),
            "entropy": scores.binary_entropy(f) if sigmoid else scores.entropy(f),
            "gen": scores.gen(f, head),
            "margin": two[:, 0] - second,
            "label_logit": label,
            "label_rank": torch.where(known, (f > label[:, None]).sum(1), nan).log1p(),
            "second_probability": p.topk(2).values[:, 1] if p.shape[1] > 1 else second,
            "logit_mean": f.mean(1),
            "logit_std": (f - f.mean(1, keepdim=True)).square().mean(1).sqrt(),
            "probability_sum": whole.sum(1),
        }
        table = torch.stack(list(values.values())).masked_fill_(all_logits.isnan().any(1), nan)
        return {f"{self.name}/{key}": row for key, row in zip(values, table, strict=True)}
