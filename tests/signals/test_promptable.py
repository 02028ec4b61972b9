"""Consistency under moved prompts and among answers, against masks whose overlap can be reckoned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reliability_hooks.frame import Frame, Prompted
from reliability_hooks.instances import Instances
from reliability_hooks.signals.promptable import SHARE, Promptable

from .prompted_fake import Prompting, ellipses

BOXES = torch.tensor([[20.0, 30.0, 120.0, 90.0], [40.0, 20.0, 80.0, 110.0]])


def columns(boxes: Tensor, known: Prompted | None = None) -> dict[str, Tensor]:
    found = Instances(boxes, torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64))
    prompted = Prompting(boxes) if known is None else lambda: known
    named = Promptable()(Frame(found, prompted=prompted))
    return {key.partition("/")[2]: value for key, value in named.items()}


def overlap(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_by_hand() -> None:
    found, prompting = columns(BOXES), Prompting(BOXES)
    known = prompting()
    for i, box in enumerate(BOXES):
        own, (w, h) = known.logits[i] > 0, (box[2:] - box[:2]).tolist()
        dx, dy = SHARE * w, SHARE * h
        moves = [[dx, dy, dx, dy], [-dx, -dy, -dx, -dy], [-dx, dy, dx, -dy], [dx, -dy, -dx, dy]]
        moved = [overlap(own, ellipses(box + torch.tensor(m), prompting.grow[0]) > 0) for m in moves]
        assert float(found["moved_iou"][i]) == pytest.approx(sum(moved) / 4, rel=1e-5)
        assert float(found["moved_worst"][i]) == pytest.approx(min(moved), rel=1e-5)
        others = [overlap(own, mask) for mask in known.others[i]]
        assert float(found["others_iou"][i]) == pytest.approx(sum(others) / 2, rel=1e-5)
        assert float(found["others_best"][i]) == pytest.approx(max(others), rel=1e-5)
        assert float(found["moved_predicted"][i]) == pytest.approx(0.0, abs=1e-5)  # it falls by as much as it rises
        assert float(found["rival"][i]) == pytest.approx(-0.1, abs=1e-5)
    assert torch.equal(found["predicted_iou"], known.ious)


def test_a_prompt_without_a_place_cannot_be_moved() -> None:
    known = replace(Prompting(BOXES)(), movable=torch.tensor([True, False]))
    found = columns(BOXES, known)
    for name in ("moved_iou", "moved_worst", "moved_predicted"):
        assert found[name].isnan().tolist() == [False, True]
    assert not any(found[name].isnan().any() for name in ("predicted_iou", "others_iou", "others_best", "rival"))


def test_a_row_that_is_not_known_is_nan() -> None:
    known = Prompting(BOXES)()
    ious = torch.tensor([known.ious[0], torch.nan])
    for values in columns(BOXES, replace(known, ious=ious)).values():
        assert values.isnan().tolist() == [False, True]


def test_an_answer_that_jumps_is_seen() -> None:
    steady = Prompting(BOXES)()

    def jumps(boxes: Tensor) -> tuple[Tensor, Tensor]:
        masks, ious = steady.reprompt(boxes)
        return torch.cat([masks[:3], ~masks[3:]]), ious

    found, plain = columns(BOXES, replace(steady, reprompt=jumps)), columns(BOXES)
    assert (found["moved_worst"] < 0.3).all()
    assert (found["moved_iou"] < plain["moved_iou"]).all()
