"""What a signal is, and the list of those that there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from ..frame import Frame

Requirement = Literal[
    "image", "candidates", "pool", "maps", "classifier", "look", "model", "dropout", "masks", "logits", "features",
    "tracks", "names", "clip", "mask_logits", "prompted",
]
REQUIREMENTS: tuple[str, ...] = get_args(Requirement)

FAMILIES: dict[str, str] = {
    "geometry": "geometry:Geometry",
    "candidates": "candidates:CandidateStatistics",
    "image": "image:ImageStatistics",
    "ood/logits": "ood.logits:LogitScores",
    "ood/gen_top": "ood.gen_top:GENTop",
    "ood/box_gen": "ood.boxwise:BoxConditionedGEN",
    "ood/box_energy": "ood.boxwise:BoxConditionedEnergy",
    "ood/kl_matching": "ood.kl_matching:KLMatching",
    "ood/temperature_msp": "ood.temperature:TemperatureMSP",
    "ood/gradnorm": "ood.gradnorm:GradNorm",
    "ood/react": "ood.shaping:ReAct",
    "ood/dice": "ood.shaping:DICE",
    "ood/ash": "ood.ash:ASH",
    "ood/scale": "ood.ash:SCALE",
    "ood/fdbd": "ood.fdbd:FDBD",
    "ood/nnguide": "ood.nnguide:NNGuide",
    "ood/mahalanobis": "ood.mahalanobis:Mahalanobis",
    "ood/relative_mahalanobis": "ood.mahalanobis:RelativeMahalanobis",
    "ood/knn": "ood.knn:KNearest",
    "ood/vim": "ood.vim:ViM",
    "ood/bam": "ood.bam:BoxAbstraction",
    "ood/particul": "ood.particul:Particul",
    "ood/odin": "ood.odin:ODIN",
    "ood/safe": "ood.safe:SAFE",
    "features": "features:FeatureComponents",
    "activations": "activations:Activations",
    "ood/vision_language": "ood.vision_language:VisionLanguage",
    "consistency": "consistency:Consistency",
    "mask_quality": "mask_quality:MaskQuality",
    "promptable": "promptable:Promptable",
    "dropout": "dropout:Dropout",
    "condition": "condition:Condition",
    "attribute": "attribute:Attribute",
    "agreement": "agreement:Agreement",
    "typographic": "typographic:Typographic",
}
"""Name of each signal and where it lives under `reliability_hooks.signals`: the one line to add for a new signal."""


PRESETS: dict[str, tuple[str, ...]] = {
    "cheap": ("geometry", "candidates", "image", "ood/logits"),
    "full": ("geometry", "candidates", "image", "ood/logits", "consistency"),
    "sam": ("geometry", "image", "mask_quality", "promptable"),
    "clip": ("condition", "agreement"),
    "ood": (
        "ood/logits", "ood/gen_top", "ood/box_gen", "ood/box_energy", "ood/kl_matching", "ood/temperature_msp",
        "ood/gradnorm",
        "ood/react", "ood/dice", "ood/ash", "ood/scale", "ood/fdbd", "ood/nnguide", "ood/mahalanobis",
        "ood/relative_mahalanobis", "ood/knn", "ood/vim", "ood/bam", "features", "activations",
    ),
}
"""Names for several signals: `cheap` needs no further forward pass, `full` one; `sam` is for masks of Segment Anything,
whose decoder it asks again; `clip`, beside any of them, shows every object to a CLIP; `ood` is for `evaluate-ood`.
`features` and `activations` are in neither of the first two: in the ablation of `tools/bench/reliability.py` they make
the reliability no better."""


class Signal:
    """One family of evidence about the instances of an image.

    A subclass sets `name`, `requires` and `columns` and overrides `__call__`; one that learns from data sets `learns`
    and overrides `update`, `finish`, `state` and `load_state` too. It never changes the frame.

    Attributes:
        name: Registered name; every column is called `name/...`.
        requires: Evidence without which the signal is skipped (reported once, by name).
        columns: Each column with a phrase for a low and for a high value, to name reasons with.
        scores: The columns that are out-of-distribution scores: higher = more out-of-distribution.
        learns: Whether it has to see in-distribution frames before it can be called.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Requirement, ...]] = ()
    columns: ClassVar[Mapping[str, tuple[str, str]]] = {}
    scores: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[bool] = False

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        """Columns of length N, float32, on the device of the instances; NaN where a value is not defined."""
        raise NotImplementedError

    def missing(self, frame: Frame) -> list[str]:
        """The requirements that this frame does not meet."""
        return [r for r in self.requires if not frame.has(r)]

    def update(self, frame: Frame) -> None:
        """Learn from one in-distribution frame (constant memory). Called only where `learns` is set."""
        raise NotImplementedError(f"{self.name} has nothing to learn")

    def finish(self) -> None:
        """Turn what was gathered into what `__call__` uses."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was learned: tensors and JSON-able values."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""


def create(names: Iterable[str]) -> list[Signal]:
    """Signals by name; a name of `PRESETS` stands for all of its, NAME@LAYER for one that reads features of a layer.

    Raises:
        ValueError: A name is not registered (the message gives the nearest), or named twice.
    """
    names = [name for given in names for name in PRESETS.get(given, (given,))]
    signals: list[Signal] = []
    for given in names:
        name, at, layer = str(given).partition("@")
        if name not in FAMILIES:
            near = get_close_matches(str(name), FAMILIES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown signal {name!r}{hint} There are: {', '.join(FAMILIES)}")
        module, _, attribute = FAMILIES[name].partition(":")
        made = getattr(import_module(f".{module}", __package__), attribute)
        if at and not hasattr(made, "evidence"):  # as `ood.base.Score` has
            raise ValueError(f"signal {name!r} reads no layer of choice: write it without @{layer}")
        signals.append(made(layer) if at else made())
    return signals
