from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from reliability_hooks.reliability.calibrators import Platt
from reliability_hooks.reliability.table import FeatureTable


def columns(n: int = 400, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    holes = torch.randn(n, generator=g)
    holes[: n // 4] = torch.nan
    held = {
        "a/normal": torch.randn(n, generator=g) * 3 + 5,
        "b/holes": holes,
        "b/constant": torch.full((n,), 0.1),
        "c/never": torch.full((n,), torch.nan),
        "c/tail": torch.where(torch.rand(n, generator=g) < 0.1, 1000.0, 0.0),
        "c/whole": torch.randint(0, 5, (n,), generator=g),
        "c/flag_or_gap": torch.where(torch.rand(n, generator=g) < 0.5, 1.0, torch.inf),
    }
    return held, torch.rand(n, generator=g)


def test_the_features() -> None:
    held, scores = columns()
    table, x = FeatureTable.fit(held, scores)
    assert table.names == ("a/normal", "b/holes", "c/tail", "c/whole")
    assert table.indicators == ("b/holes", "c/flag_or_gap")
    assert table.dropped == {"b/constant": "constant", "c/never": "never available"}
    assert table.features == ("score", *table.names, "missing:b/holes", "missing:c/flag_or_gap")
    assert table.owners == ("score", *table.names, *table.indicators)
    assert set(table.required) == {*table.names, "c/flag_or_gap"}
    assert torch.equal(x, table.transform(held, scores))
    a = held["a/normal"].double().numpy()
    low, high = np.quantile(a, [0.005, 0.995])
    scale = max(np.subtract(*np.quantile(a, [0.75, 0.25])) / 1.349, (high - low) / 6)
    np.testing.assert_allclose(x[:, 1], (a.clip(low, high) - np.median(a)) / scale, atol=1e-9)
    assert x[:100, 2].abs().max() == 0  # imputed by the median
    assert x[:, 5].tolist() == [1.0] * 100 + [0.0] * 300
    assert x.abs().max() <= 6.0001
    assert torch.equal(x[:, 0].argsort(), scores.argsort())


def test_far_values_are_winsorised_and_infinite_ones_are_gaps() -> None:
    held, scores = columns()
    table, x = FeatureTable.fit(held, scores)
    far = {name: torch.full((3,), 1.0) for name in held}
    far["a/normal"] = torch.tensor([1e30, -torch.inf, torch.nan])
    y = table.transform(far, scores[:3])
    assert y[0, 1] == x[:, 1].max()
    assert y[1:, 1].tolist() == [0.0, 0.0]


def test_absent_columns_are_named_with_their_signal() -> None:
    held, scores = columns()
    table, _ = FeatureTable.fit(held, scores)
    assert table.transform({n: c for n, c in held.items() if n != "c/never"}, scores).isfinite().all()
    with pytest.raises(ValueError, match=r"\['b/holes'\] are absent: switch on the signals \['b'\]"):
        table.transform({n: c for n, c in held.items() if n != "b/holes"}, scores)


def test_bad_input() -> None:
    scores = columns(10)[1]
    with pytest.raises(ValueError, match="got 0"):
        FeatureTable.fit({}, torch.zeros(0))
    with pytest.raises(ValueError, match="'a/normal'"):
        FeatureTable.fit({"a/normal": torch.zeros(10, 2)}, scores)
    with pytest.raises(ValueError, match="taken by the table"):
        FeatureTable.fit({"score": scores}, scores)
    with pytest.raises(ValueError, match="correct and groups"):
        FeatureTable.fit({}, scores, torch.zeros(10, dtype=torch.int64))
    labelled, _ = FeatureTable.fit(
        {}, scores, torch.zeros(10, dtype=torch.int64), scores > 0.5, torch.arange(10)
    )
    with pytest.raises(ValueError, match="give labels"):
        labelled.transform({}, scores)


def test_zero_rows_and_one_row() -> None:
    held, scores = columns()
    table, x = FeatureTable.fit(held, scores)
    empty = table.transform({n: c[:0] for n, c in held.items()}, scores[:0])
    assert empty.shape == (0, x.shape[1])
    one, row = FeatureTable.fit({n: c[:1] for n, c in held.items()}, scores[:1])
    assert one.features == ("score",)
    assert row.isfinite().all()


def test_class_prior_by_hand() -> None:
    scores = torch.tensor([0.3, 0.6, 0.7, 0.4, 0.9, 0.2])
    labels = torch.tensor([7, 7, 7, 2, 2, 2])
    correct = torch.tensor([True, True, True, False, True, False])
    k = 4.0
    table, x = FeatureTable.fit({}, scores, labels, correct, torch.arange(6), pseudo_counts=k)
    p, m = Platt.fit(scores, correct).predict(scores), 5 / 8

    def log_odds(rate: float) -> float:
        return float(np.log(rate / (1 - rate)))

    def value(rows: list[int]) -> float:
        right, hoped = sum(float(correct[i]) for i in rows), sum(float(p[i]) for i in rows)
        return log_odds((right + k * m) / (len(rows) + k)) - log_odds((hoped + k * m) / (len(rows) + k))

    got = table.transform({}, torch.full((3,), 0.5), torch.tensor([2, 7, 5]))[:, -1]
    np.testing.assert_allclose(got, [value([3, 4, 5]), value([0, 1, 2]), 0.0], atol=1e-9)
    # Six images in five folds: two share a fold, the others stand alone.
    alone = [
        i
        for i in range(6)
        if np.isclose(float(x[i, -1]), value([j for j in range(6) if j != i and labels[j] == labels[i]]))
    ]
    assert len(alone) >= 4


def test_class_prior_does_not_see_its_own_label() -> None:
    g = torch.Generator().manual_seed(0)
    n = 3000
    labels = torch.randint(0, 600, (n,), generator=g)
    correct, scores = torch.rand(n, generator=g) < 0.5, torch.rand(n, generator=g)
    table, x = FeatureTable.fit({}, scores, labels, correct, torch.arange(n) // 5)
    seen = table.transform({}, scores, labels)[:, -1]
    assert roc_auc_score(correct, seen) > 0.6  # what a leak would look like
    assert roc_auc_score(correct, x[:, -1]) == pytest.approx(0.5, abs=0.03)


def test_a_single_image_tells_nothing_about_its_own_classes() -> None:
    g = torch.Generator().manual_seed(0)
    n = 50
    labels, correct = torch.randint(0, 3, (n,), generator=g), torch.rand(n, generator=g) < 0.5
    _, x = FeatureTable.fit(
        {}, torch.rand(n, generator=g), labels, correct, torch.zeros(n, dtype=torch.int64)
    )
    assert x[:, -1].abs().max() == 0


def test_class_prior_finds_a_bad_class() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (800,), generator=g)
    scores = torch.rand(800, generator=g)
    correct = torch.rand(800, generator=g) < torch.where(labels == 3, 0.2, 0.7)
    table, _ = FeatureTable.fit({}, scores, labels, correct, torch.arange(800) // 8)
    value = table.transform({}, torch.full((5,), 0.5), torch.tensor([0, 1, 2, 3, 99]))[:, -1]
    assert value[3] < -1
    assert value[:3].min() > 0.2
    assert value[4] == 0


@settings(max_examples=50, deadline=None)
@given(
    values=hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(3)), elements=st.floats(width=64)),
    seed=st.integers(0, 100),
)
def test_any_table_is_finite_and_survives_its_state(values: np.ndarray, seed: int) -> None:
    held = {f"s/{j}": torch.from_numpy(values[:, j].copy()) for j in range(3)}
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    scores, labels = torch.rand(n, generator=g), torch.randint(-1, 3, (n,), generator=g)
    scores[0] = torch.nan if n > 1 else 0.5
    table, x = FeatureTable.fit(held, scores, labels, scores > 0.5, torch.arange(n) // 2)
    y = table.transform(held, scores, labels)
    assert x.isfinite().all()
    assert y.isfinite().all()
    assert y.shape == (n, len(table.features))
    assert torch.equal(FeatureTable.from_state(table.state()).transform(held, scores, labels), y)
