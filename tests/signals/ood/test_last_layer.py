"""ReAct, DICE, ASH-S, SCALE and fDBD against pytorch-ood and loops written from the formulas, on heads of levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special

from reliability_hooks.signals.ood.ash import ASH, SCALE, ash_s, scale, sharpening
from reliability_hooks.signals.ood.base import Rows
from reliability_hooks.signals.ood.fdbd import FDBD, boundary_norms, fdbd
from reliability_hooks.signals.ood.last_layer import LevelMean, head_energy, linear
from reliability_hooks.signals.ood.shaping import CLIP, DICE, DROP, ReAct

SCORES = (ReAct, DICE, ASH, SCALE, FDBD)
HEADS = ("softmax", "softmax+background", "sigmoid")


@pytest.fixture
def detector():
    return pytest.importorskip("pytorch_ood.detector")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(n: int, head: str = "softmax", levels: int = 2, classes: int = 5, width: int = 20, seed: int = 0) -> Rows:
    """SiLU inputs, so that some are negative."""
    z = torch.nn.functional.silu(random(n, width, seed=seed))
    weight, bias = random(levels, classes, width, seed=100), random(levels, classes, seed=101)
    which = torch.randint(levels, (n,), generator=torch.Generator().manual_seed(seed))
    logits = torch.stack([weight[k] @ x + bias[k] for k, x in zip(which, z, strict=True)]) if n else bias[:0]
    return Rows(torch.zeros(n, dtype=torch.int64), logits, head, None, z, weight, bias, which)  # type: ignore[arg-type]


def learnt(kind: type, train: Rows, images: int = 7):
    score = kind()
    if score.learns:
        for part in torch.arange(len(train)).chunk(images):
            score.learn(train[part])
        score.finish()
    return score


def naive_ash(z: np.ndarray, pruned: float, prune: bool) -> np.ndarray:
    k = len(z) - round(len(z) * pruned)
    largest = np.argsort(-z)[:k]
    kept = np.where(np.isin(np.arange(len(z)), largest), z, 0) if prune else z
    return kept * math.exp(z.sum() / z[largest].sum())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", SCORES)
def test_the_loop(kind: type, head: str) -> None:
    train, test = rows(80, head), rows(30, head, seed=1)
    w, b, known, level = (t.double().numpy() for t in train.require("weight", "bias", "inputs", "which"))
    expected = []
    for z, j in zip(test.inputs.double().numpy(), test.which.tolist(), strict=True):  # type: ignore[union-attr]
        of_level = known[level == j]
        kept = w[j]
        if kind is ReAct:
            z = np.minimum(z, np.quantile(of_level, CLIP))
        elif kind is DICE:
            share = of_level.mean(0) * w[j]
            kept = np.where(share > np.quantile(share, DROP), w[j], 0)
        elif kind is not FDBD:
            z = naive_ash(z, 0.9 if kind is ASH else 0.85, kind is ASH)
        f = kept @ z + b[j]
        if kind is FDBD:
            y = int(f.argmax())
            away = [(f[y] - f[c]) / np.linalg.norm(w[j][y] - w[j][c]) for c in range(5) if c != y]
            expected.append(-np.mean(away) / np.linalg.norm(z - of_level.mean(0)))
        else:
            expected.append(-np.logaddexp(0, f).sum() if head == "sigmoid" else -special.logsumexp(f))
    np.testing.assert_allclose(learnt(kind, train).score(test), expected, rtol=1e-4, atol=1e-5)


def of_pytorch_ood(detector, kind: type, train: Rows, test: Rows) -> torch.Tensor:
    """Its score of the test rows' inputs, which must be >= 0 and of one level."""
    z, x, w, b = train.inputs, test.inputs, train.weight[0], train.bias[0]  # type: ignore[index]
    head = torch.nn.Linear(*reversed(w.shape))
    head.load_state_dict({"weight": w, "bias": b})
    flat = lambda maps: head(maps.flatten(1))  # noqa: E731
    truth = torch.zeros(len(train), dtype=torch.int64)
    if kind is ReAct:
        return detector.ReAct(None, head, percentile=CLIP).fit_feature_maps(z, truth).predict_feature_maps(x)
    if kind is DICE:
        return detector.DICE(None, w, b, DROP).fit_features(z, truth).predict_features(x)
    if kind is FDBD:
        return detector.fDBD(None, head).fit_features(z).predict_features(x)
    other = detector.ASH(None, flat, percentile=0.9) if kind is ASH else detector.SCALE(None, flat, percentile=0.85)
    return other.predict_feature_maps(x[:, :, None, None])


def positive(given: Rows) -> Rows:
    """Rows of one level with inputs >= 0, as pytorch-ood has them; the logits made anew."""
    x = given.inputs.relu()  # type: ignore[union-attr]
    logits = x @ given.weight[0].T + given.bias[0]  # type: ignore[index]
    return Rows(given.classes, logits, "softmax", given.features, x, given.weight, given.bias, given.which)


@pytest.mark.parametrize("kind", SCORES)
def test_pytorch_ood(kind: type, detector) -> None:
    train, test = positive(rows(200, levels=1)), positive(rows(50, levels=1, seed=1))
    expected = of_pytorch_ood(detector, kind, train, test)
    torch.testing.assert_close(learnt(kind, train).score(test), expected, rtol=1e-4, atol=1e-5)


def test_sharpening_of_hostile_rows() -> None:
    """All zero, all negative, largest cancelling to 0, everything cancelling, and the largest factor there is."""
    z = torch.zeros(5, 20)
    z[1] = -0.2
    z[2, 0], z[2, 1:] = 1.0, -1.0  # two largest: 1 - 1 = 0
    z[3, :2], z[3, 2:] = 9.0, -1.0
    z[4] = 3.0
    before = z.clone()
    _, factor = sharpening(z, 0.9)
    torch.testing.assert_close(factor, torch.tensor([0, 0, 0, 1, math.exp(10)]))
    for shaped in (ash_s(z), scale(z)):
        assert shaped.isfinite().all()
        assert (shaped[:3] == 0).all()
    assert torch.equal(z, before)
    assert (ash_s(z)[3] != 0).sum() == 2
    assert (scale(z)[3] != 0).sum() == 20


@pytest.mark.parametrize("width", [1, 3, 9, 40])
@pytest.mark.parametrize("pruned", [0.0, 0.5, 0.9, 0.999])
def test_sharpening_stays_within_its_bound(width: int, pruned: float) -> None:
    z = torch.nn.functional.silu(random(200, width, seed=width))
    largest, factor = sharpening(z, pruned)
    assert largest.shape[1] >= 1
    assert (factor >= 0).all()
    assert (factor <= math.exp(width / largest.shape[1]) * 1.0001).all()


def test_linear_mean_and_energy() -> None:
    given = rows(40, levels=3)
    inputs, weight, bias, which = given.require("inputs", "weight", "bias", "which")
    torch.testing.assert_close(linear(inputs, weight, bias, which), given.logits, rtol=1e-5, atol=1e-5)
    mean = LevelMean()
    assert mean.mean.shape == (0, 0)
    for part in torch.arange(40).split(9):
        mean.update(inputs[part], which[part] * 2, 5)
    own = torch.stack([inputs[which == k].double().mean(0) for k in range(3)])
    torch.testing.assert_close(mean.mean[::2], own)
    torch.testing.assert_close(mean.mean[[1, 3]], inputs.double().mean(0).expand(2, -1))  # levels never seen
    f = random(4, 3)
    torch.testing.assert_close(head_energy(f, "softmax+background"), -f.logsumexp(1))
    torch.testing.assert_close(head_energy(f, "sigmoid"), -f.exp().log1p().sum(1))


@pytest.mark.parametrize("kind", SCORES)
def test_degenerate_data_is_defined(kind: type) -> None:
    for n, classes, width in ((1, 1, 1), (1, 5, 20), (2, 3, 1), (3, 1, 4)):
        score = learnt(kind, rows(n, levels=3, classes=classes, width=width), 1)
        test = rows(30, levels=3, classes=classes, width=width, seed=2)
        assert score.score(test).isfinite().all()  # two levels or more were never seen
        assert score.score(test[:0]).shape == (0,)
        assert score.score(learnt_rows := rows(n, levels=3, classes=classes, width=width)).isfinite().all()
        assert len(learnt_rows) == n
    still = rows(10)
    constant = Rows(still.classes, still.bias[still.which], "softmax", None,  # type: ignore[index]
                    torch.zeros(10, 20), still.weight, still.bias, still.which)  # fmt: skip
    assert learnt(kind, constant).score(constant).isfinite().all()


def test_classes_of_equal_weights_have_no_boundary() -> None:
    weight = random(1, 4, 30)
    weight[0, 2] = weight[0, 1]
    norms = boundary_norms(weight)
    assert norms[0].isinf().nonzero().tolist() == [[0, 0], [1, 1], [1, 2], [2, 1], [2, 2], [3, 3]]
    f, z = torch.tensor([[0.0, 5.0, 1.0, 2.0]]), torch.ones(1, 30)
    score = fdbd(f, z, torch.tensor([0]), torch.zeros(1, 30), norms)
    expected = -(5 / (weight[0, 1] - weight[0, 0]).norm() + 3 / (weight[0, 1] - weight[0, 3]).norm()) / 3 / 30**0.5
    assert score.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", [ReAct, DICE, FDBD])
def test_state_and_learning_anew(kind: type) -> None:
    score, test = learnt(kind, rows(60)), rows(20, seed=3)
    before = test.inputs.clone(), test.weight.clone()  # type: ignore[union-attr]
    first = score.score(test)
    again = kind()
    again.load_state(*score.state())
    torch.testing.assert_close(again.score(test), first, rtol=0, atol=0)
    other = rows(60, seed=8)
    score.learn(other)
    score.finish()
    torch.testing.assert_close(score.score(test), learnt(kind, other, 1).score(test), rtol=0, atol=0)
    assert not torch.equal(score.score(test), first)
    assert torch.equal(test.inputs, before[0])  # type: ignore[arg-type]
    assert torch.equal(test.weight, before[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="show more images"):
        kind().finish()


def test_react_samples_many_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliability_hooks.signals.ood.shaping.VALUES", 5000)
    train = rows(4000, levels=1)
    limit = learnt(ReAct, train, 40).tensors["limit"].item()
    assert train.inputs.le(limit).float().mean().item() == pytest.approx(CLIP, abs=4 * (0.09 / 5000) ** 0.5)  # type: ignore[union-attr]
