from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from reliability_hooks.reliability.linear import FREEDOM, Linear


def sample(n: int = 300, f: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, f, generator=g, dtype=torch.float64)
    x[:, -1] = x[:, -2]  # collinear
    y = torch.rand(n, generator=g) < (x[:, 0] + x[:, 1]).sigmoid()
    return x, y, (x[:, 0] * 0.1 + 0.5 + 0.1 * torch.randn(n, generator=g)).clamp(0, 1)


@pytest.mark.parametrize("c", [0.001, 0.1, 10.0])
def test_logistic_equals_sklearn(c: float) -> None:
    x, y, _ = sample()
    theirs = LogisticRegression(C=c, tol=1e-10, max_iter=2000).fit(x.numpy(), y.numpy())
    ours = Linear.fit_logistic(x, y, c, free=None).raw(x).sigmoid()
    np.testing.assert_allclose(ours, theirs.predict_proba(x.numpy())[:, 1], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 100.0])
def test_ridge_equals_sklearn(alpha: float) -> None:
    x, _, t = sample()
    theirs = Ridge(alpha=alpha).fit(x.numpy(), t.numpy())
    np.testing.assert_allclose(
        Linear.fit_ridge(x, t, alpha, free=None).raw(x), theirs.predict(x.numpy()), atol=1e-9
    )


def test_the_free_column_is_hardly_penalised() -> None:
    x, y, t = sample()
    scaled = x.clone()
    scaled[:, 0] *= FREEDOM
    theirs = LogisticRegression(C=0.01, tol=1e-10, max_iter=2000).fit(scaled.numpy(), y.numpy())
    ours = Linear.fit_logistic(x, y, 0.01)
    np.testing.assert_allclose(ours.raw(x), theirs.decision_function(scaled.numpy()), atol=1e-5)
    assert ours.weight[0] > 1.5 * Linear.fit_logistic(x, y, 0.01, free=None).weight[0]
    assert Linear.fit_ridge(x, t, 1000.0).weight[0] > 2 * Linear.fit_ridge(x, t, 1000.0, free=None).weight[0]


def test_degenerate_and_state() -> None:
    x, y, _ = sample(10)
    constant = Linear.fit_logistic(x, torch.ones(10, dtype=torch.bool), 1.0)
    torch.testing.assert_close(constant.raw(x).sigmoid(), torch.full((10,), 11 / 12).double())
    fitted = Linear.fit_logistic(x, y, 1.0)
    assert torch.equal(Linear.from_state(fitted.state()).raw(x), fitted.raw(x))
    assert fitted.raw(x[:0]).shape == (0,)
    with pytest.raises(ValueError, match="got 0"):
        Linear.fit_logistic(x[:0], y[:0], 1.0)
    with pytest.raises(ValueError, match="got 0"):
        Linear.fit_ridge(x[:0], y[:0].double(), 1.0)
