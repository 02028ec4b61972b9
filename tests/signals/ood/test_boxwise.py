"""Scores of the mean logits of all raw boxes on an object."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from reliability_hooks.frame import Frame, Pool
from reliability_hooks.instances import Head, Instances
from reliability_hooks.signals.ood import scores
from reliability_hooks.signals.ood.boxwise import BoxConditionedEnergy, BoxConditionedGEN, mean_logits


def frame(head: Head = "sigmoid", seed: int = 0) -> Frame:
    g = torch.Generator().manual_seed(seed)
    corner = torch.arange(5)[:, None] * torch.tensor([40.0, 0.0])
    boxes = torch.cat([corner, corner + 30], 1)
    raw = boxes.repeat_interleave(20, 0)[:80] + torch.randn(80, 4, generator=g) * 4  # none on the last object
    background = 0 if head == "softmax+background" else None
    kept = Instances(boxes, torch.rand(5, generator=g), torch.ones(5, dtype=torch.int64), head=head,
                     logits=torch.randn(5, 7, generator=g), background=background)
    return Frame(kept, pool=lambda: Pool(raw, torch.randn(80, 7, generator=torch.Generator().manual_seed(9))))


def naive(given: Frame) -> torch.Tensor:
    pool, rows = given.pool(), []
    for box, own in zip(given.instances.boxes, given.instances.logits, strict=True):
        near = box_iou(box[None], pool.boxes)[0] >= 0.5
        rows.append(pool.logits[near].mean(0) if near.any() else own)
    return torch.stack(rows)


@pytest.mark.parametrize("head", ["sigmoid", "softmax", "softmax+background"])
def test_the_score_is_that_of_the_mean_over_overlapping_raw_boxes(head: Head) -> None:
    given = frame(head)
    expected = naive(given)[:, 1:] if head == "softmax+background" else naive(given)
    assert torch.allclose(mean_logits(given), expected, atol=1e-5)
    assert not torch.allclose(expected[0], given.instances.without_background(given.instances.logits)[0])
    gen = BoxConditionedGEN()(given)["ood/box_gen/score"]
    energy = BoxConditionedEnergy()(given)["ood/box_energy/score"]
    assert torch.allclose(gen, scores.rank_gen(expected, head), rtol=1e-5)
    by_hand = scores.joint_energy(expected) if head == "sigmoid" else scores.energy(expected)
    assert torch.allclose(energy, by_hand, rtol=1e-5)


def test_without_raw_boxes_it_is_the_plain_score_and_unknown_rows_stay_unknown() -> None:
    given = frame()
    assert torch.equal(mean_logits(given)[4], given.instances.logits[4])
    logits = given.instances.logits.clone()
    logits[1] = torch.nan
    lost = given.with_instances(given.instances.replace(logits=logits))
    assert BoxConditionedGEN()(lost)["ood/box_gen/score"].isnan().tolist() == [False, True, False, False, False]
    none = Frame(given.instances[:0], pool=given.pool)
    assert BoxConditionedGEN()(none)["ood/box_gen/score"].shape == (0,)
    assert BoxConditionedGEN().missing(Frame(given.instances)) == ["pool"]
