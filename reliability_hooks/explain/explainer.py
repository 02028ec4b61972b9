"""explain(handle, image): maps of what each instance of an image rests on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..frame import Frame
from ..instances import Instances
from .base import AUTO, Explanations, Heat, Method, create
from .hooked import BUDGET, GRID, bound
from .places import resample
from .targets import Target, target_of

PIXELS = 1 << 24
"""Of the full-size maps that are made at once, beside those that are returned."""
SAME_BOX = 0.05
PICTURES = 256
"""Shown to the detector without being asked for another number."""
EVIDENCE = ("look", "maps")


class Watched(Protocol):
    """What is used of a `hook.Handle`."""

    def frames(self, *needs: str) -> AbstractContextManager[list[Frame]]:
        """The frames of the images that the detector sees."""

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """Run the hooked detector."""


def explain(
    handle: Watched,
    image: np.ndarray,
    instances: Instances | None = None,
    *,
    targets: Sequence[str | Target] = ("joint",),
    method: str | Method = "auto",
    budget: int | None = None,
    rows: Sequence[int] | Tensor | None = None,
    longest: int | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Explanations:
    """Explain the detections of one image.

    Args:
        handle: Of `attach(model)`.
        image: (H, W, 3) uint8 RGB.
        instances: Detections of this very image, such as those that `handle.predict` gave; all of them without it.
        targets: Names in `targets.TARGETS` or `targets.HOOKED`, or targets of one's own.
        method: Name in `base.METHODS`, a method, or `auto`: gradients where the detector and the targets give them,
            else masking.
        budget: Pictures that a perturbation method may show to the detector, backward passes of `bayes` among them; 256
            without it, or 64 for targets of `HOOKED`, each of which is a detection with all its signals.
        rows: Which of the instances are explained.
        longest: Longer side of the maps in pixels; that of the image without it. N float32 maps of a large photograph
            take much memory.
        options: Of `handle.predict`, such as `{"conf": 0.1}`.
        **settings: Of the method, where it is given by name.

    Returns:
        See `Explanations`.

    Raises:
        ValueError: This is no image, the budget is below 1, a row or an instance is not among the detections, or the
            detector does not give what the method or a target needs; the message says what to do.
        RuntimeError: The handle was removed, or the detector's evidence could not be gathered.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    with handle.frames(*EVIDENCE) as frames:
        found = handle.predict([image], **dict(options or {}))[0]
        if len(frames) != 1:
            raise RuntimeError("no evidence of the detector; attach(..., strict=True) raises the cause")
        given = found if instances is None else instances
        chosen = torch.arange(len(given)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(given):
            raise ValueError(f"rows must lie in 0 .. {len(given) - 1}, not {chosen.tolist()}")
        given = given[chosen.to(given.device)]
        at = rows_of(given, frames[0].instances)
        return explain_frame(
            frames[0], at, targets=bound(targets, handle, found, options), method=method, budget=budget,
            longest=longest, instances=given, **settings,
        )  # fmt: skip


def explain_frame(
    frame: Frame,
    rows: Tensor | None = None,
    *,
    targets: Sequence[str | Target] = ("joint",),
    method: str | Method = "auto",
    budget: int | None = None,
    longest: int | None = None,
    instances: Instances | None = None,
    **settings: Any,
) -> Explanations:
    """As `explain`, of a frame whose handle is still attached: several methods can share it.

    Args:
        frame: With a view.
        rows: (N,) int64 of its instances; all of them without it.
        targets: See `explain`; those of `HOOKED` made by `hooked.bound`.
        method: See `explain`.
        budget: See `explain`.
        longest: See `explain`.
        instances: (N,) what stands in the answer for these rows, with columns for example.
        **settings: Of the method, where it is given by name.
    """
    asked = [target_of(t) for t in targets]
    raw = all(t.raw for t in asked)
    budget = (PICTURES if raw else BUDGET) if budget is None else budget
    if budget < 1:
        raise ValueError(f"budget must be at least 1 picture, not {budget}")
    if not asked or len({t.name for t in asked}) != len(asked):
        raise ValueError(f"targets must be given, each once, not {[t.name for t in asked]}")
    view, image_size = frame.view, frame.instances.image_size
    if view is None or image_size is None:
        raise ValueError("this detector gives no pixels (RGB only), so that nothing can be explained")
    rows = torch.arange(len(frame.instances), device=frame.instances.device) if rows is None else rows
    used = chosen_method(method, frame, settings, raw)
    size = image_size if longest is None else _within(image_size, longest)
    start = time.perf_counter()
    heats = used.heats(frame, rows, asked, budget)
    maps: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    for name, parts in heats.maps.items():
        maps[name], error = _full(parts, len(rows), frame, size)
        if error is not None:
            errors[name] = error
    notes: tuple[str, ...] = ()
    if untraced := sum(int(m.flatten(1).isnan().any(1).sum()) for m in list(maps.values())[:1]):
        notes = (f"{untraced} of {len(rows)} could not be traced to the detector's raw output: NaN",)
    return Explanations(
        instances=frame.instances[rows] if instances is None else instances,
        maps=maps, errors=errors, method=used.name, passes=heats.passes, backwards=heats.backwards,
        seconds=time.perf_counter() - start, notes=notes + heats.notes,
    )  # fmt: skip


def chosen_method(
    method: str | Method, frame: Frame, settings: Mapping[str, Any], raw: bool = True
) -> Method:
    """The method.

    Args:
        method: See `explain`.
        frame: What it is to be used on.
        settings: Of the method; where `auto` chooses for targets that are not raw, `GRID` is one of them.
        raw: Whether all targets read the raw output (`Target.raw`), without which there is no gradient.

    Raises:
        ValueError: The frame has not what it needs; the message says what.
    """
    if method == "auto":
        method, settings = AUTO, settings if raw else {"grid": GRID, **settings}
    made = method if isinstance(method, Method) else create(method, **settings)
    if missing := made.missing(frame):
        raise ValueError(f"{made.name} needs {', '.join(missing)}, which this detector does not give; choose another "
                         "method, or 'auto'")
    return made


def rows_of(given: Instances, frame: Instances) -> Tensor:
    """(N,) int64, where the given instances stand among a frame's.

    Raises:
        ValueError: One is not there.
    """
    if len(given) == 0:
        return torch.zeros(0, dtype=torch.int64, device=frame.device)
    labels, boxes = given.labels.to(frame.device), given.boxes.to(frame.device).float()
    apart = (boxes[:, None] - frame.boxes.float()).abs().amax(2) + (labels[:, None] != frame.labels) * 1e9
    if apart.shape[1] == 0 or not bool((apart.amin(1) <= SAME_BOX).all()):
        raise ValueError("some instances are not among the detections of this image; give the image that they come "
                         "from, and in `options` what they were detected with")
    return apart.argmin(1)


def _full(parts: Sequence[Heat], n: int, frame: Frame, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """(n, height, width) maps with a maximum of 1, and errors on the same scale; made some instances at a time."""
    view, image_size = frame.view, frame.instances.image_size
    if view is None or image_size is None:
        raise ValueError("the frame has no view")
    maps = torch.zeros(n, *size, device=view.pixels.device)
    with_error = [part for part in parts if part.errors is not None]
    errors = torch.zeros_like(maps) if with_error else None
    step = max(1, PIXELS // (size[0] * size[1]))
    for start in range(0, n, step):
        some = slice(start, start + step)
        for part in parts:
            boxes = part.boxes if len(part.boxes) == 1 else part.boxes[some]
            maps[some] += resample(part.values[some].detach(), boxes, view, image_size, size)
            if part.errors is not None and errors is not None:
                errors[some] += resample(part.errors[some].detach(), boxes, view, image_size, size)
        highest = maps[some].flatten(1).amax(1)[:, None, None]
        scale = torch.where(highest > 0, 1 / highest, highest * 0)  # NaN stays NaN
        maps[some] *= scale
        if errors is not None:
            errors[some] *= scale
    return maps, errors


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    if longest < 1:
        raise ValueError(f"longest must be at least 1 pixel, not {longest}")
    share = min(1.0, longest / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))
