"""Does the inside of the detector look as it does on known data?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..frame import MAPS, Frame
from .base import Signal
from .moments import Moments
from .rois import roi_maps


class Activations(Signal):
    """How unusual the channel means of three depths of the network are, in the box and in the whole image.

    Learnt from in-distribution frames: mean and deviation of each channel's mean over a box, and over the image. A
    column is the log of the mean square of the standardised channels: about 0 on known data, higher for what is not
    (Becker et al. 2026 find early and middle stages to tell corruption best).

    Columns (N,): `early`, `middle`, `late`, and `image_early`, `image_middle`, `image_late`. NaN where the box is not
    finite.
    """

    name = "activations"
    requires = ("maps", "image")
    learns = True
    columns: ClassVar = {
        **{f"activations/{m}": (f"usual {m} features", f"unusual {m} features") for m in MAPS},
        **{f"activations/image_{m}": (f"image of usual {m} features", f"image of unusual {m} features") for m in MAPS},
    }

    scores = tuple(columns)

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self.known: dict[str, tuple[Tensor, Tensor]] = {}

    def update(self, frame: Frame) -> None:
        for name, rows in self._rows(frame).items():
            self.moments.setdefault(name, Moments()).update(rows)

    def finish(self) -> None:
        for name, seen in self.moments.items():
            variance = seen.covariance.diagonal()
            floor = 1e-4 * variance.mean() + 1e-12  # a channel that never varied says nothing when it does by a hair
            self.known[name] = (seen.mean.float(), variance.clamp(min=floor).sqrt().float())
        self.moments = {}

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if not self.known:
            raise ValueError("activations has not learnt yet; see Monitor.learning")
        n, out = len(frame.instances), {}
        for name, rows in self._rows(frame).items():
            mean, std = (t.to(rows.device) for t in self.known[name])
            out[f"activations/{name}"] = ((rows - mean) / std).square().mean(1).clamp(min=1e-6).log().expand(n)
        return {name: out[name] for name in self.columns}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {f"{k}/{part}": t for k, v in self.known.items() for part, t in zip(("mean", "std"), v, strict=True)}, {}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        names = {key.rpartition("/")[0] for key in tensors}
        self.known = {name: (tensors[f"{name}/mean"], tensors[f"{name}/std"]) for name in names}

    @staticmethod
    def _rows(frame: Frame) -> dict[str, Tensor]:
        if frame.maps is None or frame.view is None:
            raise ValueError("the frame has no feature maps: skip this signal")
        out = {}
        for name in MAPS:
            level = frame.maps[name].float()
            out[name] = roi_maps(level, frame.view, frame.instances.boxes, 1).flatten(1)
            out[f"image_{name}"] = level.mean((1, 2))[None]
        return out
