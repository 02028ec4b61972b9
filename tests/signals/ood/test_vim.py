"""ViM against pytorch-ood and a loop over rows and levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from reliability_hooks.signals.ood.base import Rows
from reliability_hooks.signals.ood.vim import ViM, dimension, origins

D, K = 20, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(z: Tensor, weight: Tensor, bias: Tensor, head: str = "softmax", which: Tensor | None = None) -> Rows:
    which = torch.arange(len(z)) % len(weight) if which is None else which
    logits = (weight[which] @ z[:, :, None]).squeeze(2) + bias[which]
    return Rows(logits.argmax(1), logits, head, None, z, weight, bias, which)  # type: ignore[arg-type]


def inputs(n: int, seed: int) -> Tensor:
    return (random(n, D, seed=seed) @ random(D, D, seed=50) / 3 + 1).relu()


def taught(given: Rows, batch: int = 9) -> ViM:
    score = ViM()
    for at in torch.split(torch.arange(len(given)), batch):
        score.learn(given[at])
    score.finish()
    return score


def test_is_that_of_pytorch_ood() -> None:
    detector = pytest.importorskip("pytorch_ood.detector")
    weight, bias = random(1, K, D, seed=3), random(1, K, seed=4)
    train, test = inputs(500, 1), torch.cat([inputs(50, 2), 4 * random(50, D, seed=6)])
    theirs = detector.ViM(None, D // 2, weight[0], bias[0]).fit_features(train, torch.zeros(500))
    score = taught(rows(train, weight, bias))
    assert score.tensors["alpha"].item() == pytest.approx(theirs.alpha, rel=1e-4)
    torch.testing.assert_close(
        score.score(rows(test, weight, bias)), theirs.predict_features(test), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_levels_share_a_space_about_their_own_origins(head: str) -> None:
    weight, bias = random(3, K, D, seed=3), random(3, K, seed=4)
    train, test = rows(inputs(300, 1), weight, bias, head), rows(inputs(40, 2), weight, bias, head)
    w, b = weight.double().numpy(), bias.double().numpy()
    origin = [-np.linalg.pinv(w[i]) @ b[i] for i in range(3)]

    def centred(given: Rows) -> np.ndarray:
        pairs = zip(given.inputs.double().numpy(), given.which.tolist(), strict=True)  # type: ignore[union-attr]
        return np.stack([z - origin[i] for z, i in pairs])

    f, g = train.logits.double().numpy(), test.logits.double().numpy()  # type: ignore[union-attr]
    x = centred(train)
    null = np.linalg.eigh(x.T @ x)[1][:, : D - D // 2]
    if head == "sigmoid":
        level, evidence = np.logaddexp(0, f).sum(1).mean(), np.logaddexp(0, g).sum(1)
    else:
        level, evidence = f.max(1).mean(), special.logsumexp(g, 1)
    alpha = level / np.linalg.norm(x @ null, axis=1).mean()
    expected = alpha * np.linalg.norm(centred(test) @ null, axis=1) - evidence
    np.testing.assert_allclose(taught(train).score(test).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_logits_at_the_origin_are_nearest_to_0() -> None:
    weight, bias = random(2, K, D, seed=3), random(2, K, seed=4)
    assert torch.allclose((weight @ origins(weight, bias)[:, :, None]).squeeze(2) + bias, torch.zeros(2, K), atol=1e-5)
    rank_one = random(1, K, 1) @ random(1, 1, D, seed=1)
    expected = np.linalg.lstsq(rank_one[0].double().numpy(), -bias[0].double().numpy(), rcond=1e-6)[0]
    np.testing.assert_allclose(origins(rank_one, bias[:1])[0].numpy(), expected, atol=1e-5)


def test_dimension_of_the_principal_space() -> None:
    assert [dimension(d) for d in (1, 2, 257, 767, 768, 1024, 2047, 2048, 4096)] == [
        0, 1, 128, 383, 512, 512, 512, 1000, 1000,
    ]


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("make", [torch.zeros, torch.ones, lambda n, d: random(n, d)])
def test_few_rows_and_constant_inputs_are_ordinary(head: str, n: int, make) -> None:
    weight, bias = random(1, K, D, seed=3), random(1, K, seed=4) - 5
    score = taught(rows(make(n, D), weight, bias, head))
    assert score.tensors["alpha"] >= 0  # also where no logit is above 0
    assert score.score(rows(random(4, D, seed=8), weight, bias, head)).isfinite().all()


def test_the_smallest_classifier_and_no_bias_at_all() -> None:
    weight, bias = torch.ones(1, 1, 1), torch.zeros(1, 1)
    score = taught(rows(torch.zeros(3, 1), weight, bias))
    assert score.tensors["alpha"] == 0
    torch.testing.assert_close(score.score(rows(torch.tensor([[2.0]]), weight, bias)), torch.tensor([-2.0]))


def test_state_empty_and_learning_anew() -> None:
    weight, bias = random(2, K, D, seed=3), random(2, K, seed=4)
    test = rows(inputs(20, 2), weight, bias)
    score, again = taught(rows(inputs(200, 1), weight, bias)), ViM()
    again.load_state(*score.state())
    assert torch.equal(score.score(test), again.score(test))
    assert score.score(test[torch.zeros(0, dtype=torch.int64)]).shape == (0,)
    with pytest.raises(ValueError, match="no detections to learn"):
        ViM().finish()
    other = rows(inputs(200, 7), weight * 2, bias + 1)
    score.learn(other)
    score.finish()
    torch.testing.assert_close(score.tensors, taught(other, 200).tensors)
