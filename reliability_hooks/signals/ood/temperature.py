"""Maximum softmax probability after temperature scaling."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...frame import Frame
from ...instances import Head
from .base import Info, Rows, Score, class_columns, column
from .reservoir import Reservoir
from .scores import msp

CAPACITY = 20_000
RANGE = (1 / 20, 20.0)
"""The temperature stays in here: where every row is right, the likelihood would take it to 0."""


def fit_temperature(logits: Tensor, truth: Tensor, head: Head) -> float:
    """The T in `RANGE` that minimises the negative log-likelihood of logits / T (Guo et al. 2017).

    The likelihood is concave in 1/T, so that the zero of its slope is found by bisection. With a sigmoid head it is
    that of the K yes/no answers, of which the true class alone is yes.

    Args:
        logits: (N, K), N > 0.
        truth: (N,) int64 column of the true class.
        head: How logits become probabilities.

    Raises:
        ValueError: No rows, or a class that is no column.
    """
    if len(logits) == 0:
        raise ValueError("a temperature needs at least one labelled row")
    if not bool(((truth >= 0) & (truth < logits.shape[1])).all()):
        raise ValueError(f"true classes must lie in [0, {logits.shape[1]})")
    f = logits.double()
    right = f.gather(1, truth[:, None]).sum()
    low, high = (-math.log(t) for t in reversed(RANGE))  # of log(1/T)
    for _ in range(30):
        middle = (low + high) / 2
        scaled = f * math.exp(middle)
        p = scaled.sigmoid() if head == "sigmoid" else scaled.softmax(1)
        falls = bool((p * f).sum() < right)  # the likelihood still rises with 1/T
        low, high = (middle, high) if falls else (low, middle)
    return math.exp(-(low + high) / 2)


def temperature_msp(logits: Tensor, head: Head, temperature: float | Tensor) -> Tensor:
    """-max softmax(f / T) in [-1, 0]; for a sigmoid head -max sigmoid(f / T), the same ranking as `scores.msp`."""
    return msp(logits.float() / temperature, head)


class TemperatureMSP(Score):
    """The maximum probability, negated, at the temperature that fits the true classes best.

    The temperature is learnt from the column `truth` of the instances, the true class of each (Guo et al. use labelled
    data too): a uniform sample of at most `CAPACITY` objects, wrongly classified ones among them; rows whose truth is
    no class of the detector are left out. Without any of these nothing can be learnt: T = 1, which is MSP. One T keeps
    the order of a sigmoid head's maximum, so there the ranking is that of MSP and the probabilities alone differ.
    """

    name = "ood/temperature_msp"
    info = Info(
        "Temperature-scaled MSP",
        "Guo et al. 2017, On Calibration of Modern Neural Networks",
        "logits; learns T, for which it needs ground truth (T = 1 without)",
        "negated: -max p",
    )
    evidence = ("logits",)
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self._sample = Reservoir(CAPACITY)
        self._head: Head = "softmax"

    def update(self, frame: Frame) -> None:
        truth = frame.instances.columns.get("truth")
        if truth is None:
            return
        rows = self.rows(frame)
        (logits,) = rows.require("logits")
        assert rows.head is not None
        self._head = rows.head
        true = class_columns(frame.with_instances(frame.instances.replace(labels=truth.long())))
        keep = rows.finite() & (true >= 0)
        self._sample.update(torch.cat([logits[keep], true[keep, None].float()], 1))

    def learn(self, rows: Rows) -> None:
        """Nothing: what has to be known is in `update` alone."""

    def finish(self) -> None:
        sample = self._sample.rows
        t = fit_temperature(sample[:, :-1], sample[:, -1].long(), self._head) if len(sample) else 1.0
        self.tensors = {"temperature": torch.tensor([t])}
        self._sample = Reservoir(CAPACITY)

    def score(self, rows: Rows) -> Tensor:
        (logits,) = rows.require("logits")
        assert rows.head is not None
        return temperature_msp(logits, rows.head, self.learnt("temperature", logits))
