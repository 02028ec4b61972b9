"""What may be said of a crop: opposite prompts for each condition, names of classes, and whole captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from torch import Tensor

import reliability_hooks
from reliability_hooks.signals import typographic

from .samples import CONDITIONS

ASSETS = Path(reliability_hooks.__file__).parent / "assets"

MORE: dict[str, tuple[list[str], list[str]]] = {
    "blur": (["a blurred {label}", "a defocused photo of a {label}"], ["a sharp {label}", "a clear, sharp {label}"]),
    "motion_blur": (["a {label} smeared by motion", "a photo of a {label} blurred by camera shake"],
                    ["a still photo of a {label}"]),
    "noise": (["a {label} with noise", "a speckled photo of a {label}"], ["a noiseless photo of a {label}"]),
    "low_light": (["a dim photo of a {label}", "a {label} in the dark"], ["a {label} in good light"]),
    "over_exposure": (["a {label} in too much light", "an over-exposed {label}"], ["a correctly exposed {label}"]),
    "fog": (["a {label} behind fog", "a low contrast photo of a {label}", "a faded photo of a {label}"],
            ["a photo of a {label} with good contrast"]),
    "low_resolution": (["a {label} seen with few pixels", "a coarse photo of a {label}"],
                       ["a {label} seen with many pixels"]),
    "compression": (["a {label} with block artefacts", "a badly compressed {label}"], ["a {label} without artefacts"]),
    "occlusion": (["a {label} hidden behind something", "a partly covered {label}"], ["a {label} in full view"]),
    "truncation": (["a {label} cut off by the edge of the picture", "half of a {label}"], ["all of a {label}"]),
    "clutter": (["a {label} surrounded by other objects", "a cluttered photo of a {label}"],
                ["a {label} by itself", "an isolated {label}"]),
    "text": ([*typographic.WRITTEN, "a {label} with letters on it", "a photo of a {label} covered with writing"],
             [*typographic.BLANK, "a {label} without text", "a photo of a {label} with no letters on it"]),
}  # fmt: skip
"""Paraphrases beside those of `assets/conditions.yaml`; for `text` beside those of `signals/typographic.py`."""

TEMPLATES = (
    "a photo of a {label}", "a photo of the {label}", "a picture of a {label}", "{label}", "a {label}", "the {label}",
    "a close-up photo of a {label}", "a good photo of a {label}", "a bad photo of a {label}",
    "a cropped photo of a {label}", "a photo of one {label}", "an image of a {label}", "this is a {label}",
)  # fmt: skip
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "blur": ("blurry", "out-of-focus", "unsharp", "blurred"),
    "motion_blur": ("motion blurred", "shaky"),
    "noise": ("noisy", "grainy"),
    "low_light": ("dark", "underexposed", "dim"),
    "over_exposure": ("overexposed", "too bright", "washed-out"),
    "fog": ("foggy", "hazy", "low contrast", "pale"),
    "low_resolution": ("low resolution", "pixelated", "coarse"),
    "compression": ("heavily compressed", "blocky", "jpeg corrupted"),
}
CLAUSES: dict[str, tuple[str, ...]] = {
    "occlusion": ("half hidden behind something", "partially covered", "with something in front of it"),
    "truncation": ("cut off at the edge", "not all of it in the picture"),
    "clutter": ("among many other things", "in a cluttered scene", "in a crowd"),
    "text": ("with text written on it", "with letters on it"),
}
KINDS, GOOD = ("photo", "picture", "image"), ("clean", "good", "clear", "sharp")


def prompts() -> list[tuple[list[str], list[str]]]:
    """(high, low) paraphrases for each of `CONDITIONS`."""
    given = yaml.safe_load((ASSETS / "conditions.yaml").read_text(encoding="utf-8"))
    pairs = []
    for name in CONDITIONS:
        high, low = MORE[name]
        own: Mapping[str, list[str]] = given.get(name, {"high": [], "low": []})
        pairs.append(([*own["high"], *high], [*own["low"], *low]))
    return pairs


def synonyms() -> dict[str, list[str]]:
    """Class -> other names of it."""
    given: dict[str, list[str]] = yaml.safe_load((ASSETS / "synonyms.yaml").read_text(encoding="utf-8"))
    return given


def caption(label: str, target: Tensor, rng: np.random.Generator) -> str:
    """A sentence that names the class and what is clearly to be seen of the conditions, in any order."""
    seen = [name for name, value in zip(CONDITIONS, target.tolist(), strict=True) if value > 0.55]
    rng.shuffle(seen)
    adjectives = ", ".join(_one(ADJECTIVES[name], rng) for name in seen if name in ADJECTIVES)
    clauses = ", ".join(_one(CLAUSES[name], rng) for name in seen if name in CLAUSES)
    kind = _one(KINDS, rng)
    start = f"{'an' if adjectives[:1] in tuple('aeiou') else 'a'} {adjectives} {kind}" if adjectives else (
        f"a {_one(GOOD, rng)} {kind}" if not seen and rng.random() < 0.6 else f"a {kind}"
    )  # fmt: skip
    return " ".join(f"{start} of a {label} {clauses}".split())


def every_caption_word() -> list[str]:
    """Texts in which every word of `caption` occurs, alone and before a comma."""
    parts = [part for table in (ADJECTIVES, CLAUSES) for group in table.values() for part in group]
    frames = [f"{a} {good} {kind} of" for a in ("a", "an") for good in GOOD for kind in KINDS]
    return [*parts, *(f"{part}, {part}" for part in parts), *frames]


def _one(of: Sequence[str], rng: np.random.Generator) -> str:
    return of[rng.integers(len(of))]
