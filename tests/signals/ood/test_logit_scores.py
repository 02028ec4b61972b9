"""KL matching, temperature and GradNorm against pytorch-ood, scipy, autograd and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from reliability_hooks.frame import Frame
from reliability_hooks.instances import Instances
from reliability_hooks.signals.ood.base import Rows
from reliability_hooks.signals.ood.gradnorm import gradnorm
from reliability_hooks.signals.ood.kl_matching import KLMatching, kl_matching, posteriors
from reliability_hooks.signals.ood.temperature import RANGE, TemperatureMSP, fit_temperature, temperature_msp


@pytest.fixture
def detector():
    return pytest.importorskip("pytorch_ood.detector")


def random(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def matched(train: torch.Tensor, test: torch.Tensor, head: str, labels: torch.Tensor | None = None) -> torch.Tensor:
    score = KLMatching()
    labels = train.argmax(1) if labels is None else labels
    for logits, classes in zip(train.split(17), labels.split(17), strict=True):
        score.learn(Rows(classes, logits, head))  # type: ignore[arg-type]
    score.finish()
    return score.score(Rows(test.argmax(1), test, head))  # type: ignore[arg-type]


def test_kl_matching_is_that_of_pytorch_ood(detector) -> None:
    train, test = random(300, 8), random(100, 8, seed=1)
    expected = detector.KLMatching(None).fit_logits(train).predict_logits(test)
    torch.testing.assert_close(matched(train, test, "softmax"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_kl_matching_is_the_loop(head: str) -> None:
    """Labels that are not the largest logit, a class of one row, classes never predicted, labels that are no class."""
    train, test = random(60, 6, seed=2), random(20, 6, seed=3)
    labels = torch.tensor([0, 1, 1, 4, -1] * 12)
    labels[7] = 5
    f, g = train.double().numpy(), test.double().numpy()
    p, q = (special.expit(f), special.expit(g)) if head == "sigmoid" else (special.softmax(f, 1), special.softmax(g, 1))
    expected = []
    for row in q:
        values = []
        for k in (0, 1, 4, 5):
            d = p[labels.numpy() == k].mean(0)
            if head == "sigmoid":
                values.append(np.mean([stats.entropy([a, 1 - a], [b, 1 - b]) for a, b in zip(row, d, strict=True)]))
            else:
                values.append(stats.entropy(row, d))
        expected.append(min(values))
    np.testing.assert_allclose(matched(train, test, head, labels), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_kl_matching_of_extremes_is_finite(head: str) -> None:
    train = torch.tensor([[500.0, -500.0, 0.0]] * 2)
    score = matched(train, torch.tensor([[-500.0, 500.0, 0.0], [500.0, -500.0, 0.0], [0.0, 0.0, 0.0]]), head)
    assert score.isfinite().all()
    assert score[1] == score.min() < 1e-6
    assert score[0] > 20


def test_kl_matching_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="typical"):
        kl_matching(random(2, 3), "softmax", torch.zeros(0, 3))
    with pytest.raises(ValueError, match="typical"):
        kl_matching(random(2, 3), "sigmoid", torch.zeros(1, 3))
    assert posteriors(random(2, 3), "sigmoid").shape == (2, 6)
    score = KLMatching()
    score.learn(Rows(torch.tensor([-1]), random(1, 3), "softmax"))
    with pytest.raises(ValueError, match="show more images"):
        score.finish()


def sample(n: int, head: str, true: float = 2.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose right temperature is `true` for a softmax head."""
    logits = random(n, 7)
    g = torch.Generator().manual_seed(5)
    truth = (logits / true).softmax(1).multinomial(1, generator=g).squeeze(1)
    return logits, truth


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_temperature_is_the_minimum_of_the_likelihood(head: str) -> None:
    logits, truth = sample(2000, head)
    f, y = logits.double().numpy(), np.eye(7)[truth.numpy()]

    def nll(log_t: float) -> float:
        scaled = f / np.exp(log_t)
        if head == "sigmoid":
            return (np.logaddexp(0, scaled) - y * scaled).sum()
        return -(y * special.log_softmax(scaled, 1)).sum()

    expected = np.exp(optimize.minimize_scalar(nll, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-9}).x)
    found = fit_temperature(logits, truth, head)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=1e-5)
    if head == "softmax":
        assert found == pytest.approx(2.5, rel=0.1)


def test_temperature_at_the_ends_of_its_range() -> None:
    logits = random(50, 4)
    assert fit_temperature(logits, logits.argmax(1), "softmax") == pytest.approx(RANGE[0], rel=1e-6)
    assert fit_temperature(logits, logits.argmin(1), "softmax") == pytest.approx(RANGE[1], rel=1e-6)
    for rows, truth in ((logits[:0], torch.zeros(0, dtype=torch.int64)), (logits[:1], torch.tensor([4]))):
        with pytest.raises(ValueError):
            fit_temperature(rows, truth, "softmax")


def test_temperature_scaled_msp_is_that_of_pytorch_ood(detector) -> None:
    """Its L-BFGS stops before the optimum, so the scores are compared at its temperature and ours is the likelier."""
    logits, truth = sample(1000, "softmax")
    other = detector.TemperatureScaling(None).fit_logits(logits, truth)
    theirs, ours = other.t.item(), fit_temperature(logits, truth, "softmax")
    expected = other.predict_logits(logits).detach()
    torch.testing.assert_close(temperature_msp(logits, "softmax", theirs), expected, rtol=1e-4, atol=1e-6)
    loss = [torch.nn.functional.cross_entropy(logits / t, truth) for t in (ours, theirs)]
    assert loss[0] <= loss[1] + 1e-7


@pytest.mark.parametrize("head", ["softmax", "softmax+background", "sigmoid"])
def test_temperature_is_learnt_from_the_truth(head: str) -> None:
    """Wrong labels count too; with background at 0, a class number is not the column of the logits without it."""
    logits, truth = sample(300, head)
    background = 0 if head == "softmax+background" else None
    full = torch.cat([random(300, 1, seed=9), logits], 1) if background == 0 else logits
    named = truth + 1 if background == 0 else truth
    named[::10] = -1
    score, without = TemperatureMSP(), TemperatureMSP()
    for part in torch.arange(300).split(40):
        found = Instances(torch.zeros(len(part), 4), torch.zeros(len(part)), torch.ones(len(part), dtype=torch.int64),
                          logits=full[part], head=head, background=background)  # type: ignore[arg-type]
        score.update(Frame(found.with_columns({"truth": named[part]})))
        without.update(Frame(found))
    score.finish()
    without.finish()
    known = torch.arange(300) % 10 != 0
    kind = "softmax" if background == 0 else head
    expected = fit_temperature(logits[known], truth[known], kind)  # type: ignore[arg-type]
    assert score.tensors["temperature"].item() == pytest.approx(expected, rel=1e-5)
    assert without.tensors["temperature"].tolist() == [1.0]
    rows = Rows(logits.argmax(1), logits, head)  # type: ignore[arg-type]
    p = logits.sigmoid() if head == "sigmoid" else logits.softmax(1)
    torch.testing.assert_close(without.score(rows), -p.amax(1))
    if head == "sigmoid":  # the ranking is that of MSP
        assert torch.equal(score.score(rows).argsort(), without.score(rows).argsort())


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_gradnorm_is_the_gradient(head: str) -> None:
    layer, z = torch.nn.Linear(9, 5), random(12, 9)
    expected = []
    for row in z:
        f = layer(row)
        if head == "sigmoid":
            loss = torch.nn.functional.binary_cross_entropy_with_logits(f, torch.full((5,), 0.5), reduction="sum")
        else:
            loss = -f.log_softmax(0).mean()
        (gradient,) = torch.autograd.grad(loss, [layer.weight])
        expected.append(-gradient.abs().sum())
    found = gradnorm(layer(z).detach(), z, head)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_gradnorm_is_that_of_pytorch_ood(detector) -> None:
    layer, z = torch.nn.Linear(9, 5), random(12, 9)
    theirs = detector.GradNorm(layer, lambda name: name == "weight").predict(z)
    torch.testing.assert_close(gradnorm(layer(z).detach(), z, "softmax"), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_none_and_one_class(head: str) -> None:
    assert gradnorm(torch.zeros(0, 3), torch.zeros(0, 4), head).shape == (0,)  # type: ignore[arg-type]
    assert gradnorm(torch.zeros(2, 1), torch.ones(2, 4), head).tolist() == [0, 0]  # type: ignore[arg-type]
    assert temperature_msp(torch.zeros(0, 3), head, 2.0).shape == (0,)  # type: ignore[arg-type]
    assert matched(random(5, 1), random(0, 1), head).shape == (0,)
    assert matched(random(5, 1), random(3, 1), head).shape == (3,)
