"""Effects by Bayesian regression: scikit-learn's Gaussian process is the oracle; a planted effect is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reliability_hooks.explain import effects as module
from reliability_hooks.explain.effects import effects


def drawn(n: int = 60, h: int = 9, w: int = 11, rows: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Masks, the true effects, answers with a little noise."""
    g = torch.Generator().manual_seed(seed)
    masks = (torch.rand(n, h, w, generator=g) < 0.5).float()
    true = torch.zeros(rows, h, w)
    for k in range(rows):
        true[k, 2 + 3 * k : 5 + 3 * k, 3:6] = 0.1
    answers = 0.2 + torch.einsum("nhw,rhw->nr", masks, true) + 0.005 * torch.randn(n, rows, generator=g)
    return masks, true, answers


def test_the_posterior_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one choice of the constants, the same kernel given to a dense Gaussian process, whose mean and deviation at
    masks that keep a single place are those of the effects."""
    gp = pytest.importorskip("sklearn.gaussian_process")
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    masks, _, answers = drawn(rows=1)
    n, h, w = masks.shape
    length, tau, noise = 0.2, 3.0, 0.1
    for name, value in (("LENGTHS", (length,)), ("TAUS", (tau,)), ("NOISES", (noise,))):
        monkeypatch.setattr(module, name, value)
    g = torch.Generator().manual_seed(4)
    amplitude, shapes = torch.rand(1, h, w, generator=g) + 0.1, torch.rand(1, 2, h, w, generator=g)
    found = effects(answers, masks.double(), [amplitude], shapes)

    x = (masks - masks.mean(0)).flatten(1).double().numpy()
    a = (amplitude[0] / amplitude.max()).flatten().double().numpy()
    y_, x_ = np.indices((h, w)).reshape(2, -1)
    bell = np.exp(-0.5 * (((y_[:, None] - y_) / (length * h)) ** 2 + ((x_[:, None] - x_) / (length * w)) ** 2))
    prior = bell * np.outer(a, a)
    prior /= np.diag(x @ prior @ x.T).mean()
    for shape in shapes[0].flatten(1).double().numpy():
        prior += tau * np.outer(shape, shape) / np.square(x @ shape).mean()

    class Linear(kernels.DotProduct):  # type: ignore[misc]  # scikit-learn has no types
        def __call__(self, a: np.ndarray, b: np.ndarray | None = None, eval_gradient: bool = False) -> np.ndarray:
            return a @ prior @ (a if b is None else b).T  # type: ignore[no-any-return]

        def diag(self, a: np.ndarray) -> np.ndarray:
            return np.einsum("ij,jk,ik->i", a, prior, a)  # type: ignore[no-any-return]

    y = (answers[:, 0] - answers[:, 0].mean()).double().numpy()
    process = gp.GaussianProcessRegressor(Linear(), alpha=noise, optimizer=None).fit(x, y)
    mean, deviation = process.predict(np.eye(h * w), return_std=True)
    covariance = x @ prior @ x.T + noise * np.eye(n)
    scale = y @ np.linalg.solve(covariance, y) / n
    np.testing.assert_allclose(found.mean.flatten(), mean, atol=1e-6)
    np.testing.assert_allclose(found.error.flatten(), deviation * np.sqrt(scale), rtol=1e-4)
    evidence = -0.5 * (np.linalg.slogdet(covariance)[1] + n * np.log(scale))
    assert float(found.evidence) == pytest.approx(evidence, rel=1e-6)


def test_a_planted_effect_is_found_and_the_error_says_where_nothing_is_known() -> None:
    masks, true, answers = drawn(n=200)
    masks[:, :, -2:] = 1.0  # never hidden: nothing can be known of it
    flat, none = torch.ones_like(true), torch.zeros(2, 0, *true.shape[1:])
    found = effects(answers, masks, [flat], none)
    for k in range(2):
        inside = true[k] > 0
        assert float(found.mean[k][inside].mean()) == pytest.approx(0.1, abs=0.03)
        assert float(found.mean[k][~inside].abs().mean()) < 0.02
        assert float(found.error[k][:, -1].mean()) > float(found.error[k][:, :7].mean())


def test_a_good_shape_is_believed_and_a_wrong_one_is_not() -> None:
    masks, true, answers = drawn(n=40)
    flat = torch.ones_like(true)
    none = torch.zeros(2, 0, *true.shape[1:])
    bare, right, wrong = (
        effects(answers, masks, [flat], shapes) for shapes in (none, true[:, None], true.flip(1)[:, None])
    )
    error = [float((found.mean - true).abs().mean()) for found in (bare, right, wrong)]
    assert error[1] < 0.5 * error[0]
    assert error[2] < 1.3 * error[0]
    assert bool((right.evidence > bare.evidence).all())


def test_the_evidence_chooses_the_amplitude() -> None:
    masks, true, answers = drawn(n=40)
    none = torch.zeros(2, 0, *true.shape[1:])
    both = effects(answers, masks, [torch.ones_like(true), 0.05 + true], none)
    alone = effects(answers, masks, [0.05 + true], none)
    torch.testing.assert_close(both.mean, alone.mean)


def test_rows_do_not_depend_on_each_other_nor_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, true, answers = drawn(rows=2)
    shapes = true[:, None].flip(0)
    whole = effects(answers, masks, [torch.ones_like(true)], shapes)
    monkeypatch.setattr(module, "NUMBERS", 1)
    torch.testing.assert_close(effects(answers, masks, [torch.ones_like(true)], shapes).mean, whole.mean)


def test_what_never_changes_has_no_effect_and_what_is_not_known_stays_so() -> None:
    masks, true, answers = drawn(rows=2)
    answers[:, 0] = 0.7
    answers[3, 1] = torch.nan
    found = effects(answers, masks, [torch.ones_like(true)], true[:, None])
    assert bool((found.mean[0] == 0).all())
    assert bool((found.error[0] == 0).all())
    assert bool(found.mean[1].isnan().all())
    assert bool(found.error[1].isnan().all())
    empty = effects(answers[:, :0], masks, [true[:0]], true[:0, None])
    assert empty.mean.shape == (0, 9, 11)
    assert empty.evidence.shape == (0,)
