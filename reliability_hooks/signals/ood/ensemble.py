"""Do other detectors of the same classes see the same?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from threading import RLock
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...frame import Candidates, Frame
from ...hosts.base import Host, Removable, find_host
from ...instances import Instances
from ...reliability.judge import unknown
from ..base import Signal
from ..dropout import found_again, mutual_information
from .base import Info

FOUND = 0.25


class Ensemble(Signal):
    """Deep ensemble (Lakshminarayanan et al. 2017): the attached detector and others of the same classes.

    It takes models, so that it has no name in a list of signals and is made by hand, also for `Monitor.load`:

        monitor = Monitor([Ensemble([model_b, model_c]), "cheap"])
        monitor = Monitor.load(directory, [Ensemble([model_b, model_c]), "cheap"])

    Each member, of whatever host, is run as it stands on the pixels that the attached detector saw. The probability of
    a class for a detection is the best score among a member's raw boxes of that class with IoU >= 0.5, and 0 without
    one; the attached detector's own raw boxes are the first member's. A label stands for the same class in all.

    Columns (N,): `mutual_information` between class and member (nats), as of `signals.dropout`; `variance` over the
    members, the mean of all classes but the background's; both higher = more out-of-distribution. `found`, the share
    of members that give the label at least 0.25. NaN where the box or the score is not finite.

    A member is hooked only while it runs, and its own output is as ever. Costs a pass of each member for each image
    with detections; members are not part of what a monitor saves.

    Args:
        members: Further detectors, at least one, none of them the attached one.

    Raises:
        TypeError: No host knows a member.
        ValueError: No member, one given twice, or members with other class names than the first.
    """

    name = "ood/ensemble"
    info = Info(
        "Deep ensemble",
        "Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation using deep ensembles",
        "further detectors of the same classes, a pass of each",
    )
    requires = ("image", "candidates")
    columns: ClassVar = {
        "ood/ensemble/mutual_information": ("other detectors agree", "other detectors disagree"),
        "ood/ensemble/variance": ("steady scores over detectors", "scores vary over detectors"),
        "ood/ensemble/found": ("other detectors miss it", "other detectors find it"),
    }

    def __init__(self, members: Sequence[Any]) -> None:
        if not members or len({id(m) for m in members}) < len(members):
            raise ValueError("an ensemble needs at least one further detector, each given once")
        self.hosts = [find_host(member) for member in members]
        names = [host.class_names() for host in self.hosts]
        for i, other in enumerate(names):
            if other != names[0]:
                raise ValueError(f"member {i} has other class names than the first: an ensemble needs the same classes")
        self._lock = RLock()  # a member's hooks hear every pass of it, in whatever thread
        self._running = False

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        view, kept = frame.view, frame.instances
        if view is None or frame.candidates is None:
            raise ValueError("the frame has no view or no candidates: skip this signal")
        if len(kept) == 0:
            return {name: kept.boxes.new_zeros(0, dtype=torch.float32) for name in self.columns}
        own = frame.candidates
        passes = [Candidates(view.to_view(own.boxes.float()), own.scores, own.labels)]
        image = (view.rgb() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        with self._lock:
            if self._running:
                raise ValueError("a member of the ensemble is the attached detector itself: leave it out")
            self._running = True
            try:
                passes += [seen_by(host, image, kept.device) for host in self.hosts]
            finally:
                self._running = False

        boxes, scores = view.to_view(kept.boxes.float()), kept.scores.float()
        p, label = found_again(boxes, kept, passes)
        table = torch.stack([
            mutual_information(p, exclusive=kept.head in ("softmax", "softmax+background")),
            p.var(0, correction=0).mean(1),
            (label >= FOUND).float().mean(0),
        ])
        broken = ~(boxes.isfinite().all(1) & scores.isfinite())
        return dict(zip(self.columns, table.masked_fill(broken, nan), strict=True))


def seen_by(host: Host, image: np.ndarray, device: torch.device) -> Candidates:
    """What a detector finds before suppression; afterwards the model is as it was.

    Args:
        host: Of the detector.
        image: (H, W, 3) uint8 RGB.
        device: Where the answer shall be.

    Raises:
        ValueError: The detector gives no candidates.
        Exception: Whatever the detector raises.
    """
    frames: list[Frame] = []

    def process(build: Callable[[], Frame], bare: Callable[[], Instances]) -> Instances:
        frames.append(build())
        found = bare()
        return found.with_columns(unknown(len(found), found.device))

    def report(fault: Exception) -> None:
        raise fault

    hooks: list[Removable] = host.install(process, report)
    try:
        with torch.inference_mode(False), torch.no_grad():  # a member may set itself up now, and is for any mode then
            host.predict([image])
    finally:
        for hook in hooks:
            hook.remove()
    raw = frames[0].candidates if frames else None
    if raw is None:
        raise ValueError(f"a member of the ensemble ({type(host.model).__qualname__}) gives no candidates")
    return Candidates(raw.boxes.to(device).float(), raw.scores.to(device).float(), raw.labels.to(device))
