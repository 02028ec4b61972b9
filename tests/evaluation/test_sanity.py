"""Rank correlations against scipy, coverage against what a normal distribution must give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from reliability_hooks.evaluation import sanity
from reliability_hooks.evaluation.sanity import coverage, randomisation, seed_stability


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 6, 10_000]))
def test_randomisation_is_spearman_of_scipy(seed: int, levels: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-levels, levels, (n, 4, 7, 8), generator=g).float() for n in (1, 3))
    ours = randomisation(a[0], b)
    assert ours.shape == (3, 4)
    for stage in range(3):
        for i in range(4):
            expected = spearmanr(a[0, i].flatten(), b[stage, i].flatten()).statistic
            assert float(ours[stage, i]) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(randomisation(a[0], b[1]), ours[1])
    torch.testing.assert_close(randomisation(a[0], b, absolute=True), randomisation(a[0].abs(), b.abs()))


def test_the_same_order_the_opposite_order_and_none() -> None:
    maps = torch.rand((3, 6, 6), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(randomisation(maps, maps.exp()), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(randomisation(maps, -maps), -torch.ones(3, dtype=torch.float64))
    assert randomisation(maps, torch.full_like(maps, 2)).isnan().all()
    holed, low = maps.clone(), maps.clone()
    holed[:, 0], low[:, 0] = math.nan, -9
    torch.testing.assert_close(randomisation(maps, holed), randomisation(maps, low))


def test_stability_is_the_mean_over_pairs_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(4)
    runs = [torch.rand((5, 6, 7), generator=g) + torch.arange(42).view(6, 7) / 30 for _ in range(4)]
    ours = seed_stability(runs)
    for i in range(5):
        every = spearmanr(np.stack([run[i].flatten() for run in runs], 1)).statistic
        assert float(ours[i]) == pytest.approx(every[np.triu_indices(4, 1)].mean())
    monkeypatch.setattr(sanity, "_CHUNK", 1)
    torch.testing.assert_close(seed_stability(runs), ours)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_normal_errors_is_the_level(level: float) -> None:
    g = torch.Generator().manual_seed(5)
    truth, error = torch.rand((4, 100, 100), generator=g), 0.1 + torch.rand((4, 100, 100), generator=g)
    mean = truth + error * torch.randn(truth.shape, generator=g)
    torch.testing.assert_close(coverage(mean, error, truth, level), torch.full((4,), level), atol=0.02, rtol=0)
    noisy = truth + 0.8 * torch.randn(truth.shape, generator=g)
    known = coverage(mean, error, noisy, level, reference_error=torch.full_like(truth, 0.8))
    torch.testing.assert_close(known, torch.full((4,), level), atol=0.02, rtol=0)
    assert (coverage(mean, error, noisy, level) < level - 0.1).all()


def test_coverage_of_cells_that_are_not_numbers() -> None:
    mean, error = torch.tensor([[0.0, 0, 0, math.nan]]), torch.tensor([[1.0, math.nan, math.inf, 1]])
    assert float(coverage(mean, error, torch.tensor([[0.5, 0.5, 99, 0]]))) == 0.5
    assert float(coverage(mean, error, torch.tensor([[9.0, math.nan, 99, math.nan]]))) == 0.5
    assert coverage(mean, error, torch.full((1, 4), math.nan)).isnan().all()


def test_nothing_to_compare_and_bad_input() -> None:
    none, maps = torch.zeros((0, 4, 5)), torch.rand((2, 4, 5))
    assert randomisation(none, none).shape == seed_stability([none, none]).shape == coverage(none, none, none).shape
    assert randomisation(none, torch.zeros((3, 0, 4, 5))).shape == (3, 0)
    with pytest.raises(ValueError, match="like the maps"):
        randomisation(maps, maps[:1])
    with pytest.raises(ValueError, match="at least two"):
        seed_stability([maps])
    with pytest.raises(ValueError, match="one shape"):
        coverage(maps, maps[:1], maps)
    with pytest.raises(ValueError, match="level"):
        coverage(maps, maps, maps, level=1)
    with pytest.raises(ValueError, match="negative"):
        coverage(maps, -maps, maps)
