"""Pointing game, energy and cues: against plain loops, and chance for maps that say nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reliability_hooks.evaluation.localisation import cue_found, energy_inside, pointing_game

H, W = 9, 11


def case(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    maps = torch.randint(-3, 9, (5, H, W), generator=g).float()
    return maps, torch.rand((5, H, W), generator=g) < torch.linspace(0, 0.9, 5)[:, None, None]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.001, 0.1, 0.37, 1.0]))
def test_equal_plain_loops(seed: int, top: float) -> None:
    maps, masks = case(seed)
    pointed, energy, cue = pointing_game(maps, masks), energy_inside(maps, masks), cue_found(maps, masks, top)
    for i in range(5):
        value, inside = maps[i].flatten().tolist(), masks[i].flatten().tolist()
        best = [inside[p] for p in range(H * W) if value[p] == max(value)]
        assert float(pointed[i]) == pytest.approx(sum(best) / len(best))
        positive = [max(v, 0) for v in value]
        assert float(energy[i]) == pytest.approx(sum(v for v, m in zip(positive, inside, strict=True) if m)
                                                 / sum(positive))  # fmt: skip
        k = max(1, round(top * H * W))
        edge = sorted(value, reverse=True)[k - 1]
        above, tied = sum(v > edge for v in value), sum(v == edge for v in value)
        hits = sum(1.0 if v > edge else (k - above) / tied
                   for v, m in zip(value, inside, strict=True) if m and v >= edge)  # fmt: skip
        if any(inside):
            assert float(cue.share[i]) == pytest.approx(hits / sum(inside))
            assert bool(cue.found[i]) == (hits >= 0.5 * min(k, sum(inside)) - 1e-6)
        else:
            assert math.isnan(cue.share[i])
            assert not cue.found[i]


def test_the_object_itself_wins_and_its_inverse_loses() -> None:
    mask = torch.zeros((1, H, W), dtype=torch.bool)
    mask[0, 2:4, 3:7] = True
    for map_, score in ((mask.float(), 1.0), (1 - mask.float(), 0.0)):
        assert float(pointing_game(map_, mask)) == float(energy_inside(map_, mask)) == score
        assert bool(cue_found(map_, mask).found) == (score == 1)
    assert float(cue_found(mask.float(), mask).share) == 1
    box = torch.tensor([[3.0, 2.0, 7.0, 4.0]])
    assert float(energy_inside(torch.rand((1, H, W)), box)) == pytest.approx(8 / 99, abs=0.1)
    assert float(pointing_game(mask.float(), box)) == 1


@pytest.mark.parametrize("value", [0.0, -2.0, math.nan, 5.0])
def test_a_map_without_information_scores_as_chance(value: float) -> None:
    _, masks = case(0)
    masks, maps = masks[1:], torch.full((4, H, W), value)
    area = masks.float().mean((1, 2))
    torch.testing.assert_close(pointing_game(maps, masks), area)
    torch.testing.assert_close(energy_inside(maps, masks), area)
    cue = cue_found(maps, masks)
    torch.testing.assert_close(cue.share, torch.full((4,), round(0.1 * H * W) / (H * W)))
    assert not cue.found[masks.sum((1, 2)) < 20].any()


def test_nan_pixels_are_least_salient_and_infinite_ones_most() -> None:
    maps, masks = case(3)
    holed = maps.clone()
    holed[:, :4] = math.nan
    low = maps.clone()
    low[:, :4] = -100
    torch.testing.assert_close(pointing_game(holed, masks), pointing_game(low, masks))
    torch.testing.assert_close(energy_inside(holed, masks), energy_inside(low, masks))
    torch.testing.assert_close(cue_found(holed, masks).share, cue_found(low, masks).share, equal_nan=True)
    maps[:, 0, 0] = math.inf
    torch.testing.assert_close(energy_inside(maps, masks), masks[:, 0, 0].float())
    torch.testing.assert_close(pointing_game(maps, masks), masks[:, 0, 0].float())


def test_nothing_to_score_and_bad_input() -> None:
    none, masks = torch.zeros((0, H, W)), torch.zeros((0, H, W), dtype=torch.bool)
    assert pointing_game(none, masks).shape == energy_inside(none, torch.zeros((0, 4))).shape == (0,)
    assert cue_found(none, masks).share.shape == cue_found(none, masks).found.shape == (0,)
    maps, masks = case(0)
    with pytest.raises(ValueError, match="top must lie"):
        cue_found(maps, masks, top=0)
    with pytest.raises(ValueError, match="maps must have shape"):
        energy_inside(maps[0], masks)
    with pytest.raises(ValueError, match="masks"):
        pointing_game(maps, masks[:2])
    with pytest.raises(TypeError, match="bool"):
        pointing_game(maps, masks.float())
