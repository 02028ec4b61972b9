"""What kind of thing is it to the detector, and is it a kind that it knows?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..frame import Frame
from .base import Signal
from .moments import Moments

COMPONENTS = 16


class FeatureComponents(Signal):
    """The leading principal components of the detector's features of an object, and how much they leave over.

    Learnt from in-distribution frames without labels. The components are evidence of what kind of thing it is; the
    residual, its share outside of them, is an out-of-distribution score (Ndiour et al. 2020).

    Columns (N,): `pc00` ... of the unit-length features, each in its standard deviations; `residual` log of the
    squared length outside the components relative to its mean on known data. NaN where the features are.
    """

    name = "features"
    requires = ("features",)
    learns = True
    columns: ClassVar = {
        **{f"features/pc{i:02}": ("features of one kind", "features of another kind") for i in range(COMPONENTS)},
        "features/residual": ("usual features", "unusual features"),
    }

    scores = ("features/residual",)

    def __init__(self) -> None:
        self.moments = Moments()
        self.tensors: dict[str, Tensor] = {}

    def update(self, frame: Frame) -> None:
        self.moments.update(self._rows(frame))

    def finish(self) -> None:
        if self.moments.count < 2:
            raise ValueError("too few detections to learn features from; show more images")
        values, vectors = torch.linalg.eigh(self.moments.covariance)
        k = min(COMPONENTS, len(values))
        basis, spread = vectors[:, -k:].flip(1), values[-k:].flip(0).clamp(min=1e-12).sqrt()
        rest = values[:-k].clamp(min=0).sum().clamp(min=1e-12) if len(values) > k else torch.tensor(1e-12)
        whitened = basis / spread
        if k < COMPONENTS:
            whitened = torch.cat([whitened, whitened.new_zeros(len(whitened), COMPONENTS - k)], 1)
        self.tensors = {
            "mean": self.moments.mean.float(), "components": whitened.float().contiguous(),
            "basis": basis.float().contiguous(), "rest": rest.float().reshape(1),
        }
        self.moments = Moments()

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if not self.tensors:
            raise ValueError("features has not learnt yet; see Monitor.learning")
        rows = self._rows(frame)
        known = {name: t.to(rows.device) for name, t in self.tensors.items()}
        centred = rows - known["mean"]
        outside = centred.square().sum(1) - (centred @ known["basis"]).square().sum(1)
        table = torch.cat([(centred @ known["components"]).T, (outside.clamp(min=1e-9) / known["rest"]).log()[None]])
        return dict(zip(self.columns, table, strict=True))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.tensors), {}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)

    @staticmethod
    def _rows(frame: Frame) -> Tensor:
        if frame.instances.features is None:
            raise ValueError("the instances have no features: skip this signal")
        return normalize(frame.instances.features.float(), dim=1)
