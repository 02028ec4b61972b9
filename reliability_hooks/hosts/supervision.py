"""Any callable that makes `supervision.Detections`: whoever has boxes, scores, labels and an image has reliability.

What lies inside of the detector is not seen, so that signals of boxes, pixels, masks and tracks are all there are; a
host of the detector's own framework knows more. supervision itself is not imported: fields are read and filled in.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

import numpy as np

from ..frame import Frame
from ..instances import Instances
from ..reliability.judge import unknown
from .base import Hook, Host, ListEntry, Process, Removable
from .info import HostInfo
from .supervision_rows import check_image, to_instances, view, with_columns

log = logging.getLogger(__name__)


class Detector(Host):
    """A callable as a detector that `attach(detector, monitor)` hooks: its Detections gain entries in `data`.

    Args:
        detect: (H, W, 3) uint8 RGB -> `supervision.Detections` with `class_id` and `confidence`.
        names: Label -> class name.
        version: What tells it from another one, such as the name of its weights: a callable shows none, and a monitor
            fitted on one detector is refused by any other.
    """

    name: ClassVar[str] = "callable"
    info: ClassVar[HostInfo] = HostInfo(
        models="anything that makes `supervision.Detections`, sahi's slices",
        beside='`detections.data["reliability"]` on a copy', licence="MIT (supervision, sahi)",
        tested="supervision>=0.26,<1", logits=False, features=False, candidates=False, gradients=False, tracks=True,
    )  # fmt: skip

    def __init__(
        self, detect: Callable[[np.ndarray], Any], names: Mapping[int, str] | None = None, version: str = ""
    ) -> None:
        if not callable(detect):
            raise TypeError(f"a detector is a callable image -> supervision.Detections, not {type(detect).__name__}")
        super().__init__(detect)
        self.names, self.version = dict(names or {}), version
        self._hooked: list[tuple[Callable[[np.ndarray, Any], Instances], Hook]] = []

    @classmethod
    def load(cls, spec: str, **options: Any) -> Detector:
        """`FILE.py:NAME` or `MODULE:NAME`, a callable or a `Detector`; options are those of `Detector`."""
        home, _, name = spec.rpartition(":")
        if not home or not name:
            raise ValueError(f"{spec!r} names no callable; write FILE.py:NAME or MODULE:NAME")
        module = _module_of_file(Path(home)) if home.endswith(".py") else import_module(home)
        if not hasattr(module, name):
            raise ValueError(f"there is no {name!r} in {home}")
        found = getattr(module, name)
        return found if isinstance(found, cls) else cls(found, **options)

    def __call__(self, image: np.ndarray) -> Any:
        """What `detect` returns; while hooked a copy of it with every column in `data` (`export.columns`)."""
        found = self.model(image)
        judged = self._hooked[-1][1](image, found) if self._hooked else None
        return found if judged is None else judged

    def class_names(self) -> dict[int, str]:
        return dict(self.names)

    def module(self) -> NoReturn:
        raise TypeError("a callable shows no weights and no layers")

    def to(self, device: Any) -> NoReturn:
        raise TypeError("a callable cannot be moved to a device; do it where it is made")

    def fingerprint(self) -> dict[str, Any]:
        classes = hashlib.sha256(repr(sorted(self.names.items())).encode()).hexdigest()[:16]
        return {"host": self.name, "architecture": "callable", "classes": classes, "weights": self.version}

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        def judge(image: np.ndarray, found: Any) -> Instances:
            instances = to_instances(found, image)
            bare = instances.replace(masks=None, track_ids=None)
            return process(lambda: Frame(instances, view(image)), lambda: bare)

        hook = Hook(lambda image, found: with_columns(found, judge(image, found)), report)
        return [ListEntry(self._hooked, (judge, hook))]

    def predict(self, images: Sequence[np.ndarray], conf: float = 0.0, **options: Any) -> list[Instances]:
        """Run it on (H, W, 3) uint8 RGB images, one by one.

        Args:
            images: One array for each image.
            conf: Instances with a lower score are left out of the answer.
            **options: There are no others: a callable has its own.

        Raises:
            RuntimeError: It is not hooked.
            TypeError, ValueError: An image, or what it returned, is not as it should be.
        """
        if options:
            raise TypeError(f"unknown option {sorted(options)[0]!r}; a callable takes `conf`")
        if not self._hooked:
            raise RuntimeError("the detector is not hooked; attach(detector, monitor) first")
        found = []
        for image in images:
            check_image(image)
            found.append(self._hooked[-1][0](image, self.model(image)))
        return [instances[instances.scores >= conf] for instances in found]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_hooked": []}  # copies run bare


class Judging(Protocol):
    """A `Monitor`."""

    def apply(self, frame: Frame) -> Instances:
        """The frame's instances with columns."""

    def check(self, fingerprint: Callable[[], dict[str, Any]]) -> None:
        """Refuse another detector than the one fitted on."""


def score(
    image: np.ndarray, detections: Any, monitor: Judging, names: Mapping[int, str] | None = None, version: str = "",
    *, strict: bool = False,
) -> Any:
    """Reliability for Detections that are there already, one image at a time and without attaching to anything.

    Args:
        image: (H, W, 3) uint8 RGB: what they were found in. An image read by OpenCV is BGR: `image[..., ::-1]`.
        detections: `supervision.Detections` with `class_id` and `confidence`; masks and tracker ids are made use of.
        monitor: A fitted `Monitor`; with an unfitted one there are the signals, and the reliability is NaN.
        names: Label -> class name, as of `Detector`.
        version: As of `Detector`.
        strict: Raise a fault of a signal instead of logging it and answering "unknown".

    Returns:
        A copy whose `data` has `reliability`, `reliability_low`, `reliability_high`, `verdict` (accept, unknown,
        reject), `expected_iou` and every signal, each (N,); all else is as it was.

    Raises:
        TypeError, ValueError: The image or the Detections are not as they should be.
        StateError: The monitor was fitted on another detector.
    """
    source = Detector(lambda _: detections, names, version)
    monitor.check(source.fingerprint)

    def process(build: Callable[[], Frame], bare: Callable[[], Instances]) -> Instances:
        try:
            return monitor.apply(replace(build(), names=source.names or None))
        except Exception as fault:
            if strict:
                raise
            log.warning("reliability is unknown (NaN): %s: %s", type(fault).__name__, fault, exc_info=fault)
            instances = bare()
            return instances.with_columns(unknown(len(instances)))

    def fail(fault: Exception) -> NoReturn:
        raise fault

    source.install(process, fail)
    return source(image)


def _module_of_file(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"no file {str(path)!r}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
