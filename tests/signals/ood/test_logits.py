"""Scores from logits against numpy/scipy in float64, pytorch-ood where it is installed, and hand-made extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from reliability_hooks.frame import Frame
from reliability_hooks.instances import Instances
from reliability_hooks.signals.ood import scores
from reliability_hooks.signals.ood.base import Rows
from reliability_hooks.signals.ood.gen_top import GENTop
from reliability_hooks.signals.ood.logits import LogitScores


def random_logits(n: int = 50, k: int = 8, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * scale


def signal(logits, head, labels=None, background=None) -> dict[str, torch.Tensor]:
    n = len(logits)
    labels = torch.zeros(n, dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    found = Instances(
        torch.zeros(n, 4), torch.ones(n), labels, logits=logits, head=head, background=background, image_size=(9, 9)
    )
    return {key.removeprefix("ood/logits/"): value for key, value in LogitScores()(Frame(found)).items()}


def naive_gen(f: np.ndarray, head: str, gamma: float, top: int) -> np.ndarray:
    """From the formula, with 1 - p as the sum of the others so that it does not round to 0."""
    rows = []
    for row in f:
        if head == "sigmoid":
            pairs = [(special.expit(x), special.expit(-x)) for x in row]
        else:
            p = special.softmax(row)
            pairs = [(p[i], np.delete(p, i).sum()) for i in range(len(p))]
        largest = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:top]  # q decides where p rounds to 1
        rows.append(sum((p * q) ** gamma for p, q in largest))
    return np.array(rows)


def close(got: torch.Tensor, expected: np.ndarray) -> None:
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 1000), st.sampled_from([0.1, 3.0, 30.0]))
def test_against_scipy(k: int, seed: int, scale: float) -> None:
    logits = random_logits(6, k, seed, scale)
    f = logits.double().numpy()
    p, q = special.softmax(f, 1), special.expit(f)
    close(scores.msp(logits, "softmax"), -p.max(1))
    close(scores.msp(logits, "sigmoid"), -q.max(1))
    close(scores.max_logit(logits), -f.max(1))
    close(scores.energy(logits), -special.logsumexp(f, 1))
    close(scores.energy(logits, temperature=2.5), -2.5 * special.logsumexp(f / 2.5, 1))
    close(scores.joint_energy(logits), -np.logaddexp(0, f).sum(1))
    close(scores.entropy(logits), stats.entropy(p, axis=1))
    close(scores.binary_entropy(logits), (special.entr(q) + special.entr(special.expit(-f))).sum(1))
    for head in ("softmax", "sigmoid"):
        for top in (1, 3, k):
            close(scores.gen(logits, head, 0.1, top), naive_gen(f, head, 0.1, top))
        close(scores.gen(logits, head, 0.5), naive_gen(f, head, 0.5, k))


def test_against_pytorch_ood() -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    logits = random_logits(200, 10, 1)
    torch.testing.assert_close(scores.msp(logits, "softmax"), detectors.MaxSoftmax.score(logits), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.max_logit(logits), detectors.MaxLogit.score(logits), rtol=1e-5, atol=1e-5)
    for t in (1.0, 3.0):
        torch.testing.assert_close(
            scores.energy(logits, temperature=t), detectors.EnergyBased.score(logits, t=t), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(scores.entropy(logits), detectors.Entropy.score(logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_rank_gen_is_the_mean_over_every_number_of_classes(head: str) -> None:
    f = torch.randn(20, 9, generator=torch.Generator().manual_seed(3)) * 4
    expected = torch.stack([scores.gen(f, head, 0.1, m) / m for m in range(1, 10)]).mean(0)
    torch.testing.assert_close(scores.rank_gen(f, head), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="gamma"):
        scores.rank_gen(f, head, gamma=0)


def test_gen_top_takes_a_tenth_of_the_classes() -> None:
    f = torch.randn(6, 31, generator=torch.Generator().manual_seed(3)) * 4
    got = GENTop().score(Rows(torch.zeros(6, dtype=torch.int64), f, "softmax"))
    torch.testing.assert_close(got, scores.gen(f, "softmax", 0.1, 3))
    one = GENTop().score(Rows(torch.zeros(6, dtype=torch.int64), f[:, :3], "sigmoid"))
    torch.testing.assert_close(one, scores.gen(f[:, :3], "sigmoid", 0.1, 1))


def test_gen_keeps_what_rounding_loses() -> None:
    """p = 1 - 1e-9: in float32 that is 1, and p (1 - p) would be 0."""
    logits = torch.tensor([[math.log(1e9), 0.0]])
    assert scores.gen(logits, "softmax").item() == pytest.approx(2 * 1e-9**0.1, rel=1e-3)
    assert scores.gen(torch.tensor([[math.log(1e9)]]), "sigmoid").item() == pytest.approx(1e-9**0.1, rel=1e-3)


def test_a_confident_row_is_less_out_of_distribution() -> None:
    sure, unsure = torch.tensor([[9.0, 0, 0, 0]]), torch.tensor([[0.5, 0.2, 0, 0]])
    for score in (lambda f: scores.msp(f, "softmax"), lambda f: scores.msp(f, "sigmoid"), scores.max_logit,
                  scores.energy, scores.joint_energy, scores.entropy, scores.binary_entropy,
                  lambda f: scores.gen(f, "softmax"), lambda f: scores.gen(f, "sigmoid")):  # fmt: skip
        assert score(sure).item() < score(unsure).item()


@pytest.mark.parametrize(
    ("score", "head", "right"),
    [
        (scores.energy, "sigmoid", "joint_energy"),
        (scores.entropy, "sigmoid", "binary_entropy"),
        (scores.joint_energy, "softmax", "use energy"),
        (scores.joint_energy, "softmax+background", "use energy"),
        (scores.binary_entropy, "softmax", "use entropy"),
    ],
)
def test_a_score_that_the_head_does_not_define_is_refused(score, head, right) -> None:
    with pytest.raises(ValueError, match=right):
        score(random_logits(), head)


def test_bad_settings_are_refused() -> None:
    f = random_logits()
    for call in (
        lambda: scores.energy(f, temperature=0),
        lambda: scores.gen(f, "softmax", gamma=1),
        lambda: scores.gen(f, "softmax", top=0),
        lambda: scores.max_logit(f[0]),
        lambda: scores.msp(f[:, :0], "softmax"),
        lambda: LogitScores()(Frame(Instances.empty())),
    ):
        with pytest.raises(ValueError):
            call()


EXTREMES = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [3.0, -math.inf, 1.0]])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_extreme_logits_are_safe(head: str, half: bool) -> None:
    logits = torch.cat([EXTREMES, torch.tensor([[1.0, math.nan, 0.0]])])
    for key, value in signal(logits.half() if half else logits, head).items():
        assert value[:4].isfinite().all(), key
        assert value[4].isnan(), key


def test_extreme_logits_in_the_functions() -> None:
    f = EXTREMES.double().numpy()
    close(scores.energy(EXTREMES), -special.logsumexp(f, 1))
    close(scores.joint_energy(EXTREMES), -np.logaddexp(0, f).sum(1))
    close(scores.entropy(EXTREMES), stats.entropy(special.softmax(f, 1), axis=1))
    close(scores.gen(EXTREMES, "softmax"), naive_gen(f, "softmax", 0.1, 3))
    close(scores.gen(EXTREMES, "sigmoid"), naive_gen(f, "sigmoid", 0.1, 3))


@pytest.mark.parametrize("head", ["softmax", "softmax+background", "sigmoid"])
def test_the_signal_equals_the_loop(head: str) -> None:
    logits, background = random_logits(40, 7, 3), 2 if head == "softmax+background" else None
    labels = torch.randint(7, (40,), generator=torch.Generator().manual_seed(1))
    got = signal(logits, head, labels, background)
    for i, row in enumerate(logits.double().numpy()):
        f = row if background is None else np.delete(row, background)
        p = special.expit(f) if head == "sigmoid" else special.softmax(f)
        own = row[labels[i]]
        if head == "sigmoid":
            energy, whole = -np.logaddexp(0, f).sum(), p.sum()
            entropy = (special.entr(p) + special.entr(1 - p)).sum()
        else:
            energy, entropy = -special.logsumexp(f), special.entr(p).sum()
            whole = 1 if background is None else 1 - special.softmax(row)[background]
        expected = {
            "msp": -p.max(), "max_logit": -f.max(), "energy": energy, "entropy": entropy,
            "gen": naive_gen(f[None], head, 0.1, 7)[0], "margin": np.sort(f)[-1] - np.sort(f)[-2],
            "label_logit": own, "label_rank": math.log(1 + sum(x > own for x in f)),
            "second_probability": np.sort(p)[-2], "logit_mean": f.mean(), "logit_std": f.std(),
            "probability_sum": whole,
        }  # fmt: skip
        assert set(expected) == set(got)
        for key, value in expected.items():
            assert got[key][i].item() == pytest.approx(value, rel=2e-5, abs=2e-5), key


def test_the_label_is_looked_up_in_all_logits() -> None:
    """Background first: dropping its column moves the others, but a label counts all of them."""
    logits = torch.tensor([[5.0, 1.0, 2.0], [0.0, 3.0, 1.0]])
    got = signal(logits, "softmax+background", [2, 2], background=0)
    assert got["label_logit"].tolist() == [2.0, 1.0]
    torch.testing.assert_close(got["label_rank"], torch.tensor([0.0, math.log(2)]))


def test_one_class_and_labels_that_are_no_column() -> None:
    got = signal(torch.tensor([[2.0], [-1.0]]), "sigmoid", [0, 5])
    assert {key for key, value in got.items() if value[0].isnan()} == {"margin", "second_probability"}
    assert got["label_logit"][1].isnan()
    assert got["label_rank"][1].isnan()
    assert got["msp"].isfinite().all()
