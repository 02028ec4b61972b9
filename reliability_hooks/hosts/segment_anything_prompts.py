"""Prompts for a predictor: those that a caller gives, and those that are made of annotated objects."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..evaluation.datasets import GroundTruth
from ..evaluation.masks import decode_masks

Prompts = dict[str, list[NDArray[np.float32]]]


def ask(
    predictor: Any,
    stretched: bool,
    images: Sequence[np.ndarray],
    boxes: Sequence[ArrayLike] | None = None,
    points: Sequence[ArrayLike] | None = None,
    labels: Sequence[ArrayLike] | None = None,
    multimask: bool = False,
) -> Iterator[Callable[[], Any] | None]:
    """Calls that segment one image after another, None where no prompts are; see `SegmentAnythingHost.predict`.

    Args:
        predictor: Of segment_anything or SAM 2.
        stretched: It is SAM 2's.
        images: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy for each image.
        points: (N, 2) or (N, P, 2) for each image.
        labels: (N, P) for each image, 1 inside and 0 outside; all inside without them.
        multimask: Three answers to each prompt.

    Raises:
        ValueError: No prompts, or not as many as images.
    """
    if boxes is None and points is None:
        raise ValueError("a predictor needs prompts: give boxes= or points=, a list with an array for each image; to "
                         "segment everything attach to an automatic mask generator")
    for name, given in (("boxes", boxes), ("points", points), ("labels", labels)):
        if given is not None and len(given) != len(images):
            raise ValueError(f"{len(given)} arrays of {name} for {len(images)} images; give one for each")
    for i, image in enumerate(images):
        box = None if boxes is None else np.asarray(boxes[i], np.float32).reshape(-1, 4)
        point = label = None
        if points is not None:
            point = np.asarray(points[i], np.float32)
            point = point.reshape(-1, 1, 2) if point.ndim < 3 else point
            label = np.ones(point.shape[:2]) if labels is None else np.asarray(labels[i]).reshape(point.shape[:2])
        empty = not any(len(part) for part in (box, point) if part is not None)
        yield None if empty else partial(_ask, predictor, stretched, image, box, point, label, multimask)


def _ask(
    predictor: Any, stretched: bool, image: np.ndarray, box: Any, point: Any, label: Any, multimask: bool
) -> Any:
    import torch

    predictor.set_image(np.ascontiguousarray(image))
    device, size = predictor.device, tuple(image.shape[:2])
    labels = None if label is None else torch.as_tensor(label, dtype=torch.int, device=device)
    given = [None if part is None else torch.as_tensor(part, dtype=torch.float, device=device) for part in (point, box)]
    if stretched:
        change = partial(predictor._transforms.transform_coords, normalize=True, orig_hw=size)
        points, boxes = (None if p is None else change(p.reshape(len(p), -1, 2)) for p in given)
        return predictor._predict(points, labels, boxes, multimask_output=multimask)
    apply = (predictor.transform.apply_coords_torch, predictor.transform.apply_boxes_torch)
    points, boxes = (None if p is None else change(p, size) for p, change in zip(given, apply, strict=True))
    return predictor.predict_torch(points, labels, boxes, multimask_output=multimask)


def prompts_for(
    truth: GroundTruth, size: tuple[int, int], prompt: Literal["box", "point"] = "box", jitter: float = 0.1
) -> tuple[Prompts, NDArray[np.int64]]:
    """Prompts as somebody would give them for annotated objects, those of crowds left out.

    Args:
        truth: The objects, with masks.
        size: (height, width) of the image.
        prompt: `box`, the object's box with every side moved; or `point`, a click on the object.
        jitter: Greatest move of a side, as a share of the box's width or height; drawn evenly, and the same for the
            same objects. The click is the point of the mask nearest to its centre of mass, moved likewise where that
            stays on the mask.

    Returns:
        Options of `SegmentAnythingHost.predict` for one image, and the object that each prompt is of.

    Raises:
        ValueError: An object has no mask, or `prompt` is neither.
    """
    if prompt not in ("box", "point"):
        raise ValueError(f"prompt must be 'box' or 'point', not {prompt!r}")
    objects = np.flatnonzero(~truth.crowd)
    draw = np.random.default_rng(zlib.crc32(np.ascontiguousarray(truth.boxes).tobytes()))
    boxes = truth.boxes[objects]
    extent = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moves = draw.uniform(-jitter, jitter, boxes.shape) * extent
    if prompt == "box":
        return {"boxes": [np.clip(boxes + moves, 0, np.tile(size[::-1], 2)).astype(np.float32)]}, objects
    masks = decode_masks(truth, *size)[objects]
    clicks = [_click(mask, move) for mask, move in zip(masks, moves[:, :2], strict=True)]
    return {"points": [np.array(clicks, np.float32).reshape(-1, 2)]}, objects


def _click(mask: NDArray[np.bool_], move: NDArray[np.float64]) -> NDArray[np.float64]:
    y, x = np.nonzero(mask)
    if not len(x):
        return np.zeros(2)
    pixels = np.stack([x, y], 1) + 0.5
    center: NDArray[np.float64] = pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()]
    moved: NDArray[np.float64] = center + move
    column, row = np.floor(moved).astype(int)
    on = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and bool(mask[row, column])
    return moved if on else center
