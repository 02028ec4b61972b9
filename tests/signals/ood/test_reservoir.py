"""The sample is uniform, reproducible, and as large as it may be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability_hooks.signals.ood.reservoir import Reservoir


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 99))
def test_the_batches_do_not_matter(capacity: int, sizes: list[int], seed: int) -> None:
    rows = torch.arange(2.0 * sum(sizes)).reshape(-1, 2)
    whole, parts = Reservoir(capacity, seed), Reservoir(capacity, seed)
    whole.update(rows)
    for part in rows.split(sizes):
        parts.update(part)
    assert whole.seen == parts.seen == len(rows)
    kept = parts.rows
    assert kept.shape == (min(capacity, len(rows)), 2)
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept.sort(0).values, whole.rows.sort(0).values, rtol=0, atol=0)
    assert len(kept[:, 0].unique()) == len(kept)  # without replacement
    assert (kept[:, 1] == kept[:, 0] + 1).all()  # whole rows of the stream


def test_every_row_is_as_likely() -> None:
    """400 samples of 10 out of 50: a count of any row is binomial(400, .2), mean 80 and deviation 8."""
    counts = torch.zeros(50)
    for seed in range(400):
        sample = Reservoir(10, seed)
        for part in torch.arange(50.0)[:, None].split(7):
            sample.update(part)
        counts[sample.rows[:, 0].long()] += 1
    assert counts.sum() == 4000
    assert (counts - 80).abs().max() < 4 * 8


def test_memory_and_copies() -> None:
    sample = Reservoir(5)
    assert sample.rows.shape == (0, 0)
    sample.update(torch.zeros(0, 3))
    assert sample.rows.shape == (0, 3)
    given_rows = torch.ones(4, 3)
    sample.update(given_rows)
    given_rows.zero_()
    kept = sample.rows
    sample.update(torch.full((100, 3), 7.0))
    assert (kept == 1).all()
    assert len(sample.rows) == 5
    assert sample.seen == 104


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        Reservoir(0)
    sample = Reservoir(5)
    with pytest.raises(ValueError, match=r"\(n, D\)"):
        sample.update(torch.zeros(3))
    sample.update(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        sample.update(torch.zeros(3, 4))


def test_goes_on_in_another_mode() -> None:
    sample = Reservoir(5)
    with torch.inference_mode():
        sample.update(torch.ones(3, 2))
    sample.update(torch.full((4, 2), 2.0, requires_grad=True))
    with torch.inference_mode():
        sample.update(torch.full((40, 2), 3.0))
    assert not sample.rows.is_inference()
    assert not sample.rows.requires_grad
    assert sample.seen == 47
