"""`Results` of ultralytics with our instances beside the detector's own fields.

It imports the framework at its top, so that results can be pickled, and is itself imported only when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ultralytics.engine.results import Results

from ..frame import Frame
from ..instances import Instances
from .base import Process
from .ultralytics_rows import masks


class ReliableResults(Results):  # type: ignore[misc]
    """`Results` whose rows carry `instances` through indexing, devices, tracking and `to_df()`."""

    instances: Instances
    _build: Callable[[Instances], Frame] | None = None

    @classmethod
    def of(cls, result: Results, build: Callable[[Instances], Frame], class_free: bool = False) -> ReliableResults:
        new = object.__new__(cls)
        new.__dict__.update(result.__dict__)
        new.instances = Instances(
            boxes=result.boxes.xyxy.float(),
            scores=result.boxes.conf.float().clamp(0, 1),  # the IoU that SAM predicts may lie beyond
            labels=result.boxes.cls.long() * (not class_free),
            masks=masks(result),
            image_size=tuple(result.orig_shape),
        )
        new._build = build
        new._keys = (*result._keys, "instances")
        return new

    def finish(self, process: Process) -> None:
        """Apply the monitor to the rows that are left; boxes and scores stay the detector's, not a tracker's."""
        ids = self.boxes.id
        kept = self.instances
        if ids is not None:
            kept = kept.replace(track_ids=torch.as_tensor(ids, device=kept.device).long())
        build, self._build = self._build, None
        self.instances = process(lambda: build(kept) if build else Frame(kept), lambda: kept)

    @property
    def reliability(self) -> Any:
        """(N,) P(this detection is right), NaN where unknown; an array where the boxes are arrays."""
        values = self.instances.reliability
        return values.numpy() if isinstance(self.boxes.data, np.ndarray) else values

    def new(self) -> ReliableResults:
        empty = super().new()
        copy = object.__new__(type(self))
        copy.__dict__.update(empty.__dict__)
        copy._keys, copy._build, copy.instances = self._keys, self._build, self.instances
        return copy

    def summary(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = super().summary(*args, **kwargs)
        for row, value in zip(rows, self.instances.reliability.tolist(), strict=True):
            row["reliability"] = value
        return rows
