"""SAFE: do the features look like those of a photograph, or like those of one that was perturbed against them?"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ...frame import MAPS, Frame
from ..base import Signal
from ..rois import roi_maps
from .base import SURE, Info, class_columns, column
from .pixels import gradient_sign, log_probabilities, moved
from .reservoir import Reservoir

MAGNITUDE = 8 / 255
CAPACITY = 3_000
HIDDEN = 128
STEPS = 200
BATCH = 256
RATE = 2e-3
DECAY = 1e-2
SEED = 0


def fit(clean: Tensor, perturbed: Tensor) -> dict[str, Tensor]:
    """A network with one hidden layer that tells perturbed rows (1) from clean ones (0); always the same one.

    Args:
        clean: (n, D), n >= 1.
        perturbed: (n, D).

    Returns:
        `mean`, `scale` (D,) of the standardisation and the weights; see `logit`.
    """
    # as the caller may be in inference mode, and rows made in it cannot be saved for a backward pass
    with torch.inference_mode(False), torch.enable_grad():
        rows = torch.cat([clean, perturbed]).float()
        target = torch.arange(len(rows)).ge(len(clean)).float()
        mean, spread = rows.mean(0), rows.std(0, correction=0)
        floor = 1e-3 * spread.square().mean().sqrt() + 1e-12  # a feature that never varied says nothing by a hair
        learnt = {"mean": mean, "scale": spread.clamp(min=floor)}
        g, d = torch.Generator().manual_seed(SEED), rows.shape[1]
        weights = {
            "hidden": torch.randn(HIDDEN, d, generator=g) * (2 / d) ** 0.5, "hidden_bias": torch.zeros(HIDDEN),
            "out": torch.randn(HIDDEN, generator=g) * HIDDEN**-0.5, "out_bias": torch.zeros(1),
        }
        optimizer = torch.optim.Adam([w.requires_grad_() for w in weights.values()], lr=RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            part = torch.randint(len(rows), (min(BATCH, len(rows)),), generator=g)
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(logit(rows[part], {**learnt, **weights}), target[part])
            torch.autograd.backward(loss)
            optimizer.step()
    return {**learnt, **{name: w.detach() for name, w in weights.items()}}


def logit(rows: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
    """(N,) log-odds of being perturbed of (N, D) rows."""
    x = (rows - learnt["mean"]) / learnt["scale"]
    value: Tensor = (x @ learnt["hidden"].T + learnt["hidden_bias"]).relu() @ learnt["out"] + learnt["out_bias"]
    return value


class SAFE(Signal):
    """Log-odds that an object's features are those of perturbed pixels (Wilson et al. 2023).

    Learnt from in-distribution frames: the features of sure objects, and those of the same boxes when the pixels are
    moved by 8/255 of their range against the predicted classes (FGSM: the sign of the gradient of the sum of the
    objects' -log p, one backward pass an image; p is the softmax without the background, or the sigmoid; kept within
    the range). A network of one hidden layer learns to tell the two apart; what the detector does not know tends to
    look perturbed to it. At most `CAPACITY` pairs are kept, a uniform sample.

    The features are the means over the box of the ends of three stages of the backbone (`frame.MAPS`), side by side.
    The paper reads the convolutions with a residual connection or a downsampling, which are more layers and those of
    one architecture, and its code perturbs against the training losses of the ground truth. Once learnt it costs no
    pass.

    Column (N,): `score`. NaN where a box is not finite.
    """

    name = "ood/safe"
    info = Info(
        "SAFE", "Wilson et al. 2023, SAFE: Sensitivity-Aware Features for Out-of-Distribution Object Detection",
        "three feature maps; learns from pixels perturbed by a gradient", "log-odds instead of probability",
    )
    requires = ("maps", "image", "look", "logits")
    learns = True
    columns: ClassVar = column(name)
    scores = tuple(columns)

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._pairs = Reservoir(CAPACITY)

    def update(self, frame: Frame) -> None:
        found, view = frame.instances, frame.view
        if found.logits is None or found.head is None or view is None or frame.look is None:
            raise ValueError(f"the frame has no logits, no view or no look: {self.name} cannot learn from it")
        truth, classes, head = found.columns.get("truth"), class_columns(frame), found.head
        known = found.scores >= SURE if truth is None else truth == found.labels
        known = known & (classes >= 0) & found.logits.isfinite().all(1) & found.boxes.isfinite().all(1)
        if not bool(known.any()):
            return
        own = classes[known].clone()[:, None]
        against = gradient_sign(frame, lambda f: -log_probabilities(f, head).gather(1, own.clone()), known)
        maps = frame.look(moved(view, MAGNITUDE * against, clip=True)[None]).maps
        if maps is None:
            raise ValueError(f"the detector gives no maps of other pixels: {self.name} cannot learn from it")
        pairs = torch.cat([features(frame, frame.maps), features(frame, {m: maps[m][0].detach() for m in MAPS})], 1)
        pairs = pairs[known]
        with torch.inference_mode(False):  # or what is kept could not be changed outside of that mode
            self._pairs.update(pairs[pairs.isfinite().all(1)].clone())

    def finish(self) -> None:
        if self._pairs.seen == 0:
            raise ValueError(f"no detections to learn {self.name} from; show more images")
        clean, perturbed = self._pairs.rows.chunk(2, 1)
        self.tensors = fit(clean, perturbed)
        self._pairs = Reservoir(CAPACITY)

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if not self.tensors:
            raise ValueError(f"{self.name} has not learnt yet; see Monitor.learning")
        rows = features(frame, frame.maps)
        value = logit(rows, {name: t.to(rows.device) for name, t in self.tensors.items()})
        return {f"{self.name}/score": torch.where(value.isfinite(), value, nan)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.tensors), {}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)


def features(frame: Frame, maps: Mapping[str, Tensor] | None) -> Tensor:
    """(N, D) float32 means of the three maps over each box, side by side; NaN for a box that is not finite."""
    if maps is None or frame.view is None:
        raise ValueError("the frame has no feature maps or no view: skip this signal")
    boxes = frame.instances.boxes
    return torch.cat([roi_maps(maps[name], frame.view, boxes, 1).flatten(1) for name in MAPS], 1)
