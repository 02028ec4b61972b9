"""What the conformance test has to know of a host: one `Case` for each kind of model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.frame import Frame
from reliability_hooks.hosts.base import find_host
from reliability_hooks.hosts.info import HostInfo

SIZES = ((120, 168), (144, 112))


class Run(Protocol):
    def __call__(self, model: Any, images: list[np.ndarray], nothing: bool = False) -> list[Any]: ...


@dataclass(frozen=True)
class Case:
    """One row of the conformance table.

    Attributes:
        name: `host/model`, the row's name in the table.
        build: (folder of shared data or None) -> model in eval mode. May `pytest.skip`.
        run: (model, RGB uint8 images, nothing) -> the framework's own output, one for each image; with `nothing` the
            score threshold is so high that nothing is detected.
        tensors: One output -> all tensors of the detector in it, and nothing that a hook has added.
        instances: One output -> its `Instances`, or None where the output is bare.
        single_label: A raw row is kept at most once, for its highest class.
        score_is_probability: The score is the label's own probability (FCOS multiplies it with a centerness).
        cast: (copy of the model, dtype) -> model that computes in it, or None where the host has no such thing.
        sizes: (height, width) of the images.
        prompts: (images, nothing) -> options of `handle.predict`, where a model looks for what it is asked for alone;
            with `nothing` it is asked for nothing.
    """

    name: str
    build: Callable[[Path | None], Any]
    run: Run
    tensors: Callable[[Any], dict[str, Tensor]]
    instances: Callable[[Any], Instances | None]
    single_label: bool = False
    score_is_probability: bool = True
    cast: Callable[[Any, torch.dtype], Any] | None = None
    sizes: tuple[tuple[int, int], ...] = SIZES
    prompts: Callable[[list[np.ndarray], bool], dict[str, Any]] | None = None

    def options(self, images: list[np.ndarray], nothing: bool = False) -> dict[str, Any]:
        """Of `handle.predict`."""
        return {} if self.prompts is None else self.prompts(images, nothing)


class Recorder(Monitor):
    """A monitor without signals that remembers the frames it is given."""

    def __init__(self) -> None:
        super().__init__(signals=())
        self.frames: list[Frame] = []

    def apply(self, frame: Frame) -> Instances:
        self.frames.append(frame)
        return super().apply(frame)


class Subject:
    """A built model with its bare output, shared by all checks of a case; every check leaves it as it was."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        self.case = case
        self.images = photographs(folder, case.sizes)
        self.model = case.build(folder)
        self.bare = self.run()

    @property
    def info(self) -> HostInfo:
        """What its host says that it gives."""
        return find_host(self.model).info

    def run(self, images: list[np.ndarray] | None = None, nothing: bool = False) -> list[Any]:
        return self.case.run(self.model, self.images if images is None else images, nothing)

    @cached_property
    def recorded(self) -> tuple[list[Instances], list[Frame]]:
        """Instances and frames of one hooked run."""
        recorder = Recorder()
        with attach(self.model, recorder, strict=True):
            found = [self.case.instances(output) for output in self.run()]
        assert all(found)
        return [i for i in found if i is not None], recorder.frames


def photographs(folder: Path | None, sizes: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """Real photographs at these sizes, or smooth random images where there are none."""
    if folder is not None:
        from PIL import Image

        files = sorted((folder / "data/coco/val2017").glob("*.jpg"))[: len(sizes)]
        return [np.array(Image.open(f).convert("RGB").resize((w, h))) for f, (h, w) in zip(files, sizes, strict=True)]
    random = torch.Generator().manual_seed(0)
    images = []
    for size in sizes:
        coarse = torch.rand(1, 3, 9, 9, generator=random)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
        images.append((smooth[0] * 255).byte().permute(1, 2, 0).contiguous().numpy())
    return images
