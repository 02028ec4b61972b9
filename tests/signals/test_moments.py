from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from reliability_hooks.signals.moments import Moments


@given(parts=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_parts_give_the_moments_of_the_whole(parts: list[int]) -> None:
    g = torch.Generator().manual_seed(sum(parts))
    rows = torch.randn(sum(parts), 3, generator=g) * 5 + 100
    moments = Moments()
    for part in rows.split(parts):
        moments.update(part)
    moments.update(torch.full((2, 3), torch.nan))  # left out
    assert moments.count == len(rows)
    if len(rows) > 1:
        assert torch.allclose(moments.mean, rows.double().mean(0))
        assert torch.allclose(moments.covariance, torch.cov(rows.double().T))
