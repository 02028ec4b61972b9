"""Remedies are run, and what is told of them is what came out."""

from __future__ import annotations

from contextlib import nullcontext
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import sem, t

from reliability_hooks.explain.counterfactual import (
    LEAST,
    REMEDIES,
    Counterfactual,
    brightened,
    counterfactuals,
    helpful,
)
from reliability_hooks.explain.views import VIEWS
from reliability_hooks.instances import Instances


def found(reliability: list[float], shift: float = 0.0, labels: tuple[int, ...] = (0, 1)) -> Instances:
    boxes = torch.tensor([[10.0, 10, 40, 40], [50, 50, 90, 90]])[: len(reliability)] + shift
    return Instances(boxes, torch.full((len(boxes),), 0.5), torch.tensor(labels)[: len(boxes)],
                     columns={"reliability": torch.tensor(reliability)})


class Bright:
    """A detector whose first object is as reliable as the picture is bright, and whose second is lost in the light.

    A black pixel at the lower left tells pictures from their other views, in which the first is `other` times as
    reliable, or not found where that is NaN.
    """

    def __init__(self, other: float = 1.0) -> None:
        self.calls, self.other = 0, other

    def frames(self, *needs: str) -> Any:
        return nullcontext([])

    def predict(self, images: list[np.ndarray], **options: Any) -> list[Instances]:
        self.calls += 1
        image = images[0]
        light, size = float(image[20:60, 20:60].mean()) / 255, (100, 100)
        both = found([light, 0.5])
        view = "moved" if len(image) > 100 else "shrunk" if image[-1, -1, 0] == 114 else "mirrored"
        if image[-1, 0, 0] > 0:
            place = VIEWS[view][1]
            both = place(found([light * self.other, 0.5]), size)[torch.tensor([0, 1][self.other != self.other :])]
        return [both if light < 0.5 else both[:1]]


def test_the_gain_is_that_of_the_run_and_a_lost_object_is_said_to_be_lost() -> None:
    handle, image = Bright(), picture()
    before = handle.predict([image])[0]
    first, second = counterfactuals(handle, image, before, {"lit": brightened(1.5), "dimmed": brightened(-1)})
    assert handle.calls == 9  # with three other views, as it is and lit
    assert [c.remedy for c in first] == ["lit", "dimmed"]
    assert first[0].after == pytest.approx(float(brightened(1.5)(image)[:, 1:].mean()) / 255)
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


def test_a_gain_that_other_views_do_not_confirm_is_not_claimed() -> None:
    image, lit = picture(), {"lit": brightened(1.5)}
    before = Bright().predict([image])[0]
    for other, holds in ((1.0, True), (0.1, False), (float("nan"), False)):
        row = counterfactuals(Bright(other), image, before, lit)[0]
        assert row[0].again == pytest.approx([row[0].gain * (0 if isnan(other) else other)] * 3, abs=1e-6)
        assert helpful(row) == (row if holds else [])
    alone = counterfactuals(Bright(0.1), image, before, lit, confirm=False)[0]
    assert alone[0].again == ()
    assert helpful(alone) == alone
    dark = counterfactuals(Bright(), image, before, {"dimmed": brightened(-1)})[0]
    assert dark[0].again == ()  # nothing to confirm


def test_other_views_must_surely_gain() -> None:
    least = float(t.interval(0.8, 2, loc=0.2, scale=sem([0.3, 0.1, 0.2]))[0])  # 90 % on one side
    claim = Counterfactual("lit", 0.2, 0.9, True, (0.3, 0.1, 0.2))
    assert claim.helps(least - 1e-6)
    assert not claim.helps(least + 1e-6)
    assert not Counterfactual("lit", 0.2, 0.21, True, (0.9, 0.9, 0.9)).helps(LEAST)  # not in the image itself
    assert not Counterfactual("lit", 0.2, 0.5, True, (float("nan"), 0.3, 0.3)).helps()  # unknown is no gain


@pytest.mark.parametrize("name", list(VIEWS))
def test_instances_follow_their_view(name: str) -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    image[12:30, 21:54] = 200
    view, place = VIEWS[name]
    thing = found([0.5]).replace(boxes=torch.tensor([[21.0, 12, 54, 30]]))
    seen, given = view(image), image.copy()
    x1, y1, x2, y2 = place(thing, (60, 90)).boxes[0].round().int().tolist()
    assert (seen[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2] == 200).all()
    seen[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2] = 0
    assert (seen < 130).all()  # nothing of it elsewhere
    np.testing.assert_array_equal(image, given)


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
