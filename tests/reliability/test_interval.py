from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability_hooks.reliability.binning import interpolate
from reliability_hooks.reliability.interval import Interval, _basis, _refit
from reliability_hooks.reliability.scores import logit


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def clustered(images: int, generator: torch.Generator, spread: float = 1.5) -> tuple[torch.Tensor, ...]:
    """Logit, correct, image: an image's detections share a normal effect on the logit."""
    count = 5 + torch.randint(20, (images,), generator=generator)
    image = torch.repeat_interleave(torch.arange(images), count)
    x = 1.5 * torch.randn(len(image), generator=generator).double()
    z = 0.9 * x - 0.2 + spread * torch.randn(images, generator=generator).double()[image]
    return x, torch.rand(len(image), generator=generator).double() < z.sigmoid(), image


def truth(x: torch.Tensor, spread: float = 1.5) -> torch.Tensor:
    """P(correct | logit): the mean over the image's effect, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z = 0.9 * x[:, None] - 0.2 + spread * torch.tensor(nodes)
    return z.sigmoid() @ torch.tensor(weights / weights.sum())


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_covers_the_true_curve_at_its_level_where_detections_alone_do_not(level: float) -> None:
    g = torch.Generator().manual_seed(0)
    inside: dict[str, list[float]] = {"images": [], "detections": []}
    for seed in range(60):
        x, correct, image = clustered(80, g)
        query = 1.5 * torch.randn(400, generator=g).double().clamp(-3, 3)
        p = truth(query)
        for name, unit in (("images", image), ("detections", None)):
            band = Interval.fit(x.sigmoid(), correct, unit, level, draws=100, seed=seed)
            low, high = (interpolate(query, band.x, v) for v in (band.low, band.high))
            inside[name].append(float(((low <= p) & (p <= high)).double().mean()))
    assert abs(np.mean(inside["images"]) - level) < 0.05
    assert np.mean(inside["detections"]) < level - 0.12


def test_refits_equal_scipy_on_the_drawn_images() -> None:
    from scipy.optimize import minimize

    g = torch.Generator().manual_seed(1)
    x, correct, image = clustered(20, g)
    basis = _basis(x, torch.quantile(x, torch.tensor([0.2, 0.4, 0.6, 0.8]).double()))
    counts = torch.randint(3, (2, 20), generator=g).double()
    ours = _refit(basis, x, correct.double(), image, counts)
    for k in range(2):
        weight = counts[k, image].numpy()

        def loss(theta: np.ndarray, weight: np.ndarray = weight) -> float:
            z = x.numpy() + basis.numpy() @ theta
            return float((weight * (np.logaddexp(0, z) - correct.numpy() * z)).sum() + (theta**2).sum() / 2)

        found = minimize(loss, np.zeros(basis.shape[1]), method="BFGS", options={"gtol": 1e-6})
        np.testing.assert_allclose(ours[k], found.x, atol=1e-3)


def test_more_images_and_lower_levels_are_narrower() -> None:
    def width(images: int, level: float) -> float:
        x, correct, image = clustered(images, torch.Generator().manual_seed(2))
        low, high = Interval.fit(x.sigmoid(), correct, image, level).predict(torch.linspace(0.1, 0.9, 9))
        return float((high - low).mean())

    assert width(200, 0.9) < 0.6 * width(30, 0.9)
    assert width(100, 0.5) < 0.7 * width(100, 0.9)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=30)
)
def test_any_fit_contains_the_reliability_and_survives_its_state(rows: list[tuple[float, float, int]]) -> None:
    r, t, image = (torch.tensor(column) for column in zip(*rows, strict=True))
    fitted = Interval.fit(r, t, image, draws=20)
    query = torch.cat([torch.linspace(0, 1, 31), torch.tensor([torch.nan])])
    low, high = fitted.predict(query)
    assert low.dtype == torch.float32
    assert low.isnan().tolist() == high.isnan().tolist() == [False] * 31 + [True]
    ordered = (low[:-1] >= 0) & (low[:-1] <= query[:-1]) & (query[:-1] <= high[:-1]) & (high[:-1] <= 1)
    assert bool(ordered.all())
    again = Interval.from_state(fitted.state()).predict(query)
    assert torch.equal(again[0][:-1], low[:-1])
    assert torch.equal(again[1][:-1], high[:-1])


def test_one_image_says_nothing_and_no_row_is_an_error() -> None:
    r = torch.tensor([0.2, 0.8, torch.nan])
    low, high = Interval.fit(r, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([7, 7, 9])).predict(r[:2])
    assert low.tolist() == [0, 0]
    assert high.tolist() == [1, 1]
    low, high = Interval.fit(r, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([7, 8, 9])).predict(torch.zeros(0))
    assert low.shape == high.shape == (0,)
    with pytest.raises(ValueError, match="at least 1 labelled"):
        Interval.fit(torch.zeros(0), torch.zeros(0), None)
    with pytest.raises(ValueError, match="one id for each"):
        Interval.fit(r, torch.ones(3), torch.zeros(2))
    with pytest.raises(ValueError, match="level must lie"):
        Interval.fit(r, r, None, level=1.0)


def test_the_band_is_about_the_calibrated_value() -> None:
    x, correct, image = clustered(400, torch.Generator().manual_seed(3))
    band = Interval.fit(x.sigmoid(), correct, image)
    query = torch.linspace(0.1, 0.9, 9).double()
    middle = (interpolate(logit(query), band.x, band.low) + interpolate(logit(query), band.x, band.high)) / 2
    assert float((middle - truth(logit(query))).abs().max()) < 0.05
