from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from reliability_hooks.reliability.calibrators import (
    CALIBRATORS,
    EPS,
    METHODS,
    Beta,
    Histogram,
    Isotonic,
    Platt,
    Temperature,
    as_scores,
    logit,
    recalibration,
)

EACH = [name for name in METHODS if name != "venn_abers"]  # has its own file
MONOTONE = [name for name in EACH if name != "histogram"]


def sample(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, generator=g, dtype=torch.float64)
    target = torch.rand(n, generator=g) < scores**2
    return scores, target, torch.rand(n, generator=g, dtype=torch.float64) * 3


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_equals_sklearn(weighted: bool) -> None:
    scores, target, weight = sample()
    w = weight if weighted else None
    ours = Platt.fit(scores, target, w)
    x = torch.log(scores / (1 - scores)).numpy()[:, None]
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    theirs.fit(x, target.numpy(), None if w is None else w.numpy())
    np.testing.assert_allclose(ours.predict(scores), theirs.predict_proba(x)[:, 1], atol=1e-6)


def test_platt_of_a_fraction_satisfies_the_score_equations() -> None:
    scores, _, weight = sample()
    target = scores.square() * 0.9
    residual = (Platt.fit(scores, target, weight).predict(scores) - target) * weight
    assert abs(float(residual.sum())) < 1e-6
    assert abs(float((residual * logit(scores)).sum())) < 1e-6


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_equals_sklearn(weighted: bool) -> None:
    scores, target, weight = sample(seed=1)
    scores = (scores * 40).round() / 40  # ties
    w = weight if weighted else None
    theirs = IsotonicRegression(out_of_bounds="clip").fit(
        scores.numpy(), target.double().numpy(), sample_weight=None if w is None else w.numpy()
    )
    query = torch.linspace(0, 1, 1001, dtype=torch.float64)
    ours = Isotonic.fit(scores, target, w)
    np.testing.assert_allclose(ours.predict(query), theirs.predict(query.numpy()), atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_temperature_equals_a_line_search(weighted: bool) -> None:
    from scipy.optimize import minimize_scalar

    scores, target, weight = sample(seed=2)
    w = weight if weighted else torch.ones_like(scores)
    x = logit(scores)

    def loss(slope: float) -> float:
        return float((w * (torch.nn.functional.softplus(slope * x) - target.double() * slope * x)).sum())

    expected = minimize_scalar(loss, bounds=(0.01, 10), method="bounded", options={"xatol": 1e-10}).x
    ours = Temperature.fit(scores, target, weight if weighted else None)
    assert float(ours.slope) == pytest.approx(expected, abs=1e-5)
    assert float(ours.intercept) == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_beta_equals_sklearn_where_the_bounds_do_not_bind(weighted: bool) -> None:
    scores, target, weight = sample(seed=3)
    w = weight if weighted else None
    x = torch.stack([scores.log(), -(1 - scores).log()], 1).numpy()
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        x, target.numpy(), None if w is None else w.numpy()
    )
    assert theirs.coef_.min() > 0
    np.testing.assert_allclose(Beta.fit(scores, target, w).predict(scores), theirs.predict_proba(x)[:, 1], atol=1e-5)


def test_beta_drops_the_end_that_would_turn_round() -> None:
    """With a < 0 in the free fit the optimum lies on the border a = 0: a regression on ln(1 - s) alone."""
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(4000, generator=g, dtype=torch.float64)
    target = torch.rand(4000, generator=g) < (-0.4 * scores.log() - 1.5 * (1 - scores).log() - 1).sigmoid()
    x = -(1 - scores).log().numpy()[:, None]
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, target.numpy())
    ours = Beta.fit(scores, target)
    assert float(ours.a) == 0
    np.testing.assert_allclose(ours.predict(scores), theirs.predict_proba(x)[:, 1], atol=1e-4)


def test_histogram_equals_the_means_of_its_bins() -> None:
    from scipy.stats import binned_statistic

    scores, target, weight = sample(seed=4)
    fitted = Histogram.fit(scores, target, bins=8)
    edges = np.r_[-np.inf, fitted.edges.numpy(), np.inf]
    clipped = np.clip(edges, -1, 2)
    rates, _, place = binned_statistic(scores.numpy(), target.double().numpy(), bins=clipped)
    assert np.bincount(place)[1:].tolist() == [50] * 8
    np.testing.assert_allclose(fitted.predict(scores), rates[place - 1])
    heavy = Histogram.fit(scores, target, weight, bins=8)
    first = scores < heavy.edges[0]
    assert float(heavy.y[0]) == pytest.approx(float((weight * target)[first].sum() / weight[first].sum()))
    tied = Histogram.fit((scores * 3).round() / 3, target, bins=10)
    assert len(tied.y) <= 4
    assert bool(tied.y.isfinite().all())
    with pytest.raises(ValueError, match="bins must be"):
        Histogram.fit(scores, target, bins=0)


@pytest.mark.parametrize("name", EACH)
class TestEach:
    @pytest.mark.parametrize(("right", "n"), [(True, 20), (False, 20), (True, 1), (False, 1)])
    def test_one_class_gives_the_smoothed_constant(self, name: str, right: bool, n: int) -> None:
        fitted = METHODS[name].fit(torch.linspace(0.1, 0.9, n), torch.full((n,), right))
        expected = (n * right + 1) / (n + 2)
        torch.testing.assert_close(
            fitted.predict(torch.tensor([0.0, 0.5, 1.0])), torch.full((3,), expected).double()
        )

    def test_one_score_gives_the_smoothed_rate(self, name: str) -> None:
        fitted = METHODS[name].fit(torch.full((4,), 0.5), torch.tensor([True, False, True, True]))
        torch.testing.assert_close(fitted.predict(torch.tensor([0.2, 0.8])), torch.full((2,), 4 / 6).double())

    def test_zero_rows_say_how_many_are_needed(self, name: str) -> None:
        nan = torch.tensor([torch.nan])
        for scores, target in [
            (torch.zeros(0), torch.zeros(0, dtype=torch.bool)),
            (nan, torch.tensor([True])),
        ]:
            with pytest.raises(ValueError, match="at least 1 labelled detection"):
                METHODS[name].fit(scores, target)

    def test_bad_input(self, name: str) -> None:
        fit = METHODS[name].fit
        with pytest.raises(ValueError, match="not logits"):
            fit(torch.tensor([2.0]), torch.tensor([True]))
        with pytest.raises(ValueError, match="alike"):
            fit(torch.rand(3), torch.tensor([True]))
        with pytest.raises(ValueError, match="target must lie"):
            fit(torch.rand(1), torch.tensor([torch.nan]))
        with pytest.raises(ValueError, match=r"shape \(N,\)"):
            fit(torch.rand(2, 2), torch.ones(2, 2))

    def test_nan_and_empty(self, name: str) -> None:
        fitted = METHODS[name].fit(*sample()[:2])
        assert fitted.predict(torch.tensor([torch.nan, 0.5])).isnan().tolist() == [True, False]
        assert fitted.predict(torch.zeros(0)).shape == (0,)

    def test_wrong_way_round_is_flat(self, name: str) -> None:
        scores, target, _ = sample()
        p = METHODS[name].fit(scores, ~target).predict(torch.linspace(0, 1, 11))
        assert name == "histogram" or float(p[-1]) - float(p[0]) < 0.35
        assert (name in MONOTONE) == bool((p.diff() >= 0).all())

    @settings(max_examples=40, deadline=None)
    @given(rows=st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=30))
    def test_any_fit_is_monotone_bounded_and_survives_its_state(
        self, name: str, rows: list[tuple[float, bool]]
    ) -> None:
        scores, target = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
        fitted = METHODS[name].fit(scores, target)
        query = torch.linspace(0, 1, 101)
        p = fitted.predict(query)
        assert bool(((p >= 0) & (p <= 1)).all())
        assert name not in MONOTONE or bool((p.diff() >= -1e-12).all())
        assert torch.equal(METHODS[name].from_state(fitted.state()).predict(query), p)


@pytest.mark.parametrize("kind", [Platt, Temperature, Beta])
def test_separable_scores_give_no_certainty(kind: type[Platt] | type[Beta]) -> None:
    p = kind.fit(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([False, False, True, True])).predict(
        torch.tensor([0.1, 0.9])
    )
    assert 0.2 < float(p[0]) < 0.35
    assert 0.65 < float(p[1]) < 0.8


def test_default_is_the_identity() -> None:
    s = torch.linspace(EPS, 1 - EPS, 50, dtype=torch.float64)
    torch.testing.assert_close(Platt().predict(s), s)
    torch.testing.assert_close(Isotonic().predict(s), s)
    torch.testing.assert_close(Temperature().predict(s), s)
    torch.testing.assert_close(Beta().predict(s), s)


def test_every_method_has_its_kind() -> None:
    assert {name: METHODS[name].fit(*sample()[:2]).state()[1]["kind"] for name in METHODS} == {n: n for n in METHODS}
    assert CALIBRATORS.items() <= METHODS.items()


def test_logit_and_scores() -> None:
    torch.testing.assert_close(logit(torch.tensor([0.0, 0.3])), torch.logit(torch.tensor([EPS, 0.3])))
    assert as_scores(torch.tensor([1.00001, 0.0])).max() == 1  # a softmax in float32 may sum to a little more


def test_recalibration_finds_the_truth_with_many_rows_and_stays_put_with_few() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(20000, generator=g, dtype=torch.float64) * 2
    target = torch.rand(20000, generator=g) < (0.5 * z - 0.7).sigmoid()
    slope, intercept = recalibration(z, target)
    assert slope == pytest.approx(0.5, abs=0.03)
    assert intercept == pytest.approx(-0.7, abs=0.05)
    slope, intercept = recalibration(z[:5], target[:5])
    assert abs(slope - 1) < 0.3
    assert abs(intercept) < 0.3
    assert recalibration(z, z < 0)[0] == pytest.approx(0.0, abs=1e-6)  # never turns the ranking round
    reference = LogisticRegression(C=np.inf, tol=1e-9).fit(z.numpy()[:, None], target.numpy())
    assert recalibration(z, target, strength=0.0)[0] == pytest.approx(float(reference.coef_[0, 0]), abs=1e-4)
