"""Bayesian RISE: it finds what decides with few masks, with or without gradients, and says how sure it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reliability_hooks.evaluation.localisation import energy_inside
from reliability_hooks.evaluation.sanity import coverage
from reliability_hooks.explain.bayes import MOST, BayesRISE
from reliability_hooks.explain.explainer import explain_frame
from reliability_hooks.explain.masks import GridMasks, NestedMasks
from reliability_hooks.explain.places import centres
from reliability_hooks.explain.targets import TARGETS

from .toy import CUES, SIZE, toy


def test_nested_masks_are_those_of_the_smallest_rectangle() -> None:
    boxes = torch.tensor([[10.0, 5, 50, 40], [20, 10, 30, 20], [-9, 30, 7, 60], [70, 0, 90, 9], [torch.nan] * 4])
    masks = NestedMasks.draw(6, SIZE, (3, 4), 0.5, boxes, torch.Generator().manual_seed(0))
    y, x = (centres(side, side) for side in SIZE)
    found = masks.at(y, x)
    assert masks.corners == [(10, 5), (0, 30), (20, 10)]  # what lies beside the image, or nowhere, has none
    within = {
        (10, 5): (slice(5, 10), slice(10, 50)), (20, 10): (slice(10, 20), slice(20, 30)),
        (0, 30): (slice(30, 48), slice(0, 7)),
    }  # fmt: skip
    for corner, own in zip(masks.corners, masks.above, strict=True):
        rows, columns = within[corner]
        alone = own.at(y[rows] - corner[1], x[columns] - corner[0])
        torch.testing.assert_close(found[:, rows, columns], alone)
    torch.testing.assert_close(found[:, :5], masks.ground.at(y[:5], x))
    torch.testing.assert_close(masks.part(2, 3).at(y, x), found[2:5])
    none = NestedMasks.draw(6, SIZE, (3, 4), 0.5, boxes[:0], torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        none.at(y, x), GridMasks.draw(6, SIZE, (3, 4), 0.5, torch.Generator().manual_seed(0)).at(y, x)
    )


def test_few_masks_find_the_cues_better_than_those_of_drise_do() -> None:
    frame = toy()
    made = {name: explain_frame(frame, method=name, targets=["class"], budget=64) for name in ("bayes", "drise")}
    inside = {name: energy_inside(one.maps["class"], CUES) for name, one in made.items()}
    assert bool((inside["bayes"] > inside["drise"]).all())
    assert bool((inside["bayes"] > 0.5).all())  # also of the second, whose cue lies outside of its box
    assert made["bayes"].backwards > 0
    assert made["bayes"].passes + made["bayes"].backwards == 1 + 64  # that of the untouched picture beside the budget


def test_without_gradients_mask_and_box_shape_the_prior() -> None:
    bare = replace(toy(look=False), maps=None)
    made = explain_frame(bare, method="bayes", targets=["class"], budget=96)
    assert any("without gradients" in note for note in made.notes)
    assert bool((energy_inside(made.maps["class"], CUES) > 0.3).all())


def test_the_error_bars_hold_what_many_masks_say() -> None:
    frame, rows = toy(), torch.arange(3)
    method = BayesRISE(grid=8)
    few = method.heats(frame, rows, [TARGETS["class"]], 64).maps["class"][0]
    own = method.own(frame, rows, 2, SIZE)
    assert own.shape == (6, 2, *SIZE)
    assert torch.equal(own[0], own[1])  # the targets of an instance lie side by side
    many = BayesRISE(grid=8, seed=5).heats(frame, rows, [TARGETS["class"]], 800).maps["class"][0]
    assert few.errors is not None
    held = coverage(few.values.clamp(min=0), few.errors, many.values, 0.9, many.errors)
    assert bool((held > 0.6).all())
    assert float(few.errors.mean()) > float(many.errors.mean())  # type: ignore[union-attr]


def test_it_stops_when_it_is_sure_and_says_so() -> None:
    loose = explain_frame(toy(), method="bayes", budget=600, tolerance=0.3)
    assert loose.passes < 500
    assert any("stopped after" in note for note in loose.notes)
    whole = explain_frame(toy(), method="bayes", budget=40)
    assert whole.passes + whole.backwards == 41
    assert not any("stopped" in note for note in whole.notes)


def test_what_there_is_nothing_of_has_empty_maps() -> None:
    none = explain_frame(toy(), torch.zeros(0, dtype=torch.int64), method="bayes", budget=8)
    assert none.maps["joint"].shape == (0, *SIZE)
    assert none.errors["joint"].shape == (0, *SIZE)
    found = explain_frame(toy(unknown=1), method="bayes", budget=32, targets=["class", "mask"])
    for maps in found.maps.values():
        assert bool(maps[1].isnan().all())
        assert bool(maps[[0, 2]].isfinite().all())


def test_masks_that_remove_everything_leave_zeros() -> None:
    frame = toy()
    look = frame.look
    assert look is not None
    first: list[int] = []

    def blind(pixels: torch.Tensor, parts: object = (), rows: torch.Tensor | None = None) -> object:
        first.append(1)
        glance = look(pixels, parts, rows)  # type: ignore[arg-type]
        return glance if len(first) <= 1 else replace(glance, logits=glance.logits * 0 - 60.0)

    made = explain_frame(replace(frame, look=blind), method="bayes", budget=32)  # type: ignore[arg-type]
    assert bool((made.maps["joint"] == 0).all())
    assert any("survive no mask" in note for note in made.notes)


def test_a_large_budget_is_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliability_hooks.explain.bayes.MOST", 40)
    made = explain_frame(toy(), method="bayes", budget=5000)
    assert made.passes == 41
    assert any("choose drise" in note for note in made.notes)
    assert MOST >= 256


def test_the_same_seed_gives_the_same_masks_whatever_the_batch() -> None:
    frame = toy()
    one, two = (explain_frame(frame, method="bayes", budget=70, batch=b).maps["joint"] for b in (8, 32))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
