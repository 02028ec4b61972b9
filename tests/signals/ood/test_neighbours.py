"""The k-th nearest neighbour against scikit-learn, exhaustive and with clusters skipped."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from reliability_hooks.signals.ood import neighbours
from reliability_hooks.signals.ood.base import Rows
from reliability_hooks.signals.ood.knn import K, KNearest
from reliability_hooks.signals.ood.neighbours import Partition, knn_distance


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(n: int, spread: float, seed: int = 0, d: int = 16) -> Tensor:
    """Unit vectors about six directions of very different frequency."""
    which = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) ** 2 * 6).long()
    return normalize(random(6, d, seed=70)[which] + spread * random(n, d, seed=seed), dim=1)


def of_sklearn(z: Tensor, bank: Tensor, k: int) -> Tensor:
    found = NearestNeighbors(n_neighbors=min(k, len(bank)), algorithm="brute").fit(bank.double().numpy())
    return torch.from_numpy(found.kneighbors(z.double().numpy())[0][:, -1]).float()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of 60 rows will do."""
    monkeypatch.setattr(neighbours, "PROBE", 60)


@pytest.mark.parametrize("m", [3, 60, 1000, 5003])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_exhaustive(m: int, k: int) -> None:
    bank, z = normalize(random(m, 8), dim=1), normalize(random(50, 8, seed=1), dim=1)
    bank[: m // 2] = bank[m // 2 : m // 2 * 2]  # ties
    z[0] = bank[0]
    z[1] = 0
    expected = of_sklearn(z, bank, k)
    for chunk in (None, 1, 20):
        torch.testing.assert_close(knn_distance(z, bank, k, chunk), expected, rtol=1e-4, atol=1e-6)


def test_spans_are_all_that_is_searched() -> None:
    bank, z = normalize(random(300, 8), dim=1), normalize(random(9, 8, seed=1), dim=1)
    found = knn_distance(z, bank, 5, spans=[(10, 90), (200, 201), (210, 300)])
    torch.testing.assert_close(found, knn_distance(z, torch.cat([bank[10:90], bank[200:201], bank[210:]]), 5))


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("k", [1, 50, 100])
def test_partition_is_exact(spread: float, k: int, small: None) -> None:
    """Of known objects, some between two classes, of unknown ones and of zero; a bank with duplicates.

    Squares are compared: a similarity of nearly equal vectors is rounded by 1e-7, whatever is searched.
    """
    bank = classes(3000, spread)
    bank[::17] = bank[0]
    z = torch.cat([classes(200, spread, 1), normalize(classes(50, spread, 2) + classes(50, spread, 3), dim=1),
                   normalize(random(50, 16, seed=4), dim=1), bank[:9], torch.zeros(1, 16)])
    made = Partition.of(bank, k)
    assert (len(made.centres) > 1) == (k <= 60)
    torch.testing.assert_close(made.distance(z, k) ** 2, of_sklearn(z, bank, k) ** 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.bank.sum(0), bank.sum(0), rtol=1e-4, atol=1e-3)
    assert made.distance(z[:0], k).shape == (0,)


def test_the_bound_holds_for_every_row(small: None) -> None:
    bank = classes(3000, 0.2)
    made = Partition.of(bank, 5)
    assert len(made.centres) > 5
    for c, (start, end) in enumerate(zip(made.starts[:-1].tolist(), made.starts[1:].tolist(), strict=True)):
        cosine = made.bank[start:end].double() @ made.centres[c].double()
        assert (cosine.clamp(-1, 1).acos() <= made.radii[c] + neighbours.SLACK).all()


def test_much_is_skipped_where_classes_are_parted(small: None) -> None:
    bank, z = classes(3000, 0.05), classes(300, 0.05, 1)
    plan = Partition.of(bank, 5).plan(z, 5)
    assert torch.equal(torch.cat([rows for rows, _ in plan]).sort().values, torch.arange(300))
    searched = sum(len(rows) * (end - start) for rows, spans in plan for start, end in spans)
    assert searched < 0.4 * len(z) * len(bank)  # a third are of the most frequent class, with 0.41 of the bank


def test_a_score_keeps_its_partition(small: None) -> None:
    bank, z = classes(3000, 0.05), classes(300, 0.05, 1)
    score, again = KNearest(), KNearest()
    score.learn(Rows(torch.zeros(3000, dtype=torch.int64), features=3 * bank))
    score.finish()
    again.load_state(*score.state())
    assert len(again.tensors["centres"]) > 5
    found = again.score(Rows(torch.zeros(300, dtype=torch.int64), features=2 * z))
    torch.testing.assert_close(found, of_sklearn(z, bank, 50), rtol=1e-4, atol=1e-5)


def test_one_cluster_where_nothing_could_be_skipped(small: None) -> None:
    bank = normalize(random(3000, 64), dim=1)
    made = Partition.of(bank, 50)
    assert made.centres.shape == (1, 64)
    assert made.starts.tolist() == [0, 3000]
    assert torch.equal(made.bank, bank)


def test_rows_between_classes_need_more_and_many_rows_are_taken_in_parts(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, z = classes(3000, 0.05), torch.cat([classes(300, 0.05, 1), normalize(random(30, 16, seed=4), dim=1)])
    made = Partition.of(bank, 5)
    whole = made.distance(z, 5)
    assert any(spans == [(0, 3000)] for _, spans in made.plan(z, 5))
    monkeypatch.setattr(neighbours, "CELLS", 700)
    torch.testing.assert_close(made.distance(z, 5), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_constant_banks_are_ordinary(value: float, small: None) -> None:
    bank = normalize(torch.full((500, 4), value), dim=1)
    found = Partition.of(bank, 5).distance(torch.tensor([[0.0, 0, 0, 1]]), 5)
    expected = {0.0: 1.0, 1.0: 1.0}.get(value, math.nan)
    torch.testing.assert_close(found, torch.tensor([expected]), equal_nan=True)


def test_a_bank_and_a_rank_are_needed() -> None:
    with pytest.raises(ValueError, match="bank that is not empty"):
        knn_distance(random(2, 3), random(0, 3), 1)
    with pytest.raises(ValueError, match="bank that is not empty"):
        Partition.of(random(0, 3), 1)
    for call in (
        lambda: knn_distance(random(2, 3), random(4, 3), 0),
        lambda: Partition.of(random(4, 3), 0),
        lambda: Partition.of(random(4, 3), 1).distance(random(2, 3), 0),
    ):
        with pytest.raises(ValueError, match="k >= 1"):
            call()


def test_a_state_with_the_bare_bank_still_loads() -> None:
    bank = torch.nn.functional.normalize(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    old = KNearest()
    old.load_state({"bank": bank}, {})
    expected = knn_distance(torch.nn.functional.normalize(z, dim=1), bank, K)
    torch.testing.assert_close(old.score(Rows(torch.zeros(20).long(), features=z)), expected)
