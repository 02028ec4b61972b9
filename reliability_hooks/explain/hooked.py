"""Targets that the monitor answers: each changed picture goes through the whole hooked detector, signals and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..frame import Candidates, Glance, View
from ..instances import Instances
from ..signals.geometry import ious
from .targets import Reference, Target

if TYPE_CHECKING:
    from .explainer import Watched

SAME = 0.5
"""IoU from which a detection of the same class in a changed picture is the same one."""
BUDGET = 64
"""Pictures without being asked for another number: each costs a detection with its signals."""
GRID = 8
"""Cells of the masks without being asked for another number: so few pictures tell no finer ones apart."""


def partners(instances: Instances, found: Instances) -> Tensor:
    """(N,) int64, which of the detections in a changed picture each instance is; -1 where it is not found again."""
    if len(instances) == 0 or len(found) == 0:
        return torch.full((len(instances),), -1)
    overlap = ious(instances.boxes.cpu().float(), found.boxes.cpu().float())
    overlap = overlap.masked_fill(instances.labels.cpu()[:, None] != found.labels.cpu(), 0.0)
    best, at = overlap.nan_to_num().max(1)
    return torch.where(best >= SAME, at, -1)


def answer(instances: Instances, found: Instances, column: str = "reliability") -> Tensor:
    """(N,) float32 on the CPU, a column of each instance's partner; NaN where there is none."""
    at = partners(instances, found)
    if not len(found) or column not in found.columns:
        return torch.full((len(at),), torch.nan)
    return torch.where(at >= 0, found.columns[column].float().cpu()[at.clamp(min=0)], torch.nan)


def check_judged(found: Instances, column: str = "reliability") -> None:
    """Refuse a monitor that does not judge.

    Args:
        found: What it gave for an untouched picture.
        column: Of its judgement.

    Raises:
        ValueError: There is no such column, or it is NaN throughout.
    """
    if len(found) and (column not in found.columns or not bool(found.columns[column].isfinite().any())):
        scored = "" if column == "reliability" else " with an out-of-distribution score (preset cheap or full)"
        raise ValueError(f"the monitor gives no {column}: attach one that was fitted{scored}, Monitor.load(DIRECTORY)")


def pictures(view: View, size: tuple[int, int], pixels: Tensor) -> list[np.ndarray]:
    """The image in each of (B, 3, h, w) view pixels, (H, W, 3) uint8, at the view's scale and without its padding.

    Args:
        view: Where the image lies.
        size: (height, width) of the original.
        pixels: Normalised as the view's.
    """
    (left, top), (across, down) = view.offset, view.scale
    rows = slice(max(round(top), 0), max(round(top), 0) + max(round(size[0] * down), 1))
    columns = slice(max(round(left), 0), max(round(left), 0) + max(round(size[1] * across), 1))
    shown = (view.rgb(pixels)[..., rows, columns] * 255).round().byte().permute(0, 2, 3, 1)
    return list(shown.cpu().contiguous().numpy())


class Asked:
    """The hooked detector's answers to the last pixels, which several targets share."""

    def __init__(self, handle: Watched, options: Mapping[str, Any] | None = None) -> None:
        self.handle, self.options = handle, dict(options or {})
        self._last: tuple[Tensor, list[Instances]] | None = None

    def __call__(self, pixels: Tensor, reference: Reference) -> list[Instances]:
        """The instances in each version (B, 3, h, w) of the view's pixels."""
        view, size = reference.frame.view, reference.frame.instances.image_size
        if view is None or size is None:
            raise ValueError("this detector gives no pixels (RGB only), so that nothing can be explained")
        if self._last is None or self._last[0] is not pixels:
            with self.handle.frames():  # of its own, thrown away: each holds its pixels
                self._last = pixels, self.handle.predict(pictures(view, size, pixels), **self.options)
        return self._last[1]


class Reliability(Target):
    """P(correct) of the same object in the changed picture, 0 where it is not found or not known there."""

    name = "reliability"
    raw = False
    column: ClassVar[str] = "reliability"

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def measure(
        self, pixels: Tensor, glance: Glance | None, found: Sequence[Candidates] | None, reference: Reference
    ) -> Tensor:
        made = self.asked(pixels, reference)
        return self.turned(torch.stack([self._answer(reference, one) for one in made]), reference).to(pixels.device)

    def turned(self, values: Tensor, reference: Reference) -> Tensor:
        """(B, N) in [0, 1] from the column's values, NaN where an object is lost."""
        return values.nan_to_num(0.0)

    def _answer(self, reference: Reference, found: Instances) -> Tensor:
        view = reference.frame.view
        assert view is not None  # `Asked` has raised
        kept = reference.frame.instances[reference.rows]
        boxes = kept.boxes.float() * kept.boxes.new_tensor(view.scale * 2)
        return answer(kept.replace(boxes=boxes), found, self.column)


class Ood(Reliability):
    """How unusual the object looks: 1 - `ood_p_value`, so that the map shows what makes it look unknown.

    A picture in which the object is lost says nothing about that: its value is that of the untouched picture.
    """

    name = "ood"
    column = "ood_p_value"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._first: tuple[Reference, Tensor] | None = None

    def turned(self, values: Tensor, reference: Reference) -> Tensor:
        if self._first is None or self._first[0] is not reference:
            view = reference.frame.view
            assert view is not None
            alone = Asked(self.asked.handle, self.asked.options)(view.pixels[None], reference)[0]
            self._first = reference, self._answer(reference, alone)
        return 1 - torch.where(values.isnan(), self._first[1].nan_to_num(1.0), values)


MADE: Mapping[str, type[Reliability]] = {t.name: t for t in (Reliability, Ood)}


def bound(
    targets: Sequence[str | Target], handle: Watched, found: Instances, options: Mapping[str, Any] | None = None
) -> list[str | Target]:
    """The targets, those of `targets.HOOKED` made with the handle that they need.

    Args:
        targets: Names, or targets.
        handle: Of `attach(model, monitor)`.
        found: What it gave for the untouched picture.
        options: Of `handle.predict`.

    Raises:
        ValueError: One reads what the monitor does not give.
    """
    asked = Asked(handle, options)
    for name in targets:
        if isinstance(name, str) and name in MADE:
            check_judged(found, MADE[name].column)
    return [MADE[t](asked) if isinstance(t, str) and t in MADE else t for t in targets]
