"""Deletion and insertion: against a plain loop, against closed forms, and where there is nothing to explain."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reliability_hooks.evaluation.faithfulness import deletion_insertion, inside, ranks
from reliability_hooks.evaluation.fills import FILLS, filled

H, W = 10, 12


def black(pixels: Tensor):
    return lambda hole: pixels.new_zeros(1)


def linear(weights: Tensor):
    """(B, 3, h, w) -> (B, N): each instance's weighted sum of the first channel."""
    return lambda pictures: torch.einsum("bhw,nhw->bn", pictures[:, 0], weights.to(pictures.dtype))


def block() -> Tensor:
    """A 4 x 5 object, (1, h, w) bool: 20 of 120 pixels."""
    mask = torch.zeros((1, H, W), dtype=torch.bool)
    mask[0, 3:7, 2:7] = True
    return mask


def crooked(weights: Tensor):
    """A response that is neither linear nor monotone."""
    return lambda pictures: (linear(weights)(pictures) * 7).sin() + 1.5


def naive(respond, pixels: Tensor, maps: Tensor, ranges: list[int], steps: int, fill: str):
    """Pixel by pixel in the order of a plain sort, one picture at a time."""
    colours, out = FILLS[fill](pixels), []
    for i, map_ in enumerate(maps):
        order = sorted(range(H * W), key=lambda p: -float(map_.flatten()[p]))
        start = float(respond(pixels[None])[0, i])
        areas = []
        for inserts in (False, True):
            x, y = [], []
            for j in range(steps + 1):
                n = round(ranges[i] * j / steps)
                hole = torch.full((H * W,), inserts)
                hole[order[:n]] = not inserts
                y.append(float(respond(filled(pixels, hole.view(1, H, W), colours))[0, i]))
                x.append(n / ranges[i])
            areas.append(np.trapezoid(y, x) / start)
        out.append(areas)
    return torch.tensor(out)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("area", ["full", "object"])
@pytest.mark.parametrize("batch", [1, 7])
def test_equals_a_plain_loop(fill: str, area: str, batch: int) -> None:
    g = torch.Generator().manual_seed(1)
    pixels, maps = (torch.rand(shape, generator=g, dtype=torch.float64) for shape in ((3, H, W), (3, H, W)))
    masks = torch.rand((3, H, W), generator=g) < torch.tensor([0.1, 0.3, 0.9])[:, None, None]
    respond, sizes = crooked(torch.rand((3, H, W), generator=g) / 60), []

    def watched(pictures: Tensor) -> Tensor:
        sizes.append(len(pictures))
        return respond(pictures)

    found = deletion_insertion(watched, pixels, maps, masks=masks, steps=4, area=area, fill=fill, batch=batch)
    ranges = [min(2 * int(m.sum()), H * W) if area == "object" else H * W for m in masks]
    expected = naive(respond, pixels, maps, ranges, 4, fill)
    torch.testing.assert_close(torch.stack([found.deletion, found.insertion], 1), expected.double())
    torch.testing.assert_close(found.oa, found.insertion - found.deletion)
    torch.testing.assert_close(found.start, respond(pixels[None])[0])
    assert found.passes == sum(sizes)
    assert found.passes <= 2 + 2 * 3 * 4
    assert max(sizes) <= batch
    assert json.loads(json.dumps(found.protocol)) == found.protocol
    assert found.protocol["fill"] == fill


def test_closed_forms_of_a_region_that_decides() -> None:
    mask, ones = block(), torch.ones((3, H, W))
    share = 20 / (H * W)
    respond = linear(mask / 20)
    for map_, full, scaled in [
        (mask.float(), (share / 2, 1 - share / 2), (0.25, 0.75)),
        (1 - mask.float(), (1 - share / 2, share / 2), (1.0, 0.0)),
    ]:
        found = deletion_insertion(respond, ones, map_, steps=120, fill=black)
        torch.testing.assert_close((float(found.deletion), float(found.insertion)), full)
        found = deletion_insertion(respond, ones, map_, masks=mask, steps=40, area="object", fill=black)
        torch.testing.assert_close((float(found.deletion), float(found.insertion)), scaled)
        assert found.pixels[0, -1] == 40
    box = torch.tensor([[2.0, 3.0, 7.0, 7.0]])
    by_box = deletion_insertion(respond, ones, mask.float(), masks=box, area="object", fill=black)
    assert float(by_box.oa) == pytest.approx(0.5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 30), area=st.sampled_from(["full", "object"]))
def test_the_true_map_beats_all_others_and_its_inverse_loses(seed: int, steps: int, area: str) -> None:
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand((4, H, W), generator=g, dtype=torch.float64)
    other = torch.randn((4, H, W), generator=g, dtype=torch.float64)
    masks = torch.rand((4, H, W), generator=g) < 0.2
    ones = torch.ones((3, H, W), dtype=torch.float64)
    best, any_, worst = (
        deletion_insertion(linear(weights), ones, m, masks=masks, steps=steps, area=area, fill=black)
        for m in (weights, other, -weights)
    )
    assert (best.oa >= any_.oa - 1e-9).all()
    assert (any_.oa >= worst.oa - 1e-9).all()
    for found in (best, any_, worst):
        for value in (found.deletion, found.insertion):  # a response that only falls lies between nothing and f0
            assert ((value >= -1e-9) & (value <= 1 + 1e-9)).all()
    if area == "full":  # a linear answer: what deletion loses, insertion of the same pixels gains
        torch.testing.assert_close(best.insertion, 1 - best.deletion)
        torch.testing.assert_close(worst.oa, -best.oa)


def test_only_the_order_counts_and_ties_are_settled_once() -> None:
    g = torch.Generator().manual_seed(2)
    maps = torch.randint(0, 5, (3, H, W), generator=g).float()
    torch.testing.assert_close(ranks(maps), ranks(maps.exp() * 3 - 7))
    assert torch.equal(ranks(maps).flatten(1).sort(1).values, torch.arange(H * W).expand(3, -1))
    assert torch.equal(ranks(maps)[1:], ranks(maps[1:]))
    flat = ranks(maps).flatten(1).argsort(1)
    assert (maps.flatten(1).gather(1, flat).diff(dim=1) <= 0).all()


def test_maps_without_information_are_a_random_order() -> None:
    maps = torch.stack([torch.zeros((H, W)), torch.full((H, W), math.nan), torch.full((H, W), 3.0)])
    order = ranks(maps)
    assert torch.equal(order[0], order[1])
    assert torch.equal(order[0], order[2])
    half = order[0] < H * W // 2
    assert 15 < half[: H // 2].sum() < 45  # neither from top to bottom nor from bottom to top
    some = torch.rand((1, H, W), generator=torch.Generator().manual_seed(0))
    some[0, :3], some[0, 4, 4] = math.nan, math.inf
    place = ranks(some)[0]
    assert place[:3].min() == H * W - 3 * W
    assert place[4, 4] == 0


def test_several_scores_of_one_pass() -> None:
    g = torch.Generator().manual_seed(3)
    pixels, maps = torch.rand((3, H, W), generator=g), torch.rand((2, H, W), generator=g)
    a, b = (crooked(torch.rand((2, H, W), generator=g) / 40) for _ in range(2))
    both = deletion_insertion(lambda x: torch.stack([a(x), b(x)], -1), pixels, maps, steps=5)
    for k, respond in enumerate((a, b)):
        one = deletion_insertion(respond, pixels, maps, steps=5)
        for name in ("deletion", "insertion", "oa", "start", "deletion_curve", "insertion_curve"):
            torch.testing.assert_close(getattr(both, name)[..., k], getattr(one, name))
        assert one.passes == both.passes == 2 + 2 * 2 * 4


def test_no_start_score_and_no_area_are_nan() -> None:
    ones, mask = torch.ones((3, H, W)), block()
    weights = torch.cat([mask / 20, torch.zeros((1, H, W)), mask / -20, mask * math.nan])
    found = deletion_insertion(linear(weights), ones, mask.float().expand(4, -1, -1), fill=black)
    assert found.deletion.isnan().tolist() == found.insertion.isnan().tolist() == [False, True, True, True]
    assert found.start[:3].tolist() == pytest.approx([1, 0, -1])
    empty = deletion_insertion(linear(mask / 20), ones, mask.float(), masks=~mask & mask, area="object")
    assert empty.oa.isnan().all()


def test_no_instances_need_no_pass() -> None:
    def never(pictures: Tensor) -> Tensor:
        raise AssertionError("a pass for nothing")

    found = deletion_insertion(never, torch.rand((3, H, W)), torch.zeros((0, H, W)), masks=torch.zeros((0, 4)),
                               area="object", steps=4)  # fmt: skip
    assert found.oa.shape == found.start.shape == (0,)
    assert found.deletion_curve.shape == found.pixels.shape == (0, 5)
    assert found.passes == 0


def test_boxes_cover_the_pixels_whose_centres_they_hold() -> None:
    boxes = torch.tensor([[0, 0, W, H], [2, 3, 7, 7], [2.4, 3.6, 7.2, 7.0], [math.nan, 0, 5, 5], [8, 8, 8, 8]])
    covered = inside(boxes, 5, H, W, torch.device("cpu"))
    assert covered.sum((1, 2)).tolist() == [120, 20, 5 * 3, 0, 0]
    assert torch.equal(covered[1:2], block())


def test_bad_input_says_what_to_do() -> None:
    pixels, maps, respond = torch.rand((3, H, W)), torch.rand((2, H, W)), linear(torch.ones((2, H, W)))
    for message, change in [
        ("pixels must have shape", {"pixels": pixels[0]}), ("maps must have shape", {"maps": maps[:, :5]}),
        ("at least 1", {"steps": 0}), ("at least 1", {"batch": 0}), ("needs masks", {"area": "object"}),
        ("must be", {"area": "half"}), ("unknown fill", {"fill": "gray!"}),
        ("respond must give", {"respond": linear(torch.ones((3, H, W)))}),
        ("masks", {"area": "object", "masks": torch.ones((3, H, W)) > 0}),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            deletion_insertion(**{"respond": respond, "pixels": pixels, "maps": maps, **change})
    with pytest.raises(TypeError, match="threshold"):
        deletion_insertion(respond, pixels, maps, area="object", masks=torch.ones((2, H, W)))
    with pytest.raises(TypeError, match="floating"):
        deletion_insertion(respond, (pixels * 255).byte(), maps)
