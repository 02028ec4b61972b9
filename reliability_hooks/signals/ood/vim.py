"""Virtual-logit matching: what of the features no logit sees, against what the logits see."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ...instances import Head
from .base import Info, Rows, Score, column
from .reservoir import Reservoir

CHUNK = 32768
CAPACITY = 20_000


def origins(weight: Tensor, bias: Tensor) -> Tensor:
    """(L, D) -pinv(W) b: where each level's classifier gives the logits closest to 0 (Wang et al. 2022, eq. 3).

    Args:
        weight: (L, K, D).
        bias: (L, K).
    """
    rounding = max(weight.shape[1:]) * torch.finfo(torch.float32).eps  # the weights have no more digits
    origin: Tensor = -(torch.linalg.pinv(weight.double(), rtol=rounding) @ bias.double().unsqueeze(-1)).squeeze(-1)
    return origin.to(weight.dtype)


def dimension(d: int) -> int:
    """Of the principal space, by the features' (Wang et al. 2022, section 5.1); d / 2, rounded down, below 768."""
    return 1000 if d >= 2048 else 512 if d >= 768 else d // 2


def evidence_of(logits: Tensor, head: Head) -> Tensor:
    """(N,) what the virtual logit is weighed against: logsumexp; for a sigmoid head JointEnergy, sum of softplus."""
    return softplus(logits).sum(1) if head == "sigmoid" else logits.logsumexp(1)


def scale(residual: Tensor, level: Tensor, length: Tensor) -> Tensor:
    """The scalar alpha that brings the mean residual to the level of the logits (Wang et al. 2022, eq. 6).

    0 where no row has any length; its sign is positive, so that a larger residual is never taken for known.

    Args:
        residual: (N,), N >= 1.
        level: (N,) largest logits.
        length: (N,) of the centred features; a mean residual under a millionth of theirs is rounding and taken as that.
    """
    mean = torch.maximum(residual.mean(), 1e-6 * length.mean())
    return torch.where(mean > 0, level.mean().abs() / mean, 0.0)


def vim(
    z: Tensor, logits: Tensor, origin: Tensor, which: Tensor, null: Tensor, alpha: Tensor, head: Head = "softmax"
) -> Tensor:
    """(N,) alpha |P_perp (z - o)| - logsumexp f (Wang et al. 2022, eq. 7 without its monotone map).

    Args:
        z: (N, D), what the classifier sees.
        logits: (N, K).
        origin: (L, D) of `origins`.
        which: (N,) int64 in [0, L).
        null: (D, D - d) orthonormal basis of the complement of the principal space.
        alpha: Scalar of `scale`.
        head: For `sigmoid` JointEnergy stands for the logsumexp.
    """
    parts, seen = [], origin @ null
    for part, f, level in zip(*(torch.split(t, CHUNK) for t in (z, logits, which)), strict=True):
        outside = torch.addmm(seen if len(seen) == 1 else seen[level], part, null, beta=-1)
        parts.append(outside.norm(dim=1) * alpha - evidence_of(f, head))
    return torch.cat(parts) if parts else z.new_zeros(0)


class ViM(Score):
    """Virtual logit of the features' part that the classifier's principal space leaves out, less the logits' energy.

    Learnt in one pass: the second moment of the classifier's inputs about the origin, and a sample of at most 20,000
    of them with their logits for alpha. Where a detector has a classifier for each level of its pyramid, the inputs of
    each are centred on its own origin and all share one principal space and one alpha.

    For a sigmoid head, for which the paper says nothing, JointEnergy stands for the logsumexp, and alpha matches the
    residual to JointEnergy instead of the largest logit, whose mean lies near 0 or below there.
    """

    name = "ood/vim"
    info = Info(
        "ViM", "Wang et al. 2022, ViM: out-of-distribution with virtual-logit matching",
        "logits, the classifier's inputs and weights; learns a principal space",
    )
    evidence = ("logits", "classifier")
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self._clear()

    def _clear(self) -> None:
        self.moment = torch.zeros(0, 0, dtype=torch.float64)
        self.sample = Reservoir(CAPACITY)
        self.classifier: tuple[Tensor, Tensor, Tensor] | None = None  # weight, bias, their origin

    def learn(self, rows: Rows) -> None:
        z, logits, which = rows.require("inputs", "logits", "which")
        origin = self._origin(rows)
        centred = z - origin[which]
        wide = centred.double().cpu()
        if self.sample.seen == 0:
            self.moment = wide.new_zeros(wide.shape[1], wide.shape[1])
        self.moment.addmm_(wide.T, wide)
        level = evidence_of(logits, "sigmoid") if rows.head == "sigmoid" else logits.amax(1)
        self.sample.update(torch.cat([centred, level[:, None]], 1))

    def finish(self) -> None:
        if self.classifier is None:
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        _, vectors = torch.linalg.eigh(self.moment / self.sample.seen)
        null = vectors[:, : len(vectors) - dimension(len(vectors))].float().contiguous()
        centred, level = torch.split(self.sample.rows, [len(vectors), 1], 1)
        alpha = scale((centred @ null).norm(dim=1), level, centred.norm(dim=1))
        self.tensors = {"origin": self.classifier[2].cpu(), "null": null, "alpha": alpha.reshape(1)}
        self._clear()

    def score(self, rows: Rows) -> Tensor:
        z, logits, which = rows.require("inputs", "logits", "which")
        origin, null, alpha = (self.learnt(name, z) for name in ("origin", "null", "alpha"))
        return vim(z, logits, origin, which, null, alpha, rows.head or "softmax")

    def _origin(self, rows: Rows) -> Tensor:
        """Of the rows' classifier, the pseudo-inverse taken anew only where it is another one."""
        weight, bias = rows.require("weight", "bias")
        held = self.classifier
        if held is None or not (torch.equal(held[0], weight) and torch.equal(held[1], bias)):
            held = self.classifier = (weight, bias, origins(weight, bias))
        return held[2]
