"""Confidence intervals by resampling images: instances of one image are not independent, so they stay together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import column

#: Called as metric(*arrays) for the value and metric(*arrays, weight=multiplicities) for each draw.
Metric = Callable[..., SupportsFloat]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its percentile interval; prints as `0.081 [0.062, 0.103]`.

    Attributes:
        value: the figure on the data as they are.
        low: lower end of the interval, NaN if the figure is undefined in more than half of the draws. Likewise `high`.
        level: coverage of the interval, such as 0.95.
        n: number of instances.
        n_images: number of images that were resampled.
        protocol: what the figure means: the metric's own settings (bins, convention, ...), what the caller stated
            (matching rule, IoU threshold, score cut), how the interval was made. JSON-ready.
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    n_images: int
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self)


def image_bootstrap(
    metrics: Mapping[str, Metric],
    image_ids: ArrayLike,
    *arrays: ArrayLike,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
    all_images: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Estimate]:
    """Estimates each metric with a percentile interval over images, the same draws for all of them.

    Args:
        metrics: name -> metric, as in `summary.CALIBRATION_METRICS`.
        image_ids: (N,) image of each instance.
        *arrays: (N,) arrays, handed to each metric in this order.
        draws: number of resamples.
        level: coverage in (0, 1).
        seed: of the draws.
        all_images: ids of all images looked at, where some have no instance and yet belong to the sample.
        strata: the sample that each of `all_images` (of `image_ids` where that is None) comes from, for samples drawn
            separately: images are then drawn within each, as many as it has. None: one sample.
        protocol: what the metrics cannot know: how the arrays were made (matching rule, score cut, ...).

    Returns:
        name -> `Estimate`. To its protocol a metric adds its own settings, read from its signature: bind others than
        the defaults with `functools.partial`.

    Raises:
        ValueError: lengths differ, `draws` or `level` make no sense, an image id is not among `all_images`, or an
            image is of two strata.
    """
    columns = [np.asarray(array) for array in arrays]
    images, n_images = _image_index(image_ids, all_images, columns)
    of_image = None if strata is None else _stratum_index(strata, image_ids if all_images is None else all_images)
    weights = _weights(images, n_images, draws, level, seed, of_image)
    values = np.array([[float(metric(*columns, weight=w)) for metric in metrics.values()] for w in weights])
    values = values.reshape(draws, len(metrics))
    within = "" if of_image is None else f" within each of {len(np.unique(of_image))} strata"
    interval = f"percentiles of {draws} bootstrap draws of images{within}, seed {seed}"
    out = {}
    for k, (name, metric) in enumerate(metrics.items()):
        result = metric(*columns)
        said = {**settings(metric), **_dropped(result), **(protocol or {}), "interval": interval}
        out[name] = _estimate(float(result), values[:, k], level, len(images), n_images, said)
    return out


def settings(metric: Metric) -> dict[str, Any]:
    """What a metric will use beside its arrays: the defaults in its signature, those bound by `partial` included."""
    parameters = inspect.signature(metric).parameters.items()
    empty = inspect.Parameter.empty
    return {name: p.default for name, p in parameters if p.default not in (empty, None) and name != "weight"}


def _dropped(result: Any) -> dict[str, Any]:
    """A mean over classes says how many it left out."""
    return {"classes": len(result.counts), "classes_dropped": result.dropped} if hasattr(result, "dropped") else {}


def paired_bootstrap(
    metric: Metric,
    image_ids: ArrayLike,
    a_arrays: Sequence[ArrayLike],
    b_arrays: Sequence[ArrayLike],
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
    all_images: ArrayLike | None = None,
    ratio: bool = False,
    protocol: Mapping[str, Any] | None = None,
) -> Estimate:
    """Estimates metric(a) - metric(b), or metric(a) / metric(b), for two judgements of the same instances.

    Each draw weighs a and b alike, so what both share cancels and the interval is that of the difference itself.

    Args:
        metric: see `Metric`.
        image_ids: (N,) image of each instance.
        a_arrays: arrays (N,) handed to the metric, such as `(p, y)`.
        b_arrays: the same for the other side.
        draws: number of resamples.
        level: coverage in (0, 1).
        seed: of the draws.
        all_images: as in `image_bootstrap`.
        ratio: give the ratio in place of the difference; NaN where metric(b) is 0.
        protocol: as in `image_bootstrap`.

    Raises:
        ValueError: as `image_bootstrap`.
    """
    a, b = [np.asarray(array) for array in a_arrays], [np.asarray(array) for array in b_arrays]
    images, n_images = _image_index(image_ids, all_images, a + b)

    def compare(**weight: Any) -> float:
        value_a, value_b = float(metric(*a, **weight)), float(metric(*b, **weight))
        if not ratio:
            return value_a - value_b
        return value_a / value_b if value_b else float("nan")

    values = np.array([compare(weight=w) for w in _weights(images, n_images, draws, level, seed)])
    interval = f"percentiles of {draws} bootstrap draws of images, the same for both, seed {seed}"
    said = {"figure": "ratio" if ratio else "difference", **settings(metric), **(protocol or {}), "interval": interval}
    return _estimate(compare(), values, level, len(images), n_images, said)


def _image_index(
    image_ids: ArrayLike, all_images: ArrayLike | None, arrays: Sequence[NDArray[Any]]
) -> tuple[NDArray[np.int64], int]:
    """Numbers the images and returns the number of each instance's image and that of images."""
    ids = np.asarray(image_ids)
    if ids.ndim != 1 or any(array.shape[:1] != ids.shape for array in arrays):
        raise ValueError(f"one image id for each row is needed: {ids.shape} ids, arrays {[a.shape for a in arrays]}")
    known = np.unique(ids if all_images is None else np.asarray(all_images))
    if not len(ids):
        return np.zeros(0, np.int64), len(known)
    missing = ids[~np.isin(ids, known)]
    if len(missing):
        raise ValueError(f"image id {missing[0]} is not among all_images")
    return np.searchsorted(known, ids).astype(np.int64), len(known)


def _stratum_index(strata: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
    """Stratum of each distinct id, in ascending order of the ids as in `_image_index`."""
    known, image = np.unique(np.asarray(ids), return_inverse=True)
    _, code = np.unique(column("strata", strata, len(image)), return_inverse=True)
    of_image = np.zeros(len(known), np.int64)
    of_image[image] = code
    if (of_image[image] != code).any():
        twice = known[image[of_image[image] != code][0]]
        raise ValueError(f"image {twice} is of two strata: make the ids of the samples differ, or give no strata")
    return of_image


def _weights(
    images: NDArray[np.int64],
    n_images: int,
    draws: int,
    level: float,
    seed: int,
    strata: NDArray[np.int64] | None = None,
) -> Iterator[Floats]:
    """Yields (N,) multiplicities: how often each instance's image was drawn."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    for counts in image_counts(n_images, draws, seed, strata):
        yield counts[images].astype(np.float64)


def image_counts(
    n_images: int, draws: int, seed: int, strata: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yields (n_images,): how often each image is drawn when n_images are drawn with replacement.

    With `strata` (n_images,), as many are drawn from each stratum as it has.

    Raises:
        ValueError: `draws` < 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    rng = np.random.default_rng(seed)
    groups = [np.arange(n_images)] if strata is None else [np.flatnonzero(strata == s) for s in np.unique(strata)]
    for _ in range(draws):
        drawn = [group[rng.integers(len(group), size=len(group))] for group in groups if len(group)]
        yield np.bincount(np.concatenate([np.zeros(0, np.int64), *drawn]), minlength=n_images)


def _estimate(
    value: float, values: Floats, level: float, n: int, n_images: int, protocol: Mapping[str, Any]
) -> Estimate:
    valid = values[np.isfinite(values)]
    low = high = float("nan")
    if 2 * len(valid) >= len(values):
        low, high = (float(q) for q in np.quantile(valid, [(1 - level) / 2, (1 + level) / 2]))
    return Estimate(value, low, high, level, n, n_images, protocol)
