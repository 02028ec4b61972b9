"""Shapley values against every order counted out, and what they must add up to."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from reliability_hooks.reliability.model import ReliabilityModel
from reliability_hooks.reliability.shapley import coalitions, shapley


def test_it_is_the_mean_over_all_orders() -> None:
    torch.manual_seed(0)
    table = torch.rand(2**4, 3)
    found = shapley(lambda sets: table, 4)
    naive = torch.zeros(4, 3, dtype=torch.float64)
    for order in permutations(range(4)):
        held = 0
        for g in order:
            naive[g] += (table[held | 1 << g] - table[held]).double() / 24
            held |= 1 << g
    torch.testing.assert_close(found, naive)


def test_it_shares_out_the_whole_and_knows_who_does_nothing() -> None:
    found = shapley(lambda sets: sets[:, [0]].double() * 2 + sets[:, [0]] * sets[:, [2]], 3)
    torch.testing.assert_close(found[:, 0], torch.tensor([2.5, 0.0, 0.5], dtype=torch.float64))


def test_no_groups_and_too_many() -> None:
    assert shapley(lambda sets: torch.zeros(1, 5), 0).shape == (0, 5)
    with pytest.raises(ValueError, match="join some"):
        coalitions(20)


@pytest.mark.parametrize("candidates", [("logistic",), ("boosting",)])
def test_shares_of_a_fitted_model_add_up(candidates: tuple[str, ...]) -> None:
    g = torch.Generator().manual_seed(1)
    n = 400
    a, b, c = torch.rand(3, n, generator=g)
    scores = torch.rand(n, generator=g)
    correct = torch.rand(n, generator=g) < (0.6 * scores + 0.4 * a)
    columns = {"image/sharp": a, "image/dark": b, "geometry/size": c}
    model = ReliabilityModel.fit(columns, scores, torch.zeros(n).long(), correct, correct.float(),
                                 torch.arange(n) // 4, 0, candidates)
    labels = torch.zeros(n).long()
    found = model.shares(columns, scores, labels)
    assert {"score", "image", "geometry"} >= found.keys() - {"class_prior"}
    whole = model.predict(columns, scores, labels)["reliability"]
    total = torch.stack(list(found.values())).sum(0)
    typical = whole - total
    torch.testing.assert_close(typical, typical[:1].expand(n), atol=1e-5, rtol=0)
    assert model.shares({k: v[:0] for k, v in columns.items()}, scores[:0], labels[:0])["score"].shape == (0,)
    assert model.shares(columns, scores.index_fill(0, torch.tensor([3]), torch.nan), labels)["score"][3].isnan()
