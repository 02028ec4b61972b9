"""The spatial map of doubt: where mending, and where hiding, a place changes how reliable an object is.

Random masks on a coarse grid over each object and its surroundings say which places of a picture are mended (as far as
honest image processing can) or hidden; the whole hooked detector then answers. One set of pictures serves all objects.
What is claimed of a place is checked by a picture in which just that place is changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..instances import Instances
from .counterfactual import LEAST, REMEDIES, Counterfactual, Remedy, counterfactuals
from .explainer import Watched
from .hooked import answer, check_judged
from .moments import Moments
from .paint import LATTICE, Brush, blend, hidden, mended, mosaic, painted, windows_of
from .region import Claim, region_of, said, spread, whereabouts

CHANGES = {"restored": 0.5, "removed": 0.25}
"""The two maps, and the share of places that a mask changes: an object half of which is hidden is seldom found."""
PIXELS = 1 << 22
"""Of the pictures that are made at once."""


@dataclass(frozen=True, eq=False)
class Doubt:
    """Signed maps of N objects.

    Attributes:
        instances: The objects, as they are.
        windows: (N, 4) int64 xyxy in pixels of the image: what each map covers, the object with some surroundings.
        maps: `restored` and `removed` -> (N, L, L) float32, what the reliability gains where a place is mended, or
            hidden; negative where it loses. Finite: 0 where nothing is known to change, as for an object that no
            picture shows.
        errors: The same -> (N, L, L) standard error.
        remedies: (N,) what `restored` mends with.
        claims: (N,) what was claimed of places of each, and what came of it.
        words: (N,) the same as a sentence.
        passes: Pictures shown to the hooked detector.
        seconds: Wall time.
        notes: In words.
    """

    instances: Instances
    windows: Tensor
    maps: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    remedies: tuple[str, ...]
    claims: tuple[tuple[Claim, ...], ...]
    words: tuple[str, ...]
    passes: int
    seconds: float
    notes: tuple[str, ...] = ()


def doubt(
    handle: Watched,
    image: np.ndarray,
    instances: Instances,
    *,
    remedies: Mapping[str, Remedy] = REMEDIES,
    tried: Sequence[Sequence[Counterfactual]] | None = None,
    budget: int = 64,
    grid: int = 4,
    changes: Sequence[str] = tuple(CHANGES),
    fill: str = "blur",
    batch: int = 8,
    seed: int = 0,
    least: float = LEAST,
    options: Mapping[str, Any] | None = None,
) -> Doubt:
    """Where the doubt about each object lies.

    A map is the slope of the reliability w, 0 where the object is not found again, over how much M of a place is
    changed, cov(w, M) / var(M), and its error the standard error over the masks. A place is established where it
    exceeds two of them; only established places are claimed.

    Args:
        handle: Of `attach(model, monitor)` with a fitted monitor.
        image: (H, W, 3) uint8 RGB.
        instances: N of its detections, with reliability. Better few: they share the pictures, but where their
            surroundings overlap, the smaller one's masks count.
        remedies: Words -> what may be done to the image. Each object's own is the one that helped it most as a whole.
        tried: What `counterfactuals` gave for them; run here without it, one picture for each remedy.
        budget: Pictures, in equal parts for each map. Those of `tried` and of the checks, at most one for each object
            and map, come on top.
        grid: Cells across and down what a map covers.
        changes: Of `CHANGES`.
        fill: What stands in the place of what is hidden, of `evaluation.fills.FILLS`.
        batch: Pictures at once.
        seed: Of the masks.
        least: Gain in the checking picture from which a claim holds.
        options: Of `handle.predict`.

    Raises:
        ValueError: No monitor was fitted, or budget, grid or image make no sense; the message says what to do.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    if not changes or set(changes) - CHANGES.keys():
        raise ValueError(f"changes must be some of {', '.join(CHANGES)}, not {list(changes)}")
    if budget < 2 * len(changes) or grid < 1 or batch < 1:
        raise ValueError(f"budget must be at least {2 * len(changes)} pictures, grid and batch at least 1; "
                         f"not {budget}, {grid} and {batch}")
    if not remedies:
        raise ValueError("no remedy is given to mend places with")
    check_judged(instances)
    start, size, n = time.perf_counter(), (image.shape[0], image.shape[1]), len(instances)
    asked = _Asked(handle, instances, dict(options or {}))
    if tried is None:
        tried = counterfactuals(handle, image, instances, remedies, options, confirm=False)
        asked.passes += len(remedies) if n else 0
    chosen = tuple(max(row, key=lambda c: c.gain if c.gain == c.gain else -2.0).remedy for row in tried)
    whole = {name: remedies[name](image) for name in dict.fromkeys(chosen)}
    windows = windows_of(instances.boxes.cpu().float(), size)
    brushes = {"restored": mended(mosaic(image, [whole[name] for name in chosen], windows)),
               "removed": hidden(image, fill)}  # fmt: skip
    maps, errors, notes, claims = {}, {}, [], [list[Claim]() for _ in range(n)]
    batch, count = max(1, min(batch, PIXELS // max(size[0] * size[1], 1))), budget // len(changes) if n else 0
    for i, kind in enumerate(changes):
        drawn = painted(windows, size, grid, CHANGES[kind], count, batch, seed + i)
        maps[kind], errors[kind], lost = _measured(asked, image, brushes[kind], drawn, grid * LATTICE)
        if lost:
            notes.append(f"{lost} of {n} found in no picture of {kind}: map 0")
        for k in range(n):
            region = region_of(maps[kind][k], errors[kind][k])
            if bool(region.any()):
                brush = mended(whole[chosen[k]]) if kind == "restored" else brushes[kind]
                after = asked(blend(image, spread(region, windows[k], size)[None], brush))[0, k]
                where = whereabouts(region, windows[k], instances.boxes[k].cpu())
                claims[k].append(Claim(kind, _how(kind, chosen[k]), where, region, float(instances.reliability[k]),
                                       float(after), least))  # fmt: skip
    words = tuple(said([(kind, _how(kind, chosen[k])) for kind in changes], claims[k]) for k in range(n))
    return Doubt(
        instances, windows, maps, errors, chosen, tuple(tuple(c) for c in claims), words, asked.passes,
        time.perf_counter() - start, tuple(notes),
    )  # fmt: skip


def _measured(
    asked: _Asked, image: np.ndarray, brush: Brush, drawn: Iterable[tuple[Tensor, Tensor]], side: int
) -> tuple[Tensor, Tensor, int]:
    """(N, side, side) effects and their errors under the drawn masks, and how many objects are found under none."""
    n = len(asked.instances)
    moments = [Moments(1, side * side, torch.device("cpu")) for _ in range(n)]
    found = torch.zeros(n, dtype=torch.bool)
    for masks, places in drawn:
        answers = asked(blend(image, masks, brush))
        found |= answers.isfinite().any(0)
        for k, one in enumerate(moments):
            one.add(answers[:, k : k + 1].nan_to_num(0.0), places[:, k].flatten(1))
    effect, error = _slopes(moments, side)
    return effect, error, int((~found).sum())


class _Asked:
    """The hooked detector's answers about the same objects in other pictures."""

    def __init__(self, handle: Watched, instances: Instances, options: dict[str, Any]) -> None:
        self.handle, self.instances, self.options = handle, instances, options
        self.passes = 0

    def __call__(self, pictures: list[np.ndarray]) -> Tensor:
        """(B, N) reliability, NaN where an object is not found."""
        self.passes += len(pictures)
        return torch.stack([answer(self.instances, one) for one in self.handle.predict(pictures, **self.options)])


def _slopes(moments: Sequence[Moments], side: int) -> tuple[Tensor, Tensor]:
    """(N, side, side) cov(w, M) / var(M) and its standard error; 0 at places that no mask changed."""
    effects = torch.zeros(2, len(moments), side * side)
    for k, one in enumerate(moments):
        varied = (one.m[1] - one.m[0] ** 2)[0]
        for out, value in zip(effects[:, k], one.effect("centred"), strict=True):
            out.copy_(torch.where(varied > 1e-6, value[0] / varied.clamp(min=1e-6), 0))
    effect, error = effects.view(2, len(moments), side, side)
    return effect, error


def _how(kind: str, remedy: str) -> str:
    return remedy if kind == "restored" else "hidden"
