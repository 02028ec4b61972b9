"""The one structure that travels: the detected objects of an image, as arrays of equal length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Head = Literal["softmax", "softmax+background", "sigmoid"]
"""How logits become scores; with `softmax+background` one of the logits is the background's."""

Index = int | slice | Sequence[int] | Sequence[bool] | np.ndarray | Tensor
_ROWS = ("boxes", "scores", "labels", "masks", "logits", "features", "track_ids")
_NDIM = {"boxes": 2, "scores": 1, "labels": 1, "masks": 3, "logits": 2, "features": 2, "track_ids": 1}


@dataclass(frozen=True, eq=False)
class Instances:
    """Detected objects of one image; every row array has length N and shares one device.

    What a detector cannot give is None. A row that could not be traced back to the detector's raw output has
    NaN logits and features.

    Attributes:
        boxes: (N, 4) float, xyxy in pixels of the original image.
        scores: (N,) float in [0, 1], the detector's own confidence.
        labels: (N,) int64, index of the class.
        masks: (N, h, w) bool; covers the whole image, h x w being the resolution at which the detector made it.
        logits: (N, K) float, all logits of the row in the detector's order: `logits[i, labels[i]]` is the label's.
        head: How `logits` become scores; required with logits.
        background: Column of `logits` that is the background's; required with head `softmax+background`.
        features: (N, D) float, one vector for each object from inside the detector.
        track_ids: (N,) int64.
        image_size: (height, width) of the original image in pixels; None for rows of several images.
        columns: Named results, each (N,) or (N, k).

    Raises:
        ValueError: A length, shape or head is inconsistent; the message names the field.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    logits: Tensor | None = None
    head: Head | None = None
    background: int | None = None
    features: Tensor | None = None
    track_ids: Tensor | None = None
    image_size: tuple[int, int] | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.boxes)
        for name in _ROWS:
            value = getattr(self, name)
            if value is None and name not in ("boxes", "scores", "labels"):
                continue
            _check(name, value, n, (_NDIM[name],))
        for name, value in self.columns.items():
            _check(name, value, n, (1, 2), "columns[{!r}]")
        if self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4) xyxy, not {tuple(self.boxes.shape)}")
        if self.logits is not None and self.head not in get_args(Head):
            raise ValueError(f"logits need a head out of {get_args(Head)}, not {self.head!r}")
        if (self.head == "softmax+background") != (self.background is not None):
            raise ValueError("`background` (a column of logits) goes with head 'softmax+background' and no other")
        object.__setattr__(self, "columns", dict(self.columns))  # a caller's dict is not ours to share

    @classmethod
    def empty(cls, image_size: tuple[int, int] | None = None, device: torch.device | str = "cpu") -> Instances:
        """No detections."""
        return cls(
            boxes=torch.zeros(0, 4, device=device),
            scores=torch.zeros(0, device=device),
            labels=torch.zeros(0, dtype=torch.int64, device=device),
            image_size=image_size,
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Index) -> Instances:
        """Rows by int (a length-1 result), slice, bool mask or indices (list, array, tensor)."""
        if isinstance(index, (int, np.integer)):
            i = int(index)
            if not -len(self) <= i < len(self):
                raise IndexError(f"row {i} of {len(self)} instances")
            index = slice(i, i + 1 or None)
        elif not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.device)
            if index.dtype == torch.bool and index.shape != (len(self),):
                raise IndexError(f"a mask of shape {tuple(index.shape)} for {len(self)} instances")
            index = index if index.dtype == torch.bool else index.long()
        return self._map(lambda t: t[index])

    def __repr__(self) -> str:
        have = [name for name in _ROWS if getattr(self, name) is not None]
        return f"Instances(n={len(self)}, {', '.join(have)}, columns={sorted(self.columns)})"

    @property
    def device(self) -> torch.device:
        return self.boxes.device

    @property
    def reliability(self) -> Tensor:
        """(N,) P(this detection is right) in [0, 1]; NaN where unknown."""
        return self.column("reliability")

    def column(self, name: str) -> Tensor:
        """One column by name.

        Raises:
            KeyError: It is not there; the message lists what is.
        """
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; there are {sorted(self.columns)}")
        return self.columns[name]

    def probabilities(self) -> Tensor | None:
        """(N, K) probabilities from the logits as the head defines them; column k is class k."""
        if self.logits is None:
            return None
        return self.logits.sigmoid() if self.head == "sigmoid" else self.logits.softmax(-1)

    def without_background(self, values: Tensor) -> Tensor:
        """(N, K) values per logit -> (N, classes): the background's column dropped, where there is one."""
        if self.background is None:
            return values
        b = self.background % values.shape[-1]
        return torch.cat([values[:, :b], values[:, b + 1 :]], -1)

    def masks_at(self, size: tuple[int, int]) -> Tensor:
        """(N, height, width) bool: the masks resized (nearest).

        Raises:
            ValueError: There are no masks.
        """
        if self.masks is None:
            raise ValueError("these instances have no masks")
        if len(self) == 0:
            return self.masks.new_zeros(0, *size)
        if tuple(self.masks.shape[1:]) == tuple(size):
            return self.masks
        resized = torch.nn.functional.interpolate(self.masks[None].to(torch.uint8), size=size, mode="nearest-exact")
        return resized[0].bool()

    def replace(self, **changes: Any) -> Instances:
        """A copy with other fields."""
        return replace(self, **changes)

    def with_columns(self, columns: Mapping[str, Tensor]) -> Instances:
        """A copy with these columns added (an existing name is replaced)."""
        return replace(self, columns={**self.columns, **columns})

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """As `torch.Tensor.to`; a dtype applies to floating-point arrays only."""
        target = self.boxes[:0].to(*args, **kwargs)
        return self._map(lambda t: t.to(target.device, target.dtype if t.is_floating_point() else t.dtype))

    def cpu(self) -> Instances:
        return self.to("cpu")

    def cuda(self) -> Instances:
        return self.to("cuda")

    def numpy(self) -> Instances:
        """On the CPU; the arrays stay tensors. (Called by `ultralytics` when a whole result is converted.)"""
        return self.cpu()

    @classmethod
    def cat(cls, parts: Sequence[Instances]) -> Instances:
        """All rows after one another; a field or column must be there in all parts or in none.

        Masks need one common size. `image_size` becomes None where the parts differ.

        Raises:
            ValueError: Nothing to join, or the parts do not carry the same fields.
        """
        if not parts:
            raise ValueError("nothing to concatenate: pass at least one Instances")
        first = parts[0]
        for name in ("masks", "logits", "features", "track_ids", "head"):
            if len({getattr(p, name) is None for p in parts}) > 1:
                raise ValueError(f"{name} is missing in some of the parts; drop it with replace({name}=None)")
        if len({(p.head, p.background) for p in parts}) > 1:
            raise ValueError("the parts come from different head types")
        if any(p.columns.keys() != first.columns.keys() for p in parts):
            odd = set().union(*(p.columns.keys() ^ first.columns.keys() for p in parts))
            raise ValueError(f"columns {sorted(odd)} are missing in some of the parts")
        joined: dict[str, Any] = {
            name: torch.cat([getattr(p, name) for p in parts]) if getattr(first, name) is not None else None
            for name in _ROWS
        }
        return cls(
            **joined,
            head=first.head,
            background=first.background,
            image_size=first.image_size if len({p.image_size for p in parts}) == 1 else None,
            columns={name: torch.cat([p.columns[name] for p in parts]) for name in first.columns},
        )

    def _map(self, fn: Any) -> Instances:
        arrays = {
            f.name: fn(value)
            for f in fields(self)
            if f.name in _ROWS and (value := getattr(self, f.name)) is not None
        }
        return replace(self, **arrays, columns={k: fn(v) for k, v in self.columns.items()})


def _check(name: str, value: Any, n: int, ndim: tuple[int, ...], called: str = "{}") -> None:
    if not isinstance(value, Tensor):  # this runs for every column of every frame: words are made where they are needed
        raise ValueError(f"{called.format(name)} must be a tensor, not {type(value).__name__}")
    shape = value.shape
    if len(shape) not in ndim or shape[0] != n:
        raise ValueError(f"{called.format(name)} has shape {tuple(shape)}; it needs {n} rows and {ndim} dimensions")
