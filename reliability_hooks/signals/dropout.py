"""Does the detector still say the same when units of it are dropped at random?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import nan
from typing import ClassVar

import torch
from torch import Tensor
from torch.special import entr

from ..frame import Candidates, Frame
from ..instances import Instances
from .base import Signal
from .geometry import ious

PASSES = 10
MATCH_IOU = 0.5
SEED = 0


class Dropout(Signal):
    """Monte-Carlo dropout (Gal & Ghahramani 2016, Dropout as a Bayesian Approximation); one batch of ten copies.

    Each copy of the pixels meets another sample of the dropped units. In a pass, the probability of a class for a
    detection is the best score among the raw boxes of that class with IoU >= 0.5, and 0 without one.

    The mutual information between class and dropped units (nats; Gal 2016, Uncertainty in Deep Learning, eq. 3.18) is
    the entropy of the mean over the passes minus the mean entropy. With head `sigmoid`, or one that is not known, it
    is the sum of the binary ones of the classes; with a softmax head it is over the classes and what is left to 1 (a
    background), after a division by the sum where different raw boxes bring it above 1.

    Columns (N,): `mutual_information`; `variance` over the passes, the mean of all classes but the background's;
    `score_mean`, `score_std` of the probability of the kept label. Variance and deviation are those of the population.
    `mutual_information`, `variance`: higher = more out-of-distribution. NaN where the box or the score is not finite.
    The random numbers are the same every time, and those of the user stay as they were.

    Raises:
        ValueError: The frame lacks what is required, or lies on a device whose random generator cannot be put back.
    """

    name = "dropout"
    requires = ("image", "dropout")
    columns: ClassVar = {
        "dropout/mutual_information": ("random parts of the network agree", "random parts of the network disagree"),
        "dropout/variance": ("steady scores under dropout", "scores vary under dropout"),
        "dropout/score_mean": ("unsure under dropout", "sure under dropout"),
        "dropout/score_std": ("its score holds under dropout", "its score varies under dropout"),
    }

    scores = ("dropout/mutual_information", "dropout/variance")

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        view, kept = frame.view, frame.instances
        if view is None or frame.rerun is None or not frame.dropout:
            raise ValueError("the frame has no view, or its model no dropout to run again with: skip this signal")
        if len(kept) == 0:
            return {name: kept.boxes.new_zeros(0, dtype=torch.float32) for name in self.columns}
        with _seeded(view.pixels.device):
            found = frame.rerun(view.pixels.repeat(PASSES, 1, 1, 1), dropout=True)

        boxes, scores = view.to_view(kept.boxes.float()), kept.scores.float()
        p, own = found_again(boxes, kept, found)
        table = torch.stack([
            mutual_information(p, exclusive=kept.head in ("softmax", "softmax+background")),
            p.var(0, correction=0).mean(1),
            own.mean(0),
            own.std(0, correction=0),
        ])
        broken = ~(boxes.isfinite().all(1) & scores.isfinite())
        return dict(zip(self.columns, table.masked_fill(broken, nan), strict=True))


def mutual_information(p: Tensor, exclusive: bool) -> Tensor:
    """(passes, N, K) probabilities -> (N,) nats >= 0, between the class and what differs from pass to pass.

    Args:
        p: In [0, 1].
        exclusive: The classes exclude each other, and what is left to 1 is one more; else each is a question by itself.
    """
    if exclusive:
        p = p / p.sum(2, keepdim=True).clamp(min=1)
        p = torch.cat([p, (1 - p.sum(2, keepdim=True)).clamp(min=0)], 2)
    else:
        p = torch.cat([p, 1 - p], 2)
    gained: Tensor = entr(p.mean(0)) - entr(p).mean(0)
    return gained.sum(1).clamp(min=0)


def found_again(boxes: Tensor, kept: Instances, passes: Sequence[Candidates]) -> tuple[Tensor, Tensor]:
    """(passes, N, K) best score of each class but the background's at each kept box, and (passes, N) of its label.

    Args:
        boxes: (N, 4) of `kept`, where those of the passes lie; N >= 1.
        kept: The objects.
        passes: What each pass found before suppression.
    """
    labels = torch.cat([kept.labels, *(c.labels for c in passes)])
    classes = max(int(labels.max()) + 1, 0 if kept.logits is None else kept.logits.shape[1])
    p = torch.stack([_best(boxes, c, classes) for c in passes])
    own = p.gather(2, kept.labels.expand(len(passes), -1)[..., None])[..., 0]
    return kept.without_background(p.flatten(0, 1)).view(len(passes), len(kept), -1), own


def _best(boxes: Tensor, raw: Candidates, classes: int) -> Tensor:
    """(N, classes) highest score of the raw boxes of each class that overlap each box; 0 without one."""
    row, at = (ious(boxes, raw.boxes.float()) >= MATCH_IOU).nonzero(as_tuple=True)
    best = boxes.new_zeros(len(boxes) * classes)
    best.scatter_reduce_(0, row * classes + raw.labels[at], raw.scores.float()[at], "amax")
    return best.view(len(boxes), classes)


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """The same random numbers on every entry; afterwards all generators are where they were."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the random generator of {device.type} cannot be put back after dropout: skip this signal")
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = range(torch.cuda.device_count()) if in_use else range(0)
    with torch.random.fork_rng(gpus):
        # not torch.manual_seed: it leaves a seed for GPUs that are not in use yet, which is nobody's to restore
        torch.default_generator.manual_seed(SEED)
        if gpus:
            torch.cuda.manual_seed_all(SEED)
        yield
