"""Boxes around the features of each class, and how far they would have to grow to take an object in."""

from __future__ import annotations

from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from .base import Info, Rows, Score, column
from .reservoir import Reservoir

PER_CLASS = 300
BOXES = 4
ROWS_PER_BOX = 10
HELD_OUT = 5
FALSE_ALARMS = 0.05
CELLS = 16_000_000


def tight_boxes(rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corners (B, D) of the tight boxes around k-means clusters of the rows.

    At most `BOXES`, and one for every `ROWS_PER_BOX` rows.

    Args:
        rows: (N, D), N >= 1.
        scale: (D,) units in which the clusters are looked for.
    """
    wanted = min(BOXES, len(rows) // ROWS_PER_BOX, len(torch.unique(rows, dim=0)))
    if wanted < 2:
        return rows.amin(0)[None], rows.amax(0)[None]
    from sklearn.cluster import KMeans

    found = torch.from_numpy(KMeans(wanted, n_init=1, random_state=0).fit((rows / scale).numpy()).labels_).long()
    own = [rows[found == i] for i in torch.unique(found)]
    return torch.stack([r.amin(0) for r in own]), torch.stack([r.amax(0) for r in own])


def enlargement(z: Tensor, low: Tensor, high: Tensor, scale: Tensor) -> Tensor:
    """(N, B) the least number by which the box has to grow on every side, in `scale`s, to take the row in.

    0 on the surface; negative inside, by how much it could shrink.

    Args:
        z: (N, D).
        low: (N or 1, B, D).
        high: As low.
        scale: (D,) positive.
    """
    return (torch.maximum(low - z[:, None], z[:, None] - high) / scale).amax(2)


def least_enlargement(
    z: Tensor, classes: Tensor, low: Tensor, high: Tensor, margin: Tensor, scale: Tensor, ids: Tensor, of: Tensor
) -> Tensor:
    """(N,) smallest enlargement of a box of the row's class, less the margin that the box already has.

    Args:
        z: (N, D).
        classes: (N,) int64; where it has no boxes, those of all classes stand for it.
        low: (B, D), B >= 1.
        high: (B, D).
        margin: (B,) enlargement of the box that keeps to the rate of false alarms.
        scale: (D,).
        ids: (C,) int64 ascending, the classes with boxes.
        of: (C, P) int64 their boxes, -1 where there are fewer than P.
    """
    at = torch.searchsorted(ids, classes).clamp(max=len(ids) - 1)
    known = ids[at] == classes
    out = z.new_zeros(len(z))
    width = max(1, z.shape[1])
    for rows in torch.split(known.nonzero().squeeze(1), max(1, CELLS // (of.shape[1] * width))):
        own = of[at[rows]]
        value = enlargement(z[rows], low[own], high[own], scale) - margin[own]
        out[rows] = value.masked_fill(own < 0, torch.inf).amin(1)
    for rows in torch.split((~known).nonzero().squeeze(1), max(1, CELLS // (len(low) * width))):
        out[rows] = (enlargement(z[rows], low[None], high[None], scale) - margin).amin(1)
    return out


class BoxAbstraction(Score):
    """How far the boxes around the features of the predicted class would have to grow to take the object in.

    The paper's monitor says yes or no: outside all boxes of the predicted class, once they are enlarged until a given
    rate of known objects lies outside (here 5 %). This is the enlargement that is still missing, so that above 0 means
    outside. It is added on every side in units of each feature's deviation; the authors' code multiplies the corners
    by 1 - delta and 1 + delta, which does nothing to a corner at 0 and moves a negative one the wrong way.

    Learnt: at most 300 known objects of each class, four fifths of which make at most four boxes by k-means. The
    enlargement is a conformal quantile of the last fifth, of all classes together where a class has too few. A class
    without known objects is judged by the nearest box of any.
    """

    name = "ood/bam"
    info = Info(
        "BAM", "Wu et al. 2023, BAM: box abstraction monitors for real-time OoD detection in object detection",
        "features; learns boxes of each class", "made continuous",
    )
    evidence = ("features",)
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self.samples: dict[int, Reservoir] = {}

    def learn(self, rows: Rows) -> None:
        (z,) = rows.require("features")
        for c in torch.unique(rows.classes).tolist():
            self.samples.setdefault(c, Reservoir(PER_CLASS, seed=c + 1)).update(z[rows.classes == c])

    def finish(self) -> None:
        if not self.samples:
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        known = {c: self.samples[c].rows for c in sorted(self.samples)}
        spread = torch.cat(list(known.values())).double().std(0, correction=0)
        floor = 1e-2 * spread.square().mean().sqrt()  # a feature that never varied says nothing when it does by a hair
        scale = spread.clamp(min=floor if bool(floor > 0) else 1.0).float()

        boxes = {c: tight_boxes(_fitting(rows), scale) for c, rows in known.items()}
        held = {
            c: enlargement(rows[HELD_OUT - 1 :: HELD_OUT], boxes[c][0][None], boxes[c][1][None], scale).amin(1)
            for c, rows in known.items()
        }
        together = torch.cat(list(held.values()))
        usual = _quantile(together)
        if usual is None:
            usual = float(together.amax()) if len(together) else 0.0
        margin, of, count = [], torch.full((len(known), BOXES), -1), 0
        for i, c in enumerate(known):
            n = len(boxes[c][0])
            own = _quantile(held[c])
            margin += [max(0.0, usual if own is None else own)] * n
            of[i, :n] = torch.arange(count, count + n)
            count += n
        low, high = (torch.cat(corners) for corners in zip(*boxes.values(), strict=True))
        self.tensors = {
            "low": low, "high": high, "margin": torch.tensor(margin), "scale": scale,
            "ids": torch.tensor(list(known)), "of": of,
        }
        self.samples = {}

    def score(self, rows: Rows) -> Tensor:
        (z,) = rows.require("features")
        learnt = (self.learnt(name, z) for name in ("low", "high", "margin", "scale", "ids", "of"))
        return least_enlargement(z, rows.classes, *learnt)


def _fitting(rows: Tensor) -> Tensor:
    """The rows that make the boxes: all but every fifth."""
    return rows[torch.arange(len(rows)) % HELD_OUT != HELD_OUT - 1]


def _quantile(values: Tensor) -> float | None:
    """The conformal 95 % quantile (Vovk et al. 2005); None for too few values."""
    rank = ceil((len(values) + 1) * (1 - FALSE_ALARMS))
    return float(values.sort().values[rank - 1]) if rank <= len(values) else None
