"""What the frames of one track say together: means of its scores, and an alarm that is calibrated for whole tracks.

`Tracks` comes after the signals: it takes the instances of one frame after another, with the columns that the signals
put on, and keeps what it has to remember between frames. It is not a `Signal`, since those see each frame by itself.

    tracks = Tracks.fit(videos, columns=["ood/knn/score"], alpha=0.01)   # frames of in-distribution videos
    for result in model.track(source, stream=True):                      # a hooked ultralytics model
        seen = tracks.update(result.instances)
        seen.columns["track/alarm"]
    tracks.reset()                                                       # before the next video
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan
from typing import Any

import torch
from torch import Tensor

from ..instances import Instances
from ..reliability.state import State
from .track_boundary import Boundary, Rule, Unit

COLUMNS = ("ood/logits/entropy",)
"""Watched where nothing else is asked for; in the preset `cheap`."""


class Tracks:
    """Evidence gathered along tracks; `update` with the instances of each frame of a video.

    Columns, each (N,) float32. Rows that are in no track (no `track_ids`, or a negative or undefined one) have age 0
    and NaN, which is no all-clear.

    - `track/age`: frames in which the track was seen, this one included;
    - `track/<column>/mean` for each watched column: its exponentially weighted mean over the track; frames with an
      undefined value are left out;
    - `track/score_raw`: the detector's confidence in this frame, as it is;
    - `track/score_smoothed`: its exponentially weighted mean, kept apart because smoothing bends confidence;
    - `track/log_evidence`: -log of the p-value of the track so far (`Boundary.p_value`), in [0, log(units + 1)];
    - `track/alarm`: 1 from the frame on at which the p-value is at most alpha, else 0.

    The last two are NaN without a boundary (`fit`) and while no watched value was defined.

    Args:
        columns: Watched columns (N,), higher = more out-of-distribution.
        memory: Frames that the means reach back: weights fall by 1 - 1 / memory from frame to frame; 1 is no memory.
        patience: A track that was absent for more frames in a row is forgotten, and begins anew should its id return.
        boundary: The fitted alarm; it brings its own columns and memory.

    Raises:
        ValueError: A setting is out of range, or no columns.
    """

    def __init__(
        self,
        columns: Sequence[str] = COLUMNS,
        *,
        memory: float = 10.0,
        patience: int = 30,
        boundary: Boundary | None = None,
    ) -> None:
        if boundary is not None:
            columns, memory = boundary.columns, boundary.memory
        if isinstance(columns, str) or not columns or len(set(columns)) < len(columns):
            raise ValueError(f"columns are one or more different names, not {columns!r}")
        if not 1 <= memory < float("inf") or patience < 0:
            raise ValueError(f"memory is a finite number of frames >= 1 and patience >= 0, not {memory} and {patience}")
        self.columns, self.memory, self.patience, self.boundary = tuple(columns), float(memory), patience, boundary
        self.reset()

    @classmethod
    def fit(
        cls,
        videos: Iterable[Iterable[Instances]],
        columns: Sequence[str] = COLUMNS,
        *,
        alpha: float = 0.01,
        rule: Rule = "mean",
        unit: Unit = "track",
        memory: float = 10.0,
        patience: int = 30,
        seed: int = 0,
    ) -> Tracks:
        """Calibrate the alarm on in-distribution videos of the deployment; no labels are needed.

        Args:
            videos: Of each video the instances frame by frame, with `track_ids` and the watched columns. Every track
                counts as in-distribution; take out rows of those that are not.
            columns: As for the class.
            alpha: P(an in-distribution track is ever flagged) is at most this, in (0, 1).
            rule: `mean`, `cusum` or `frame` (the plain threshold), see `Boundary`.
            unit: Whether tracks are exchangeable, or only videos.
            memory: As for the class.
            patience: As for the class.
            seed: Of the units that only the boundary's shape is learnt from.

        Raises:
            ValueError: Fewer than 1 / alpha + 1 units (101 for 1 %), or a column is absent.
        """
        follower = cls(columns, memory=memory, patience=patience)
        values = [torch.zeros(0, len(follower.columns), dtype=torch.float64)]
        serial, video = [torch.zeros(0, dtype=torch.int64)], list[int]()
        for number, frames in enumerate(videos):
            follower.reset()
            before = len(video)
            for instances in frames:
                rows, slots = follower._follow(instances)
                values.append(follower._watched(instances, rows)[:, :-1])
                serial.append(before + follower._serial[slots])
            video += [number] * follower._begun
        boundary = Boundary.fit(
            torch.cat(values), torch.cat(serial), torch.tensor(video, dtype=torch.int64), follower.columns,
            alpha=alpha, rule=rule, unit=unit, memory=follower.memory, seed=seed,
        )  # fmt: skip
        return cls(boundary=boundary, patience=patience)

    def reset(self) -> None:
        """Forget all tracks: before each video, since their ids begin anew."""
        width = len(self.columns) + 1
        self._frame = self._begun = 0
        self._ids, self._serial, self._seen, self._age = torch.zeros(4, 0, dtype=torch.int64)
        self._weight, self._mean = torch.zeros(2, 0, width, dtype=torch.float64)
        self._evidence = torch.zeros(0, 5, dtype=torch.float64)

    def __len__(self) -> int:
        """Tracks that are remembered."""
        return len(self._ids)

    def update(self, instances: Instances) -> Instances:
        """The frame's instances with the columns of their tracks; call it for every frame, empty ones too.

        Raises:
            ValueError: Two rows of one track, or (with rows in a track) a watched column is absent or not (N,).
        """
        rows, slots = self._follow(instances)
        values = self._watched(instances, rows)
        weight, mean, finite = self._weight[slots], self._mean[slots], values.isfinite()
        weight = torch.where(finite, (1 - 1 / self.memory) * weight + 1, weight)
        mean = torch.where(finite, mean + (values - mean) / weight, mean)
        self._weight[slots], self._mean[slots] = weight, mean
        known = torch.where(weight > 0, mean, nan)
        found = {"track/age": self._age[slots]}
        found |= {f"track/{name}/mean": known[:, i] for i, name in enumerate(self.columns)}
        found |= {"track/score_smoothed": known[:, -1]}
        found |= {"track/alarm": torch.full((len(rows),), nan), "track/log_evidence": torch.full((len(rows),), nan)}
        if self.boundary is not None:
            self._evidence[slots] = self.boundary.step(self._evidence[slots], values[:, :-1])
            p = self.boundary.p_value(self._evidence[slots])
            found |= {"track/alarm": self.boundary.alarm(p), "track/log_evidence": -p.log()}
        out = {name: torch.full((len(instances),), 0.0 if name == "track/age" else nan) for name in found}
        for name, value in found.items():
            out[name][rows] = value.float()
        placed = {name: value.to(instances.device) for name, value in out.items()}
        return instances.with_columns({**placed, "track/score_raw": instances.scores.float()})

    def state(self) -> State:
        """What was fitted and the settings, not the tracks of a running video: tensors and meta for `from_state`."""
        tensors, meta = ({}, None) if self.boundary is None else self.boundary.state()
        own = {"columns": list(self.columns), "memory": self.memory, "patience": self.patience}
        return tensors, {**own, "boundary": meta}

    @classmethod
    def from_state(cls, state: State) -> Tracks:
        """Rebuild from `state()`."""
        tensors, meta = state
        settings: dict[str, Any] = dict(meta)
        fitted = settings.pop("boundary")
        return cls(**settings, boundary=None if fitted is None else Boundary.from_state(tensors, fitted))

    def _follow(self, instances: Instances) -> tuple[Tensor, Tensor]:
        """Rows that are in a track, and the slot of each; new tracks get one, those long absent lose theirs."""
        rows, ids = _tracked(instances)
        self._frame += 1
        self._keep(self._frame - self._seen - 1 <= self.patience)
        new = ids[~torch.isin(ids, self._ids)]
        n = len(new)
        self._ids = torch.cat([self._ids, new])
        self._serial = torch.cat([self._serial, self._begun + torch.arange(n)])
        self._begun += n
        self._seen, self._age = (torch.cat([t, t.new_zeros(n)]) for t in (self._seen, self._age))
        self._weight, self._mean = (torch.cat([t, t.new_zeros(n, t.shape[1])]) for t in (self._weight, self._mean))
        begun = self._evidence.new_zeros(n, 5) if self.boundary is None else self.boundary.start(n)
        self._evidence = torch.cat([self._evidence, begun])
        by_id = self._ids.argsort()
        slots = by_id[torch.searchsorted(self._ids[by_id], ids)]
        self._seen[slots] = self._frame
        self._age[slots] += 1
        return rows, slots

    def _keep(self, which: Tensor) -> None:
        for name in ("_ids", "_serial", "_seen", "_age", "_weight", "_mean", "_evidence"):
            setattr(self, name, getattr(self, name)[which])

    def _watched(self, instances: Instances, rows: Tensor) -> Tensor:
        """(n, C + 1) float64 on the CPU: the watched columns and the confidence of the rows."""
        if len(rows) == 0:  # a frame without detections need not have the columns
            return torch.zeros(0, len(self.columns) + 1, dtype=torch.float64)
        if absent := [name for name in self.columns if name not in instances.columns]:
            raise ValueError(f"the columns {absent} are absent: switch on the signals that make them, or watch others "
                             f"out of {sorted(instances.columns)}")
        picked = [*(instances.columns[name] for name in self.columns), instances.scores]
        if wrong := [name for name, c in zip((*self.columns, "scores"), picked, strict=True) if c.ndim != 1]:
            raise ValueError(f"only columns of shape (N,) can be watched, not {wrong}")
        return torch.stack([c.double() for c in picked], 1).detach().cpu()[rows]


def _tracked(instances: Instances) -> tuple[Tensor, Tensor]:
    """Rows that are in a track, and their ids, on the CPU."""
    if instances.track_ids is None:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none
    ids = instances.track_ids.detach().cpu()
    rows = (ids >= 0).nonzero().squeeze(1)  # NaN is not >= 0
    ids = ids[rows].long()
    if len(torch.unique(ids)) < len(ids):
        raise ValueError("two rows have the same track id: a track is one object, hand over one frame at a time")
    return rows, ids
