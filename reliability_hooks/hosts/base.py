"""What a host is, how one is found for a model, and hooks that cannot harm the model they sit on."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ..evaluation.datasets import GroundTruth
from ..frame import Frame
from ..instances import Instances
from .info import HostInfo

log = logging.getLogger(__name__)

HOSTS: dict[str, str] = {
    "ultralytics.models.sam": "ultralytics_sam:UltralyticsSamHost",
    "ultralytics": "ultralytics:UltralyticsHost",
    "torchvision": "torchvision:TorchvisionHost",
    "transformers": "transformers:TransformersHost",
    "detectron2": "detectron2:Detectron2Host",
    "segment_anything": "segment_anything:SegmentAnythingHost",
    "sam2": "segment_anything:Sam2Host",
    "callable": "supervision:Detector",
}
"""Package of a model's class, the nearest first -> the host under `reliability_hooks.hosts`: the one line to add for a
new host."""

Process = Callable[[Callable[[], Frame], Callable[[], Instances]], Instances]
"""`process(build, bare)`: the frame's instances with columns. `build` gathers all evidence; should it or a signal
fail, the rows of `bare` (boxes, scores and labels alone) are returned with reliability NaN and verdict unknown."""


class Removable(Protocol):
    """What `remove()` undoes, such as a torch hook handle."""

    def remove(self) -> None:
        """Undo."""


class Host:
    """One detector framework: how to hook a model of it, run it, and tell it from another.

    Attributes:
        name: Key in `HOSTS`.
        info: What it gives, for the table of hosts.
        class_free: Its objects have no class: every label is 0, and any annotated object is one of its.
    """

    name: ClassVar[str]
    info: ClassVar[HostInfo]
    class_free: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self._said: set[str] = set()

    def say(self, words: str) -> None:
        """Warn, once in the life of the host."""
        if words not in self._said:
            self._said.add(words)
            log.warning(words)

    @classmethod
    def load(cls, spec: str, **options: Any) -> Any:
        """A model from what a user types (a weights file, an architecture name).

        Raises:
            ValueError: The specification is not understood; the message says what is.
        """
        raise NotImplementedError

    def class_names(self) -> dict[int, str]:
        """Label -> name."""
        raise NotImplementedError

    def module(self) -> nn.Module:
        """The module whose weights identify the model."""
        raise NotImplementedError

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        """Hook the model so that its output carries what `process` returns beside it.

        Args:
            process: Turns a frame into instances with columns; called once for each image.
            report: Takes a fault of our own; raises it again only where the user asked for `strict`.
            needs: Requirements of the signals; what costs (`maps`) is gathered only where it is among them.

        Returns:
            All that has to be removed to restore the model exactly.
        """
        raise NotImplementedError

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """Run the hooked model on (H, W, 3) uint8 RGB images.

        Raises:
            RuntimeError: The model is not hooked.
        """
        raise NotImplementedError

    def predict_labelled(
        self, images: Sequence[np.ndarray], truths: Sequence[GroundTruth], **options: Any
    ) -> list[Instances]:
        """As `predict`, on images whose objects are known: a host that has to be prompted makes prompts of them."""
        return self.predict(images, **options)

    def fingerprint(self) -> dict[str, Any]:
        """What a fitted state is bound to: host, classes and weights (equal for float32 and float16 copies)."""
        digest = hashlib.sha256()
        for name, value in self.module().state_dict().items():
            digest.update(f"{name}{tuple(value.shape)}".encode())
            value = value.half() if value.is_floating_point() else value
            digest.update(value.cpu().contiguous().numpy().tobytes())
        names = self.class_names()
        return {
            "host": self.name,
            "architecture": type(self.module()).__name__,
            "classes": hashlib.sha256(repr(sorted(names.items())).encode()).hexdigest()[:16],
            "weights": digest.hexdigest()[:32],
        }


class Hook:
    """A callable to register on somebody's model.

    A fault inside is reported instead of raised. A deep copy or a pickle of the model gets an inert function in its
    place, so that copies run bare and never feed the monitor of the original.
    """

    def __init__(self, fn: Callable[..., Any], report: Callable[[Exception], None]) -> None:
        self.fn, self.report = fn, report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.fn(*args, **kwargs)
        except Exception as fault:
            self.report(fault)
            return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return inert

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _get_inert, ()


def inert(*args: Any, **kwargs: Any) -> None:
    """What is left of a hook in a copy of its model."""


def _get_inert() -> Callable[..., None]:
    return inert


class Undo:
    """A call that restores something."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.remove = call


class ListEntry:
    """An entry of somebody's list of callbacks, removable by identity."""

    def __init__(self, entries: list[Any], entry: Any, first: bool = False) -> None:
        self.entries, self.entry = entries, entry
        entries.insert(0 if first else len(entries), entry)

    def remove(self) -> None:
        """Take it out; nothing happens if it is gone already."""
        self.entries[:] = [e for e in self.entries if e is not self.entry]


def host_class(name: str) -> type[Host]:
    """A host by name.

    Raises:
        ValueError: There is none; the message lists them.
    """
    if name not in HOSTS:
        raise ValueError(f"unknown host {name!r}; there are: {', '.join(HOSTS)}")
    module, _, attribute = HOSTS[name].partition(":")
    found: type[Host] = getattr(import_module(f".{module}", __package__), attribute)
    return found


def find_host(model: Any, **options: Any) -> Host:
    """The host of a model, by the packages its class descends from; no framework is imported to find out.

    Args:
        model: The model; a host made by hand is its own.
        **options: What the host needs beside it.

    Raises:
        TypeError: No host knows the model, or takes such an option.
    """
    if isinstance(model, Host):
        if options:
            raise TypeError(f"{type(model).__name__} is a host already and takes no {sorted(options)[0]!r}")
        return model
    homes = [f"{c.__module__}." for c in type(model).__mro__]
    for name in HOSTS:
        if any(home.startswith(f"{name}.") for home in homes):
            return host_class(name)(model, **options)
    raise TypeError(f"no host for {type(model).__module__}.{type(model).__qualname__}; there are hosts for models of: "
                    f"{', '.join(n for n in HOSTS if n != 'callable')}; anything else that makes boxes: "
                    "attach(reliability_hooks.hosts.supervision.Detector(callable), monitor)")


def load(spec: str, host: str | None = None, **options: Any) -> Any:
    """A detector from `HOST:SPEC`, from a weights file (`yolo11n-seg.pt` is ultralytics), or `demo`, the embedded one.

    Raises:
        ValueError: The host is not given and cannot be told from the file.
        FileNotFoundError: The weights are not there.
    """
    prefix, colon, rest = spec.partition(":")
    if host is None and colon and prefix in HOSTS:
        host, spec = prefix, rest
    if host is None and spec.endswith(".pt"):
        sam = any(part in Path(spec).stem for part in ("sam_", "sam2_", "sam2.1_"))  # as ultralytics' own command does
        host = "ultralytics.models.sam" if sam else "ultralytics"
    if host is None and spec == "demo":
        host = "torchvision"
    if host is None:
        raise ValueError(f"cannot tell the framework of {spec!r}; write HOST:{spec}, HOST one of {', '.join(HOSTS)}")
    return host_class(host).load(spec, **options)


def check_images(images: Sequence[np.ndarray]) -> None:
    """Raise ValueError where one of them is not (H, W, 3) uint8."""
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"images must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def dropouts(module: nn.Module) -> list[nn.Module]:
    """The dropout modules that drop something when in training mode."""
    return [m for m in module.modules() if isinstance(m, _DropoutNd) and m.p > 0]


_dropping = threading.RLock()  # of two threads at once, the second would take the first one's flags for the model's own


@contextmanager
def dropping(module: nn.Module) -> Iterator[None]:
    """Dropout, and nothing else, behaves as in training; afterwards every flag is what it was.

    A pass of the same model in another thread meanwhile drops as well: modules belong to no thread.
    """
    with _dropping:
        flags = [(m, m.training) for m in dropouts(module)]
        try:
            for m, _ in flags:
                m.training = True
            yield
        finally:
            for m, flag in flags:
                m.training = flag
