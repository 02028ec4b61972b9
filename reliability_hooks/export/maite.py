"""MAITE, the test-and-evaluation protocol that xaitk, nrtk and dataeval speak: a hooked detector as one of its models.

Its protocols are structural: nothing of maite is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..instances import Instances


class ModelMetadata(TypedDict):
    """As `maite.protocols.ModelMetadata`."""

    id: str
    index2label: dict[int, str]


@dataclass(frozen=True, eq=False)
class Target:
    """An `ObjectDetectionTarget` that keeps all that is known of its objects.

    Attributes:
        instances: Of one image, with columns.
    """

    instances: Instances

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(N, 4) xyxy in pixels."""
        return self._array("boxes", np.float32)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,)"""
        return self._array("labels", np.int64)

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,) the detector's own."""
        return self._array("scores", np.float32)

    @property
    def reliability(self) -> NDArray[np.float32]:
        """(N,) P(this detection is right), NaN where unknown."""
        return self._array("reliability", np.float32)

    def _array(self, name: str, dtype: Any) -> NDArray[Any]:
        return np.asarray(getattr(self.instances, name).detach().cpu(), dtype)


class _Named(Protocol):
    def class_names(self) -> dict[int, str]: ...


class Hooked(Protocol):
    """What `attach` returns."""

    @property
    def host(self) -> _Named:
        """The hooked detector."""

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """The instances of (H, W, 3) uint8 RGB images."""


class Model:
    """A hooked detector as a `maite.protocols.object_detection.Model`.

    Args:
        handle: What `attach(model, monitor)` returned.
        id: The name that it goes by.
        **options: Of the detector's own call, such as `conf=0.1`.

    Attributes:
        metadata: `id` and `index2label`.
    """

    def __init__(self, handle: Hooked, id: str, **options: Any) -> None:
        self.handle, self.options = handle, options
        self.metadata: ModelMetadata = {"id": id, "index2label": handle.host.class_names()}

    def __call__(self, batch: Sequence[ArrayLike], /) -> Sequence[Target]:
        """Images (3, H, W) RGB, uint8 or float in [0, 1] -> what is detected in each.

        Raises:
            ValueError: An image is of another kind.
        """
        return [Target(i) for i in self.handle.predict([_pixels(image) for image in batch], **self.options)]


def _pixels(image: Any) -> NDArray[np.uint8]:
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim != 3 or array.shape[0] != 3:
        raise ValueError(f"images must be (3, H, W) RGB, not {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # NaN fails, too
            raise ValueError("float images must lie in [0, 1]; divide by 255, or give uint8")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"images must be uint8, or float in [0, 1], not {array.dtype}")
    return np.ascontiguousarray(array.transpose(1, 2, 0))
