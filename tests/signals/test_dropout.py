from __future__ import annotations

from math import nan

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks.frame import Candidates, Frame, View
from reliability_hooks.instances import Head, Instances
from reliability_hooks.signals.dropout import PASSES, Dropout, mutual_information

BOX = [10.0, 10.0, 30.0, 30.0]  # in the view, which has two pixels for each of the image's


def entropy(p: np.ndarray) -> float:
    return float(-sum(x * np.log(x) for x in p if x > 0))


def naive(p: np.ndarray, exclusive: bool) -> list[float]:
    """Entropy of the mean minus mean entropy, one object after the other."""
    out = []
    for n in range(p.shape[1]):
        if exclusive:
            passes = [np.append(q / max(q.sum(), 1), max(1 - q.sum(), 0)) for q in p[:, n]]
            out.append(entropy(np.mean(passes, 0)) - float(np.mean([entropy(q) for q in passes])))
        else:
            total = 0.0
            for k in range(p.shape[2]):
                passes = [np.array([q, 1 - q]) for q in p[:, n, k]]
                total += entropy(np.mean(passes, 0)) - float(np.mean([entropy(q) for q in passes]))
            out.append(total)
    return out


def kept(head: Head = "sigmoid", classes: int = 3, n: int = 1) -> Instances:
    return Instances(torch.tensor([BOX]).expand(n, 4) / 2, torch.full((n,), 0.5), torch.ones(n, dtype=torch.int64),
                     logits=torch.zeros(n, classes), head=head, background=0 if head == "softmax+background" else None,
                     image_size=(50, 50))


def frame(instances: Instances, answers: list[Candidates]) -> Frame:
    def rerun(pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        assert dropout
        assert pixels.shape == (PASSES, 3, 100, 100)
        torch.rand(3)  # as a dropout layer does
        return answers

    return Frame(instances, View(torch.zeros(3, 100, 100), scale=(2.0, 2.0)), rerun=rerun, dropout=True)


def raw(scores: list[float], labels: list[int], boxes: list[list[float]] | None = None) -> Candidates:
    return Candidates(torch.tensor(boxes or [BOX] * len(scores)), torch.tensor(scores), torch.tensor(labels))


@pytest.mark.parametrize("exclusive", [True, False])
def test_mutual_information(exclusive: bool) -> None:
    p = torch.rand(PASSES, 20, 4, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 1, 20)[:, None]
    p[:, 3, 1] = 0
    p[:, 4] = 1
    assert exclusive is False or (p.sum(2) > 1).any()
    got = mutual_information(p, exclusive)
    assert np.allclose(got.numpy(), naive(p.double().numpy(), exclusive), atol=1e-5)
    assert (got >= 0).all()
    assert mutual_information(p[:1].expand(PASSES, -1, -1), exclusive).max() < 1e-6  # nothing differs
    certain = torch.eye(2)[torch.arange(PASSES) % 2][:, None]  # two classes by turns, each with certainty
    expected = np.log(2) * (1 if exclusive else 2)
    assert mutual_information(certain, exclusive).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("head", ["sigmoid", "softmax", "softmax+background"])
def test_columns(head: Head) -> None:
    """The best raw box of each class at the same place counts; what lies elsewhere, or is weaker, does not."""
    rng = np.random.default_rng(0)
    own, other = rng.uniform(0.3, 0.6, PASSES), rng.uniform(0.02, 0.3, PASSES)
    other[3] = 0
    away, shifted = [60.0, 60.0, 90.0, 90.0], [14.0, 10.0, 34.0, 30.0]  # the second: IoU 2/3
    beside = [22.0, 10.0, 42.0, 30.0]  # IoU 1/4
    answers = [
        raw([0.2, float(a), 0.9, 0.95, *([float(b)] if b else [])], [1, 1, 1, 1, *([2] if b else [])],
            [BOX, shifted, away, beside, *([BOX] if b else [])])
        for a, b in zip(own, other, strict=True)
    ]
    out = Dropout()(frame(kept(head), answers))
    p = np.stack([np.zeros(PASSES), own, other], 1)
    classes = p[:, 1:] if head == "softmax+background" else p
    assert out["dropout/mutual_information"].item() == pytest.approx(naive(p[:, None], head != "sigmoid")[0], abs=1e-5)
    assert out["dropout/variance"].item() == pytest.approx(classes.var(0).mean(), abs=1e-6)
    assert out["dropout/score_mean"].item() == pytest.approx(own.mean(), abs=1e-5)
    assert out["dropout/score_std"].item() == pytest.approx(own.std(), abs=1e-5)


def test_without_logits_the_classes_are_those_seen() -> None:
    bare = kept().replace(logits=None, head=None)
    answers = [raw([0.5, 0.4 if i % 2 else 0.2], [1, 6]) for i in range(PASSES)]
    out = Dropout()(frame(bare, answers))
    assert out["dropout/variance"].item() == pytest.approx(0.01 / 7, abs=1e-6)
    assert out["dropout/mutual_information"] > 0


def test_an_object_that_no_pass_finds() -> None:
    out = Dropout()(frame(kept(), [Candidates.empty()] * PASSES))
    assert all(value.item() == 0 for value in out.values())


def test_what_is_not_finite_has_no_answer() -> None:
    four = kept(n=4)
    boxes, scores = four.boxes.clone(), four.scores.clone()
    boxes[0], boxes[1, 2], scores[2] = nan, torch.inf, nan
    out = Dropout()(frame(four.replace(boxes=boxes, scores=scores), [raw([0.5], [1])] * PASSES))
    for value in out.values():
        assert value[:3].isnan().all()
        assert value[3].isfinite()


def test_the_users_random_numbers_are_left_alone() -> None:
    drawn: list[Tensor] = []

    def rerun(pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        drawn.append(torch.rand(5))
        return [raw([0.5], [1])] * PASSES

    given = Frame(kept(), View(torch.zeros(3, 100, 100)), rerun=rerun, dropout=True)
    torch.manual_seed(7)
    expected = torch.rand(3)
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        Dropout()(given)
        assert torch.equal(torch.rand(3), expected) == (seed == 7)
        assert torch.initial_seed() == seed
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])

    def failing(pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        torch.rand(5)
        raise ArithmeticError

    torch.manual_seed(7)
    with pytest.raises(ArithmeticError):
        Dropout()(Frame(kept(), given.view, rerun=failing, dropout=True))
    assert torch.equal(torch.rand(3), expected)


def test_without_dropout_it_is_skipped() -> None:
    given = frame(kept(), [Candidates.empty()] * PASSES)
    without = Frame(given.instances, given.view, rerun=given.rerun)
    assert Dropout().missing(given) == []
    assert Dropout().missing(without) == ["dropout"]
    with pytest.raises(ValueError, match="no dropout"):
        Dropout()(without)


def test_a_device_whose_generator_cannot_be_put_back() -> None:
    given = frame(kept(), [Candidates.empty()] * PASSES)
    there = Frame(given.instances, View(torch.zeros(3, 100, 100, device="meta")), rerun=given.rerun, dropout=True)
    with pytest.raises(ValueError, match="cannot be put back"):
        Dropout()(there)
