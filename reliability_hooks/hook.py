"""attach(model, monitor): reliability beside a detector's untouched output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from .frame import Frame
from .hosts.base import Host, Removable, find_host
from .hosts.info import warn_untested
from .instances import Instances
from .monitor import Monitor, without_answer

log = logging.getLogger(__name__)


class Handle:
    """An attached monitor. Usable as a context manager; `remove()` restores the model exactly."""

    def __init__(self, host: Host, monitor: Monitor, strict: bool) -> None:
        self.host, self.monitor, self.strict = host, monitor, strict
        self._reported: set[str] = set()
        self._names = host.class_names() or None
        self._needs = frozenset(requirement for signal in monitor.signals for requirement in signal.requires)
        self._frames: list[Frame] | None = None
        self._removables: list[Removable] = host.install(self._process, self._report, self._needs)

    @property
    def attached(self) -> bool:
        return bool(self._removables)

    def remove(self) -> None:
        """Take every hook off the model. A second call does nothing."""
        for removable in self._removables:
            removable.remove()
        self._removables = []

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """Run the detector on (H, W, 3) uint8 RGB images and return the instances with all columns.

        Args:
            images: One array for each image.
            **options: Passed to the host's own call (`conf=0.1` for ultralytics).
        """
        if not self.attached:
            raise RuntimeError("this handle was removed; attach(model, monitor) again")
        return self.host.predict(images, **options)

    @contextmanager
    def frames(self, *needs: str) -> Iterator[list[Frame]]:
        """While it is open, the frame of each image that the detector sees is kept, in their order.

        Args:
            *needs: Evidence that a host gathers only where somebody needs it: `maps`, `look`, `classifier`.
        """
        if not self.attached:
            raise RuntimeError("this handle was removed; attach(model, monitor) again")
        more = self._needs.union(needs) != self._needs
        if more:
            self._install(self._needs.union(needs))
        outer, self._frames = self._frames, []
        try:
            yield self._frames
        finally:
            self._frames = outer
            if more and self.attached:
                self._install(self._needs)

    def _install(self, needs: frozenset[str]) -> None:
        self.remove()
        self._removables = self.host.install(self._process, self._report, needs)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def _process(self, build: Callable[[], Frame], bare: Callable[[], Instances]) -> Instances:
        try:
            frame = replace(build(), names=self._names)
            if self._frames is not None:
                self._frames.append(frame)
            return self.monitor.apply(frame)
        except Exception as fault:
            self._report(fault)
            return without_answer(bare())

    def _report(self, fault: Exception) -> None:
        if self.strict:
            raise fault
        cause = f"{type(fault).__name__}: {fault}"
        if cause not in self._reported:  # one line for each cause, not one for each frame
            self._reported.add(cause)
            log.warning("reliability is unknown (NaN): %s", cause, exc_info=fault)


_attached: WeakKeyDictionary[Any, ref[Handle]] = WeakKeyDictionary()  # the model's own hooks keep a handle alive


def attach(model: Any, monitor: Monitor | None = None, *, strict: bool = False, **options: Any) -> Handle:
    """Hook a detector so that each of its detections carries a reliability.

    The detector's own output stays bit-identical; what is added stands beside it (`result.instances` and
    `result.reliability` for ultralytics, the keys `reliability`, `verdict` and `instances` for torchvision and
    transformers, fields of Detectron2's `Instances`, `predictor.instances` for Segment Anything).
    A model that is hooked already gets the new monitor in place of the old one.

    Args:
        model: An ultralytics `YOLO` or `SAM`, a torchvision detection model, a model or pipeline of transformers, a
            model or `DefaultPredictor` of Detectron2, a predictor or mask generator of Segment Anything.
        monitor: A fitted `Monitor`; without one the signals are computed and the reliability is NaN.
        strict: Raise a fault of the hook instead of logging it and answering "unknown".
        **options: What the host needs beside the model: `processor`, the image processor of a transformers model.

    Returns:
        The handle; `with attach(...)` removes it at the end of the block.

    Raises:
        TypeError: No host knows this kind of model.
        StateError: The monitor was fitted on another model.
        ValueError: The CLIP that the signals read cannot be loaded.
        ImportError: They read one, and open_clip is not installed.
    """
    host = find_host(model, **options)
    warn_untested(host.info.tested)
    monitor = Monitor() if monitor is None else monitor
    monitor.check(host.fingerprint)
    _ = monitor.encoder  # a CLIP that cannot be loaded is said now, not at every image
    former = _attached[model]() if model in _attached else None
    if former is not None:
        former.remove()
    handle = Handle(host, monitor, strict)
    _attached[model] = ref(handle)
    return handle
