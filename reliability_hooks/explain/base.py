"""What an explanation is, what a method that makes one is, and the list of those that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..frame import Candidates, Frame
from ..instances import Instances
from .targets import Reference, Target

METHODS: dict[str, str] = {
    "gradient": "gradient:JointGradient",
    "odam": "gradient:ODAM",
    "hirescam": "gradient:SegHiResCAM",
    "xrescam": "gradient:SegXResCAM",
    "gradcam": "gradient:SegGradCAM",
    "bayes": "bayes:BayesRISE",
    "drise": "perturbation:DRISE",
    "drise_boxes": "perturbation:BoxDRISE",
    "mask": "baselines:OwnMask",
    "gaussian": "baselines:BoxGaussian",
    "random": "baselines:RandomMap",
}
"""Name of each method and where it lives under `reliability_hooks.explain`: the one line to add for a new one."""

AUTO = "bayes"
"""What `auto` is: the most faithful of those that show the detector at most 256 pictures (`tools/bench/explain.py`)."""


@dataclass(frozen=True, eq=False)
class Explanations:
    """Maps of where the evidence for each instance lies.

    Attributes:
        instances: The N instances that are explained.
        maps: target -> (N, H, W) float32 at the pixels of the original image (or smaller, where asked for), in [0, 1]
            with a maximum of 1: what raises the target. All 0 where nothing does, NaN where an instance could not be
            traced to the detector's raw output.
        errors: target -> (N, H, W) standard error of the map; only methods that have one.
        method: Name.
        passes: Pictures shown to the detector.
        backwards: Backward passes.
        seconds: Wall time, without the detection itself.
        notes: What was chosen, left out or stopped early, in words.
    """

    instances: Instances
    maps: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    method: str
    passes: int
    backwards: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Heat:
    """Small maps (n, h, w) >= 0, on rectangles of the view, of which several add up.

    Attributes:
        values: (n, h, w).
        boxes: (n, 4) or (1, 4) xyxy in view pixels.
        errors: (n, h, w) their standard error.
    """

    values: Tensor
    boxes: Tensor
    errors: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Heats:
    """What a method gives: for each target the maps that add up, and what they cost."""

    maps: Mapping[str, Sequence[Heat]]
    passes: int = 0
    backwards: int = 0
    notes: tuple[str, ...] = field(default=())


class Method:
    """A way to make maps. `heats` is the one function to override.

    Attributes:
        name: Key in `METHODS`.
        requires: Evidence of a frame without which it cannot work (`Frame.has`).
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ("image",)

    def heats(self, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int) -> Heats:
        """Maps of the rows (n,) of a frame for each target, with at most `budget` pictures shown to the detector."""
        raise NotImplementedError

    def missing(self, frame: Frame) -> list[str]:
        """The requirements that a frame does not meet."""
        return [name for name in self.requires if not frame.has(name)]


class Probe:
    """Asks the detector about changed pixels: (B, 3, h, w) as the view's -> (B, n, T) in [0, 1].

    By `Frame.look`, the same raw rows, where the host has it; else, or with `rerun`, by the raw boxes of a new pass,
    any of which may take an instance over. Targets that read neither (`Target.raw`) cost no look.

    Attributes:
        reference: The instances in the untouched pixels.
        passes: Pictures shown so far.
    """

    def __init__(self, frame: Frame, rows: Tensor, targets: Sequence[Target], rerun: bool = False) -> None:
        raw = any(target.raw for target in targets)
        self.look = frame.look if raw and not rerun else None
        self.rerun = frame.rerun if raw and self.look is None else None
        if frame.view is None or (raw and self.look is None and self.rerun is None):
            raise ValueError("this detector can neither look at other pixels nor be run again on them")
        self.rows, self.targets = rows, targets
        self.parts = sorted({part for target in targets for part in target.parts})
        self.passes = 0
        glance = None if self.look is None else self.look(frame.view.pixels[None], self.parts, rows)
        self.passes += glance is not None
        self.reference = Reference.of(frame, rows, glance)

    def __call__(self, pixels: Tensor, graded: bool = False) -> Tensor:
        """Answers; `graded` ones keep their graph where the pixels require gradients."""
        self.passes += len(pixels)
        with torch.inference_mode(not graded):
            found: Sequence[Candidates] | None = None
            glance = None
            if self.look is not None:
                glance = self.look(pixels, self.parts, self.rows)
            elif self.rerun is not None:
                found = self.rerun(pixels)
            answers = [t.measure(pixels, glance, found, self.reference) for t in self.targets]
            return torch.stack([answer.float() for answer in answers], 2)


def create(name: str, **settings: Any) -> Method:
    """A method by name.

    Raises:
        ValueError: There is none; the message names the nearest.
    """
    if name not in METHODS:
        near = get_close_matches(name, [*METHODS, "auto"], 1, 0)[0]
        raise ValueError(f"unknown method {name!r}, did you mean {near!r}? There are: auto, {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    made: Method = getattr(import_module(f".{module}", __package__), attribute)(**settings)
    return made
