"""Distance to the k-th nearest known object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from .base import Info, Rows, Score, column
from .neighbours import Partition
from .reservoir import Reservoir

K = 50
CAPACITY = 50_000


class KNearest(Score):
    """Distance of the unit-length features to the 50th nearest of a sample of known objects; to the last of fewer.

    Learnt: a uniform sample of at most 50,000 known objects.
    """

    name = "ood/knn"
    info = Info(
        "KNN", "Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors",
        "features; learns a sample of them", "negated",
    )
    evidence = ("features",)
    learns = True
    columns: ClassVar = column(name)

    def __init__(self, layer: str | None = None) -> None:
        super().__init__(layer)
        self.sample = Reservoir(CAPACITY)

    def learn(self, rows: Rows) -> None:
        (z,) = rows.require("features")
        self.sample.update(normalize(z, dim=1))

    def finish(self) -> None:
        bank = self.sample.rows
        if len(bank) == 0:
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        self.tensors, self.sample = vars(Partition.of(bank, K)).copy(), Reservoir(CAPACITY)

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        given = dict(tensors)
        if given.keys() == {"bank"}:  # as it was kept before the bank was parted
            given = vars(Partition.of(given["bank"], K)).copy()
        super().load_state(given, meta)

    def score(self, rows: Rows) -> Tensor:
        (z,) = rows.require("features")
        bank = Partition(**{name: self.learnt(name, z) for name in self.tensors})
        return bank.distance(normalize(z, dim=1), K)
