"""Remedies are run, and what is told of them is what came out."""

from __future__ import annotations

from contextlib import nullcontext
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch

from reliability_hooks.explain.counterfactual import REMEDIES, brightened, counterfactuals, helpful, mirrored
from reliability_hooks.instances import Instances


def found(reliability: list[float], shift: float = 0.0, labels: tuple[int, ...] = (0, 1)) -> Instances:
    boxes = torch.tensor([[10.0, 10, 40, 40], [50, 50, 90, 90]])[: len(reliability)] + shift
    return Instances(boxes, torch.full((len(boxes),), 0.5), torch.tensor(labels)[: len(boxes)],
                     columns={"reliability": torch.tensor(reliability)})


class Bright:
    """A detector whose first object is as reliable as the picture is bright, and whose second is lost in the light.

    A dark column on the left tells pictures from mirror images, in which the first is `other` times as reliable.
    """

    def __init__(self, other: float = 1.0) -> None:
        self.calls, self.other = 0, other

    def frames(self, *needs: str) -> Any:
        return nullcontext([])

    def predict(self, images: list[np.ndarray], **options: Any) -> list[Instances]:
        self.calls += 1
        light = float(images[0].mean()) / 255
        both = found([light, 0.5])
        if images[0][0, 0, 0] > images[0][0, -1, 0]:
            both = mirrored(found([light * self.other, 0.5]), 100)
        return [both if light < 0.5 else both[torch.tensor([0])]]


def test_the_gain_is_that_of_the_run_and_a_lost_object_is_said_to_be_lost() -> None:
    handle, image = Bright(), picture()
    before = handle.predict([image])[0]
    first, second = counterfactuals(handle, image, before, {"lit": brightened(1.5), "dimmed": brightened(-1)})
    assert handle.calls == 5  # with the mirror image, as it is and lit
    assert [c.remedy for c in first] == ["lit", "dimmed"]
    assert first[0].after == pytest.approx(float(brightened(1.5)(image).mean()) / 255)
    assert first[0].gain > 0.05 > first[1].gain
    assert helpful(first) == first[:1]
    lost = next(c for c in second if c.remedy == "lit")
    assert not lost.found
    assert isnan(lost.after)
    assert helpful([lost]) == []


def picture() -> np.ndarray:
    out = np.full((100, 100, 3), 100, np.uint8)
    out[:, 0] = 0
    return out


def test_a_gain_that_the_mirror_image_does_not_confirm_is_not_claimed() -> None:
    image, lit = picture(), {"lit": brightened(1.5)}
    before = Bright().predict([image])[0]
    gains = {}
    for other in (1.0, 0.1):
        row = counterfactuals(Bright(other), image, before, lit)[0]
        gains[other] = row[0].mirrored
        assert helpful(row) == (row if other == 1.0 else [])
    assert gains[1.0] == pytest.approx(row[0].gain)
    assert gains[0.1] == pytest.approx(0.1 * row[0].gain)
    alone = counterfactuals(Bright(0.1), image, before, lit, confirm=False)[0]
    assert alone[0].mirrored is None
    assert helpful(alone) == alone
    dark = counterfactuals(Bright(), image, before, {"dimmed": brightened(-1)})[0]
    assert dark[0].mirrored is None  # nothing to confirm


def test_brightening_is_in_linear_light() -> None:
    image = np.full((4, 4, 3), 60, np.uint8)
    assert brightened(1)(image)[0, 0, 0] == round(((60 / 255) ** 2.2 * 2) ** (1 / 2.2) * 255)
    assert (brightened(8)(image) == 255).all()


@pytest.mark.parametrize("name", list(REMEDIES))
def test_a_remedy_keeps_the_size_and_spares_its_input(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (37, 53, 3)).astype(np.uint8)
    given = image.copy()
    out = REMEDIES[name](image)
    assert out.shape == image.shape
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(image, given)
    assert not np.array_equal(out, image)


def test_no_instances_cost_nothing_and_a_changed_size_is_an_error() -> None:
    handle = Bright()
    assert counterfactuals(handle, np.zeros((9, 9, 3), np.uint8), found([])) == []
    assert handle.calls == 0
    with pytest.raises(ValueError, match="keep the size"):
        counterfactuals(handle, np.zeros((9, 9, 3), np.uint8), found([0.1]), {"half": lambda i: i[:4]})
