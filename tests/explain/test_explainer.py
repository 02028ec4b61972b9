from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks import Instances
from reliability_hooks.explain.base import METHODS, create
from reliability_hooks.explain.explainer import explain, explain_frame
from reliability_hooks.explain.targets import Reference, Target
from reliability_hooks.frame import Frame

from .toy import BOXES, SIZE, toy

IMAGE = np.zeros((*SIZE, 3), dtype=np.uint8)


class Fake:
    """A handle whose detector always sees the same frame."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.seen, self.options = frame, [], {}  # type: ignore[var-annotated]

    @contextmanager
    def frames(self, *needs: str) -> Iterator[list[Frame]]:
        self.seen = []
        yield self.seen

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        self.options = options
        self.seen.append(self.frame)
        return [self.frame.instances.with_columns({"reliability": torch.arange(3.0)[: len(self.frame.instances)]})]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_maps_of_the_image_in_0_1(name: str) -> None:
    names = ["class", "joint", "mask"][: 2 if name == "drise_boxes" else 3]
    found = explain_frame(toy(), method=name, budget=12, targets=names)
    assert found.method == create(name).name == name
    for maps in found.maps.values():
        assert maps.shape == (3, *SIZE)
        assert maps.dtype == torch.float32
        assert bool((maps >= 0).all())
        torch.testing.assert_close(maps.flatten(1).amax(1), torch.ones(3))
    assert list(found.maps) == names
    assert found.passes <= 13
    assert found.seconds > 0


@pytest.mark.parametrize("name", METHODS)
def test_nothing_to_explain(name: str) -> None:
    frame = toy()
    for empty in (frame.with_instances(frame.instances[:0]), frame):
        found = explain_frame(empty, torch.zeros(0, dtype=torch.int64), method=name, budget=12)
        assert found.maps["joint"].shape == (0, *SIZE)
        assert len(found.instances) == 0


def test_a_detector_without_gradients_is_masked_and_that_is_said() -> None:
    found = explain(Fake(toy(look=False)), IMAGE, budget=16)
    assert found.method == "bayes"
    assert "without gradients" in found.notes[0]
    assert found.passes == 16  # no reference pass
    with pytest.raises(ValueError, match="gradient needs look, which this detector does not give"):
        explain(Fake(toy(look=False)), IMAGE, method="gradient")
    assert explain(Fake(toy()), IMAGE, budget=64).backwards > 0
    with pytest.raises(ValueError, match="bayes needs model"):
        explain_frame(replace(toy(look=False), rerun=None))


def test_rows_instances_and_options() -> None:
    fake = Fake(toy())
    alone = {"method": "gradient"}  # that of one does not depend on the others, as masks do
    every = explain(fake, IMAGE, options={"conf": 0.1}, **alone)
    assert fake.options == {"conf": 0.1}
    assert torch.equal(every.instances.columns["reliability"], torch.arange(3.0))
    some = explain(fake, IMAGE, rows=[2, 0], **alone)
    assert torch.equal(some.maps["joint"], every.maps["joint"][[2, 0]])
    assert torch.equal(some.instances.boxes, BOXES[[2, 0]])
    own = explain(fake, IMAGE, fake.frame.instances[1:], **alone)
    assert torch.equal(own.maps["joint"], every.maps["joint"][1:])
    with pytest.raises(ValueError, match="not among the detections"):
        explain(fake, IMAGE, fake.frame.instances.replace(boxes=BOXES + 1))
    none = explain(fake, IMAGE, fake.frame.instances[:0])
    assert none.maps["joint"].shape == (0, *SIZE)


def test_bad_input() -> None:
    for budget in (0, -3):
        with pytest.raises(ValueError, match="budget must be at least 1"):
            explain(Fake(toy()), IMAGE, budget=budget, method="drise")
    for rows in ([3], [-1]):
        with pytest.raises(ValueError, match=r"rows must lie in 0 \.\. 2"):
            explain(Fake(toy()), IMAGE, rows=rows)
    with pytest.raises(ValueError, match="uint8 RGB"):
        explain(Fake(toy()), IMAGE[..., 0])
    with pytest.raises(ValueError, match="unknown method 'dris', did you mean 'drise'"):
        explain(Fake(toy()), IMAGE, method="dris")
    with pytest.raises(ValueError, match="targets must be given, each once"):
        explain(Fake(toy()), IMAGE, targets=("joint", "joint"))
    with pytest.raises(ValueError, match="layers must be some of"):
        explain(Fake(toy()), IMAGE, method="odam", layers=("last",))
    with pytest.raises(ValueError, match="odam needs maps"):
        explain_frame(replace(toy(), maps=None), method="odam")
    with pytest.raises(ValueError, match="smooth must be at least 0"):
        explain(Fake(toy()), IMAGE, method="odam", smooth=-0.1)
    with pytest.raises(ValueError, match="no feature maps early"):
        explain(Fake(toy()), IMAGE, method="odam", layers=("early",))
    with pytest.raises(ValueError, match="RGB only"):
        explain_frame(replace(toy(), view=None))


def test_smaller_maps_and_many_instances() -> None:
    found = explain_frame(toy(copies=100), method="drise", budget=16, longest=32, targets=["joint", "class"])
    assert found.maps["joint"].shape == (300, 24, 32)
    torch.testing.assert_close(found.maps["joint"][:3], found.maps["joint"][297:])
    assert found.maps["class"].isfinite().all()
    sharp, soft = (explain_frame(toy(), method="odam", smooth=s).maps["joint"] for s in (0.0, 0.3))
    assert bool(((soft > 0).sum((1, 2)) > 1.5 * (sharp > 0).sum((1, 2))).all())
    large = explain_frame(toy(), longest=1000)
    assert large.maps["joint"].shape == (3, *SIZE)


def test_a_target_of_ones_own_sees_the_pixels() -> None:
    class Bright(Target):
        name = "bright"

        def measure(self, pixels: Tensor, glance: Any, found: Any, reference: Reference) -> Tensor:
            assert reference.frame.view is not None
            return pixels.mean((1, 2, 3))[:, None].expand(-1, len(reference.rows))

    found = explain_frame(toy(), method="drise", budget=16, targets=["joint", Bright()])
    assert found.maps["bright"].shape == (3, *SIZE)
    assert torch.equal(found.maps["bright"][0], found.maps["bright"][2])


def test_baselines() -> None:
    frame = toy()
    masks = torch.zeros(3, 12, 16, dtype=torch.bool)
    masks[1, 2:5, 3:9] = True
    frame = frame.with_instances(frame.instances.replace(masks=masks))
    own = explain_frame(frame, torch.tensor([1]), method="mask").maps["joint"][0]
    assert bool((own[10:18, 14:34] == 1).all())
    assert own[30:].sum() == 0
    boxed = explain_frame(frame.with_instances(frame.instances.replace(masks=None)), method="mask")
    inside = torch.zeros(SIZE)
    inside[8:24, 8:24] = 1
    assert torch.equal(boxed.maps["joint"][0], inside)
    assert "no masks" in boxed.notes[0]
    bell = explain_frame(frame, method="gaussian", width=0.5).maps["joint"][0]
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    expected = (-((y - 16) ** 2 + (x - 16) ** 2) / 2 / 8**2).exp()
    torch.testing.assert_close(bell, expected, atol=0.02, rtol=0)
    noise = [explain_frame(frame, method="random", seed=seed).maps["joint"] for seed in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0][0], noise[0][1])
