"""The objects of one image as CLIP sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import crops
from ..frame import View
from ..instances import Instances

if TYPE_CHECKING:
    from .encoder import Encoder

CHUNK = 64
"""Crops that exist at the same time."""


@dataclass(eq=False)
class Embed:
    """The crops of one frame, embedded at most once for each way of cropping; all on the view's device.

    Attributes:
        encoder: Pictures -> vectors; its image size and its mean colour (which fills) make the crops.
        view: The pixels.
        instances: The objects.
    """

    encoder: Encoder
    view: View
    instances: Instances
    _made: dict[tuple[float, bool, bool], Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, ratio: float = 1.0, masked: bool = False, mirrored: bool = False) -> Tensor:
        """(N, D) unit-length float32; NaN where an object is too small to judge.

        Args:
            ratio: Boxes are enlarged by this factor about their centres.
            masked: What is outside an object's mask is filled. For what an object is, never for how it looks.
            mirrored: The crops are turned left to right.

        Raises:
            ValueError: `masked` without masks.
        """
        key = (float(ratio), masked, mirrored)
        if key not in self._made:
            parts = []
            for rows in torch.split(self._rows, CHUNK):
                pixels = self._crop(rows, ratio, masked)
                parts.append(self.encoder.images(pixels.flip(-1) if mirrored else pixels))
            self._made[key] = self._spread(torch.cat(parts))
        return self._made[key]

    @cached_property
    def too_small(self) -> Tensor:
        """(N,) bool (`crops.too_small`)."""
        return crops.too_small(self.view, self.instances.boxes, self.instances.image_size)

    def crops(self, rows: Tensor | None = None, ratio: float = 1.0) -> Tensor:
        """(n, 3, s, s) RGB in [0, 1] of the given rows, or of all, also of those that are too small."""
        if rows is None:
            rows = torch.arange(len(self.instances), device=self.view.pixels.device)
        return self._crop(rows, ratio)

    def dense(self, ratio: float = 1.0) -> Tensor | None:
        """(N, D, h, w) an embedding for each cell of a crop, unit-length, NaN where too small; None: not possible."""
        parts = []
        for rows in torch.split(self._rows, CHUNK):
            part = self.encoder.dense(self._crop(rows, ratio))
            if part is None:
                return None
            parts.append(part)
        return self._spread(torch.cat(parts))

    @cached_property
    def _rows(self) -> Tensor:
        """Those large enough: nothing is spent on the others."""
        return (~self.too_small).nonzero()[:, 0]

    def _spread(self, values: Tensor) -> Tensor:
        """Values of `_rows` -> of all objects."""
        out = values.new_full((len(self.instances), *values.shape[1:]), nan)
        return out.index_copy(0, self._rows, values)

    def _crop(self, rows: Tensor, ratio: float, masked: bool = False) -> Tensor:
        found = self.instances
        if masked and found.masks is None:
            raise ValueError("the instances have no masks: ask for the crops without `masked`")
        at = rows.to(found.device)
        return crops.crop(
            self.view,
            found.boxes[at],
            self.encoder.image_size,
            ratio=ratio,
            masks=found.masks[at] if masked and found.masks is not None else None,
            fill=self.encoder.mean,
            image_size=found.image_size,
        )
