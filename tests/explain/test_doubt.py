"""The map of doubt of a detector that can be seen through: an object is as sure as its left half is bright."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from reliability_hooks.explain.counterfactual import Counterfactual, brightened
from reliability_hooks.explain.doubt import CHANGES, doubt
from reliability_hooks.instances import Instances

BOXES = torch.tensor([[20.0, 20, 60, 60], [80, 20, 140, 80]])
LIT = {"lit": brightened(3)}


class Left:
    """Reliability of an object: .9 x brightness of the left of its box - .3 x that of a lamp beside it."""

    def __init__(self, boxes: torch.Tensor = BOXES, dark: float = 0.0) -> None:
        self.boxes, self.dark, self.calls = boxes, dark, 0

    def frames(self, *needs: str) -> Any:
        return nullcontext([])

    def predict(self, images: list[np.ndarray], **options: Any) -> list[Instances]:
        self.calls += len(images)
        return [self.look(image) for image in images]

    def look(self, image: np.ndarray) -> Instances:
        light = image.mean(2) / 255
        values = []
        for x1, y1, x2, y2 in self.boxes.int().tolist():
            own = light[y1:y2, x1 : (x1 + x2) // 2].mean()
            lamp = light[y1:y2, x2 : x2 + 8].mean()
            values.append(0.9 * own - 0.3 * lamp + 0.3)
        found = Instances(self.boxes, torch.full((len(values),), 0.5), torch.zeros(len(values)).long(),
                          image_size=image.shape[:2], columns={"reliability": torch.tensor(values)})
        return found[torch.tensor([v >= self.dark for v in values], dtype=torch.bool)]


def picture() -> np.ndarray:
    """Grey, with a lamp on the right of each object."""
    out = np.full((100, 160, 3), 60, np.uint8)
    for _, y1, x2, y2 in BOXES.int().tolist():
        out[y1:y2, x2 : x2 + 8] = 255
    return out


def test_mending_helps_on_the_left_and_hiding_the_lamp_beside_it_and_both_are_checked() -> None:
    handle, image = Left(), picture()
    before = handle.look(image)
    made = doubt(handle, image, before, remedies=LIT, budget=256)
    for k, (box, window) in enumerate(zip(BOXES, made.windows, strict=True)):
        side = made.maps["restored"].shape[2]
        x = window[0] + (torch.arange(side) + 0.5) / side * (window[2] - window[0])
        left = (x >= box[0]) & (x <= (box[0] + box[2]) / 2)
        right = (x > (box[0] + 3 * box[2]) / 4) & (x <= box[2])
        restored, removed = made.maps["restored"][k], made.maps["removed"][k]
        middle = slice(side // 4, -side // 4)
        assert restored[middle, left].mean() > 0.05 > abs(float(restored[middle, right].mean()))
        assert removed[middle, x > box[2]].mean() > 0.01
        lit, hidden = made.claims[k]
        assert lit.holds
        assert lit.where in ("the left of the object", "all of the object")
        changed = handle.look(image).reliability[k]
        assert lit.before == pytest.approx(float(changed))
        assert lit.after >= lit.before + 0.05
        assert hidden.where == "what lies right of it"
        assert hidden.how == "hidden"
        assert f"doubt lies on {lit.where}: lit there" in made.words[k]
    assert made.passes == handle.calls == 256 + 1 + 4  # masks, the remedy, the checks
    assert made.remedies == ("lit", "lit")


def test_the_slope_is_the_gain_of_a_linear_detector_and_its_error_is_honest() -> None:
    boxes, image = torch.tensor([[0.0, 0, 64, 64]]), np.full((64, 64, 3), 60, np.uint8)
    handle = Left(boxes)
    handle.look = lambda picture: Instances(  # type: ignore[method-assign]
        boxes, torch.ones(1), torch.zeros(1).long(), image_size=(64, 64),
        columns={"reliability": torch.tensor([float(picture[:16, :16].mean()) / 255])})  # fmt: skip
    truth = handle.look(LIT["lit"](image)).reliability - handle.look(image).reliability
    runs = [doubt(handle, image, handle.look(image), remedies=LIT, budget=48, changes=("restored",), seed=s)
            for s in range(24)]
    found = torch.stack([run.maps["restored"][0, 2, 2] for run in runs])  # the middle of the first cell
    assert float(found.mean()) == pytest.approx(float(truth), rel=0.25)
    far = torch.stack([run.maps["restored"][0, 13, 13] / run.errors["restored"][0, 13, 13] for run in runs])
    assert float((far.abs() < 2).float().mean()) >= 0.75  # nothing lies there: errors cover 0


def test_lost_objects_unknown_ones_and_no_objects_have_finite_maps() -> None:
    handle, image = Left(dark=2.0), picture()
    before = Left().look(image)
    tried = [[Counterfactual("lit", 0.3, float("nan"), False)] for _ in before.scores]
    made = doubt(handle, image, before, remedies=LIT, tried=tried, budget=8)
    for kind in CHANGES:
        assert bool((made.maps[kind] == 0).all())
        assert bool((made.errors[kind] == 0).all())
    assert made.claims == ((), ())
    assert "2 of 2 found in no picture" in made.notes[0]
    assert "no place is established" in made.words[0]
    none = doubt(handle, image, before[:0], remedies=LIT, budget=8)
    assert none.maps["removed"].shape == none.errors["restored"].shape == (0, 16, 16)
    assert none.words == none.remedies == ()
    assert none.passes == 0
    odd = before.replace(boxes=before.boxes * torch.nan)
    assert doubt(Left(), image, odd, remedies=LIT, budget=8).maps["restored"].isfinite().all()


def test_seeds_and_batches() -> None:
    handle, image = Left(), picture()
    before = handle.look(image)
    first, again, other = (
        doubt(handle, image, before, remedies=LIT, budget=24, batch=b, seed=s).maps["restored"]
        for b, s in ((8, 0), (5, 0), (8, 1))
    )
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other, atol=0.01)


def test_one_pixel_and_bad_input() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1]])

    class One(Left):
        def look(self, image: np.ndarray) -> Instances:
            return Instances(boxes, torch.ones(1), torch.zeros(1).long(), image_size=(1, 1),
                             columns={"reliability": torch.tensor([float(image.mean()) / 255])})

    tiny = np.full((1, 1, 3), 60, np.uint8)
    made = doubt(One(), tiny, One().look(tiny), remedies=LIT, budget=8)
    assert made.windows.tolist() == [[0, 0, 1, 1]]
    assert made.maps["restored"].isfinite().all()
    handle, image = Left(), picture()
    before = handle.look(image)
    for budget in (0, 3, -1):
        with pytest.raises(ValueError, match="budget must be at least 4"):
            doubt(handle, image, before, budget=budget)
    with pytest.raises(ValueError, match="uint8 RGB"):
        doubt(handle, image[..., 0], before)
    with pytest.raises(ValueError, match="restored, removed"):
        doubt(handle, image, before, changes=("mended",))
    with pytest.raises(ValueError, match="no remedy"):
        doubt(handle, image, before, remedies={})
    for unfitted in (before.replace(columns={}), before.with_columns({"reliability": torch.full((2,), torch.nan)})):
        with pytest.raises(ValueError, match="attach one that was fitted"):
            doubt(handle, image, unfitted)
