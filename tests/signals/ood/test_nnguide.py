"""NNGuide against pytorch-ood and a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from reliability_hooks.signals.ood import nnguide as module
from reliability_hooks.signals.ood.base import Rows
from reliability_hooks.signals.ood.nnguide import NNGuide, bank_rows, nnguide


def rows(n: int, head: str = "softmax", seed: int = 0) -> Rows:
    g = torch.Generator().manual_seed(seed)
    logits, features = torch.randn(n, 6, generator=g) * 3, torch.randn(n, 10, generator=g)
    return Rows(torch.zeros(n, dtype=torch.int64), logits, head, features)  # type: ignore[arg-type]


def learnt(train: Rows) -> NNGuide:
    score = NNGuide()
    for part in torch.arange(len(train)).split(13):
        score.learn(train[part])
    score.finish()
    return score


@pytest.mark.parametrize("head", ["softmax", "softmax+background", "sigmoid"])
@pytest.mark.parametrize("known", [1, 4, 60])
def test_the_loop(head: str, known: int) -> None:
    def strength(f: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, f).sum(-1) if head == "sigmoid" else special.logsumexp(f, -1)

    train, test = rows(known, head), rows(20, head, 1)
    given = *train.require("logits", "features"), *test.require("logits", "features")
    f, z, g, x = (t.double().numpy() for t in given)
    bank = z / np.linalg.norm(z, axis=1, keepdims=True) * strength(f)[:, None]
    expected = [
        -strength(logits) * np.sort(bank @ (feature / np.linalg.norm(feature)))[-10:].mean()
        for logits, feature in zip(g, x, strict=True)
    ]
    np.testing.assert_allclose(learnt(train).score(test), expected, rtol=1e-4, atol=1e-5)


def test_pytorch_ood() -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    layer = torch.nn.Linear(10, 6)
    with torch.no_grad():
        train, test = (Rows(r.classes, layer(r.features), "softmax", r.features) for r in (rows(80), rows(30, seed=1)))
    other = detectors.NNGuide(None, layer, k=10).fit_features(train.features, torch.zeros(80))
    torch.testing.assert_close(learnt(train).score(test), other.predict_features(test.features), rtol=1e-4, atol=1e-5)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = rows(50), rows(20, seed=1)
    score = learnt(train)
    whole = score.score(test)
    monkeypatch.setattr(module, "CHUNK", 3)
    torch.testing.assert_close(score.score(test), whole)


def test_the_bank_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 20)
    train = rows(300)
    bank = learnt(train).tensors["bank"]
    assert bank.shape == (20, 10)
    all_rows = bank_rows(train.logits, train.features, "softmax")  # type: ignore[arg-type]
    assert ((bank[:, None] - all_rows).abs().amax(2).amin(1) < 1e-5).all()


def test_degenerate_data_and_state() -> None:
    score, test = learnt(rows(3)), rows(7, seed=2)
    again = NNGuide()
    again.load_state(*score.state())
    torch.testing.assert_close(again.score(test), score.score(test), rtol=0, atol=0)
    assert score.score(test[torch.zeros(0, dtype=torch.int64)]).shape == (0,)
    nothing = Rows(test.classes, test.logits, "softmax", torch.zeros(7, 10))
    assert (score.score(nothing) == 0).all()
    score.learn(rows(9, seed=4))
    score.finish()
    torch.testing.assert_close(score.score(test), learnt(rows(9, seed=4)).score(test))
    with pytest.raises(ValueError, match="show more images"):
        NNGuide().finish()
    with pytest.raises(ValueError, match="bank"):
        nnguide(test.logits, test.features, "softmax", torch.zeros(0, 10))  # type: ignore[arg-type]


def test_a_layer_of_the_backbone_can_be_read() -> None:
    assert NNGuide("late").name == "ood/nnguide@late"
    assert "maps" in NNGuide("late").requires
    with pytest.raises(ValueError, match="layer"):
        NNGuide("top")
