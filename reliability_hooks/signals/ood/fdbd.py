"""fDBD: how far the object lies from the boundaries between the classes, relative to its distance from the middle."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Info, Rows, column
from .last_layer import OfMeanInputs

NEAREST = 1e-8
"""Least distance from the mean that is divided by."""


def boundary_norms(weight: Tensor) -> Tensor:
    """(L, K, K) |w_a - w_b|; infinity, a boundary infinitely far, where both are the same and there is none."""
    w = weight.detach().double()
    norms = torch.cdist(w, w, compute_mode="use_mm_for_euclid_dist")
    size = torch.linalg.vector_norm(w, dim=2)
    none = norms <= 1e-6 * (size[:, :, None] + size[:, None, :])  # what rounding leaves of equal rows
    none |= torch.eye(w.shape[1], dtype=torch.bool, device=w.device)
    return norms.masked_fill(none, torch.inf).float()


def fdbd(logits: Tensor, inputs: Tensor, which: Tensor, mean: Tensor, norms: Tensor) -> Tensor:
    """-mean over c != y of (f_y - f_c) / |w_y - w_c|, over |z - mu| (Liu & Qin 2024), y = argmax f.

    The label of a sigmoid head is the class of the largest logit too, so the boundaries between labels, and with them
    the score, are the same. Classes of equal weights have no boundary between them and add 0 to the mean; with a
    single class every score is 0.

    Args:
        logits: (N, K).
        inputs: (N, D) z.
        which: (N,) int64 in [0, L).
        mean: (L, D) mu of the known inputs.
        norms: (L, K, K) of `boundary_norms`.

    Returns:
        (N,) float <= 0.
    """
    best, y = logits.max(1)
    boundaries: Tensor = ((best[:, None] - logits) / norms[which, y]).sum(1) / max(logits.shape[1] - 1, 1)
    middle: Tensor = torch.linalg.vector_norm(inputs - mean[which], dim=1)
    return -boundaries / middle.clamp(min=NEAREST)


class FDBD(OfMeanInputs):
    """Mean distance to the decision boundaries over the distance from the mean of known objects, negated.

    Each level of a head has a mean of its own; one that none of the learnt objects came from gets the mean of all.
    """

    name = "ood/fdbd"
    info = Info(
        "fDBD",
        "Liu & Qin 2024, Fast Decision Boundary based Out-of-Distribution Detector",
        "logits, the classifier's inputs and weights; learns the mean of the inputs",
        "negated",
    )
    columns: ClassVar = column(name)

    def made(self, mean: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {"mean": mean, "norms": boundary_norms(weight)}

    def score(self, rows: Rows) -> Tensor:
        logits, inputs, which = rows.require("logits", "inputs", "which")
        return fdbd(logits, inputs, which, self.learnt("mean", inputs), self.learnt("norms", inputs))
