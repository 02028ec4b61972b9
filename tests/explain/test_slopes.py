"""Slopes of answers at masked pictures: the derivative itself, and objects that share a backward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import avg_pool2d

from reliability_hooks.evaluation.localisation import energy_inside
from reliability_hooks.explain.base import Probe
from reliability_hooks.explain.bayes import BayesRISE
from reliability_hooks.explain.explainer import explain_frame
from reliability_hooks.explain.slopes import Slopes, groups
from reliability_hooks.explain.targets import TARGETS
from reliability_hooks.frame import Frame

from .toy import BOXES, CUES, SIZE, toy

LATTICE = (12, 16)
NAMES = ("class", "mask")


def gathered(frame: Frame, rows: torch.Tensor, pictures: int = 4) -> tuple[Slopes, torch.Tensor, torch.Tensor]:
    """Slopes of some masked pictures, the pictures, and what keeping a place does to them."""
    targets = [TARGETS[name] for name in NAMES]
    slopes, method = Slopes(frame, rows, targets, LATTICE, 400), BayesRISE(grid=6)
    assert frame.view is not None
    (_, shown, change), = method.masked(frame.view, SIZE, BOXES[rows], pictures, pictures)
    answers = slopes.add(Probe(frame, rows, targets), shown, change)
    torch.testing.assert_close(answers, Probe(frame, rows, targets)(shown), equal_nan=True)
    assert not answers.requires_grad
    return slopes, shown, change


def test_slopes_are_the_derivative_of_the_root_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliability_hooks.explain.slopes.REACH", 1e-4)  # no Gaussian over them
    frame, rows = toy(), torch.arange(3)
    slopes, shown, change = gathered(frame, rows)
    probe, step = Probe(frame, rows, [TARGETS[name] for name in NAMES]), 0.02
    found, sure = slopes.mean().view(3, 2, *LATTICE), slopes.error().view(3, 2, *LATTICE)
    cases = ((0, 0, 3, 3), (1, 0, 2, 10), (2, 0, 9, 3), (0, 1, 2, 2), (2, 1, 10, 2), (0, 0, 11, 15))
    for row, target, y, x in cases:  # a place has 4 x 4 pixels, and 8 x 8 in the view, below 8 rows of padding
        moved = torch.zeros(shown.shape[2:])
        moved[8 + 8 * y : 16 + 8 * y, 8 * x : 8 * x + 8] = step
        more, less = (probe(shown + sign * moved * change)[:, row, target].sqrt() for sign in (1, -1))
        each = (more - less) / (2 * step) / 64
        assert float(found[row, target, y, x]) == pytest.approx(float(each.mean()), rel=0.05, abs=1e-7)
        assert float(sure[row, target, y, x]) == pytest.approx(float(each.std()) / 2, rel=0.2, abs=1e-7)
    assert float(found[0, 0, 3, 3]) > 0
    assert float(found[0, 0, 11, 15]) == 0


def test_boxes_that_lie_apart_share_a_group() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [12, 0, 22, 10], [100, 0, 110, 10], [6, 0, 16, 10], [300, 300, 301, 301]])
    assert groups(boxes).tolist() == [0, 1, 0, 2, 0]
    assert groups(boxes[:0]).tolist() == []
    assert groups(boxes[:1].repeat(40, 1)).tolist() == list(range(40))


def test_a_shared_backward_pass_gives_each_object_its_own() -> None:
    frame = toy()
    apart = torch.tensor([[2.0, 2, 12, 12], [36, 20, 60, 44], [50, 2, 58, 10]])
    frame = replace(frame, instances=replace(frame.instances, boxes=apart))
    together = Slopes(frame, torch.arange(3), [TARGETS["class"]], LATTICE, 400)
    assert together.groups.tolist() == [0, 0, 1]
    assert bool((together.own[0] | together.own[1]).all())
    assert float((together.own[0] & together.own[1]).float().mean()) < 0.1  # as near to both
    assert bool(together.own[2].all())
    both, _, _ = gathered(frame, torch.tensor([0, 1]))
    for row in (0, 1):
        alone, _, _ = gathered(frame, torch.tensor([row]))
        assert alone.passes == both.passes
        inner = avg_pool2d(both.own[row : row + 1].float(), 3, 1, 1, count_include_pad=False)[0] > 0.99
        assert int(inner.sum()) > 20
        assert float(both.mean().view(2, 2, *LATTICE)[row, :, inner].abs().max()) > 1e-4
        torch.testing.assert_close(both.mean().view(2, 2, *LATTICE)[row, :, inner],
                                   alone.mean().view(1, 2, *LATTICE)[0, :, inner], rtol=0.02, atol=1e-6)  # fmt: skip


def test_what_is_graded_is_bounded_by_the_budget() -> None:
    for budget in (8, 24, 64, 256, 4000):
        for copies in (1, 3, 40):
            frame = toy(copies=copies)
            n = 3 * copies
            slopes = Slopes(frame, torch.arange(n), [TARGETS["class"]], LATTICE, budget)
            assert slopes.pictures * slopes.passes <= 0.4 * budget
            graded = sum(slopes.wanted(start, 8) for start in range(0, budget, 8))
            assert graded == (min(slopes.pictures, budget) if slopes.pictures else 0)
            if budget >= 64:
                made = explain_frame(frame, method="bayes", targets=["class"], budget=budget) if budget < 4000 else None
                assert made is None or made.passes + made.backwards <= 1 + budget
    crowd = explain_frame(toy(copies=40), method="bayes", targets=["class"], budget=64)
    assert crowd.backwards == 0
    assert any("without gradients" in note for note in crowd.notes)


def test_an_unknown_object_spoils_no_other() -> None:
    rows = torch.arange(3)
    whole, part = gathered(toy(), rows)[0], gathered(toy(unknown=1), rows)[0]
    for k in (0, 2):
        torch.testing.assert_close(part.mean()[2 * k], whole.mean()[2 * k])
    assert bool((part.mean()[2] == 0).all())
    found = explain_frame(toy(unknown=1), method="bayes", budget=64, targets=["class"])
    assert bool(found.maps["class"][1].isnan().all())
    assert bool((energy_inside(found.maps["class"], CUES)[[0, 2]] > 0.5).all())


def test_it_works_where_gradients_are_switched_off() -> None:
    with torch.inference_mode():
        quiet = explain_frame(toy(), method="bayes", budget=64)
    loud = explain_frame(toy(), method="bayes", budget=64)
    assert quiet.backwards == loud.backwards > 0
    torch.testing.assert_close(quiet.maps["joint"], loud.maps["joint"].clone())
