from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from reliability_hooks.reliability.venn_abers import VennAbers


def sample(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    s = torch.rand(n, generator=g, dtype=torch.float64)
    return s, torch.rand(n, generator=g, dtype=torch.float64) < s


def one_by_one(s: np.ndarray, t: np.ndarray, w: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition: an isotonic regression for each query and label."""
    return tuple(  # type: ignore[return-value]
        np.array([
            IsotonicRegression().fit(np.r_[s, x], np.r_[t, label], sample_weight=np.r_[w, 1]).predict([x])[0]
            for x in query
        ])
        for label in (0, 1)
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0.0, 1.0, 0.4]), st.sampled_from([1.0, 2.5])),
                  min_size=1, max_size=25),
    query=st.lists(st.integers(0, 24), min_size=1, max_size=5),
)
def test_equals_the_definition(rows: list[tuple[int, float, float]], query: list[int]) -> None:
    """With ties, weights and fractional targets; queries on and between the scores."""
    s, t, w = np.array(rows).T
    x = np.array(query) / 24
    low, high = VennAbers.fit(*(torch.tensor(v) for v in (s / 12, t, w))).predict_interval(torch.tensor(x))
    expected_low, expected_high = one_by_one(s / 12, t, w, x)
    np.testing.assert_allclose(low, expected_low, atol=1e-9)
    np.testing.assert_allclose(high, expected_high, atol=1e-9)


def test_equals_the_venn_abers_package() -> None:
    package = pytest.importorskip("venn_abers")
    s, t = sample(300, 0)
    query, _ = sample(200, 1)
    theirs = package.VennAbers()
    theirs.fit(torch.stack([1 - s, s], 1).numpy(), t.long().numpy())
    merged, pair = theirs.predict_proba(torch.stack([1 - query, query], 1).numpy())
    ours = VennAbers.fit(s, t)
    low, high = ours.predict_interval(query)
    np.testing.assert_allclose(low, pair[:, 0], atol=1e-12)
    np.testing.assert_allclose(high, pair[:, 1], atol=1e-12)
    np.testing.assert_allclose(ours.predict(query), merged[:, 1], atol=1e-12)


def test_equals_crepes_where_a_mondrian_category_holds_one_score() -> None:
    """With a single score p1 is (k + 1) / (n + 1) and p0 k / (n + 1): the conformal p-values' two ends."""
    crepes = pytest.importorskip("crepes")
    t = np.array([1, 1, 0, 1, 0])
    conformal = crepes.ConformalClassifier().fit(np.where(t == 1, 1.0, 0.0))
    top = conformal.predict_p(np.array([[1.0]]), smoothing=False)[0, 0]
    low, high = VennAbers.fit(torch.full((5,), 0.4), torch.tensor(t)).predict_interval(torch.tensor([0.4]))
    assert float(low) == pytest.approx(3 / 6)
    assert float(high) == pytest.approx(top) == pytest.approx(4 / 6)


def test_cross_is_the_geometric_mean_of_the_folds() -> None:
    s, t = sample(90, 2)
    fold = torch.arange(90) % 3
    query = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    each = [VennAbers.fit(s[fold == k], t[fold == k]).predict_interval(query) for k in range(3)]
    high = torch.stack([p1 for _, p1 in each]).prod(0) ** (1 / 3)
    wrong = torch.stack([1 - p0 for p0, _ in each]).prod(0) ** (1 / 3)
    torch.testing.assert_close(VennAbers.fit(s, t, fold=fold).predict(query), high / (high + wrong))
    s[0] = torch.nan
    assert len(VennAbers.fit(s, t, torch.arange(90.0), fold).folds) == 3  # rows left out leave their fold, too


def test_calibrated_for_exchangeable_detections() -> None:
    """The share of right ones lies between the mean p0 and the mean p1, up to sampling noise (Proposition 1)."""
    lows, highs, right = [], [], []
    for seed in range(100):
        s, t = sample(41, seed)
        fitted = VennAbers.fit(s[:40] ** 2, t[:40])
        low, high = fitted.predict_interval(s[40:] ** 2)
        lows.append(float(low))
        highs.append(float(high))
        right.append(float(t[40]))
    assert np.mean(lows) - 0.15 < np.mean(right) < np.mean(highs) + 0.15


@pytest.mark.parametrize(("n", "width"), [(20, 0.28), (200, 0.06)])
def test_mean_width(n: int, width: float) -> None:
    """The widths that the design note measured."""
    spans = []
    for seed in range(50):
        s, t = sample(n, seed)
        low, high = VennAbers.fit(s, t).predict_interval(torch.linspace(0.05, 0.95, 50, dtype=torch.float64))
        spans.append(float((high - low).mean()))
    assert np.mean(spans) == pytest.approx(width, rel=0.35)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=30))
def test_any_fit_is_ordered_monotone_and_survives_its_state(rows: list[tuple[float, bool]]) -> None:
    s, t = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    fitted = VennAbers.fit(s, t)
    query = torch.cat([torch.linspace(0, 1, 101), s]).sort().values
    low, high = fitted.predict_interval(query)
    p = fitted.predict(query)
    assert bool(((low >= 0) & (low <= p) & (p <= high) & (high <= 1)).all())
    assert bool((low.diff() >= -1e-12).all())
    assert bool((high.diff() >= -1e-12).all())
    assert torch.equal(VennAbers.from_state(fitted.state()).predict(query), p)


def test_one_class_keeps_laplaces_rule_where_there_are_data() -> None:
    fitted = VennAbers.fit(torch.linspace(0.2, 0.8, 20), torch.ones(20, dtype=torch.bool))
    p = fitted.predict(torch.tensor([0.1, 0.8, 0.9, torch.nan]))
    assert p[:3].tolist() == pytest.approx([0.5, 21 / 22, 21 / 22])
    assert bool(p[3].isnan())
    assert fitted.predict(torch.zeros(0)).shape == (0,)
    with pytest.raises(ValueError, match="at least 1 labelled"):
        VennAbers.fit(torch.zeros(0), torch.zeros(0))
