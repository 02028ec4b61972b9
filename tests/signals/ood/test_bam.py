"""Box abstraction monitors against loops over boxes and the yes-or-no monitor of the paper."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from reliability_hooks.signals.ood.bam import BOXES, BoxAbstraction, enlargement, least_enlargement, tight_boxes
from reliability_hooks.signals.ood.base import Rows


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def known(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes, the first of two lumps."""
    y = torch.arange(n) % 2 * 5
    lump = torch.where(torch.arange(n) % 4 == 0, 20.0, 0.0)
    return random(n, 4, seed=seed) + y[:, None] * 10 + lump[:, None] * (y == 0)[:, None], y


def taught(z: Tensor, y: Tensor) -> BoxAbstraction:
    score = BoxAbstraction()
    for rows, classes in zip(torch.split(z, 11), torch.split(y, 11), strict=True):
        score.learn(Rows(classes, features=rows))
    score.finish()
    return score


def test_enlargement_is_the_least_that_takes_the_row_in() -> None:
    low, high, scale, z = random(1, 3, 4) - 1, random(1, 3, 4) + 2, random(4, seed=2).abs() + 0.1, 3 * random(30, 4)
    got = enlargement(z, low, high, scale)

    def inside(by: Tensor) -> Tensor:
        grown = by[:, :, None] * scale
        return ((z[:, None] >= low - grown) & (z[:, None] <= high + grown)).all(2)

    assert inside(got + 1e-4).all()
    assert not inside(got - 1e-4).any()
    assert (got < 0).any()
    assert (got > 0).any()


def test_lumps_have_boxes_of_their_own() -> None:
    z, y = known(200, 0)
    low, high = tight_boxes(z[y == 0], torch.ones(4))
    assert len(low) == BOXES
    between = torch.full((1, 4), 10.0)
    assert enlargement(between, low[None], high[None], torch.ones(4)).amin() > 3
    assert (enlargement(z[y == 0], low[None], high[None], torch.ones(4)).amin(1) <= 0).all()


def test_score_is_the_loop_over_the_boxes_of_the_predicted_class() -> None:
    score = taught(*known(400, 0))
    z, y = known(60, 1)
    y[:7] = 3  # a class that was never seen: the boxes of all
    t = score.tensors
    expected = []
    for row, c in zip(z, y.tolist(), strict=True):
        own = range(len(t["low"])) if c == 3 else [i for i in t["of"][t["ids"].tolist().index(c)].tolist() if i >= 0]
        expected.append(min(
            (torch.maximum(t["low"][i] - row, row - t["high"][i]) / t["scale"]).max() - t["margin"][i] for i in own
        ))
    torch.testing.assert_close(score.score(Rows(y, features=z)), torch.stack(expected))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reliability_hooks.signals.ood.bam.CELLS", 1)  # every row by itself
        torch.testing.assert_close(score.score(Rows(y, features=z)), torch.stack(expected))


def test_one_in_twenty_known_objects_lies_outside_and_unknown_ones_do() -> None:
    score = taught(*known(600, 0))
    z, y = known(2000, 1)
    assert 0.01 < (score.score(Rows(y, features=z)) > 0).float().mean() < 0.12
    assert (score.score(Rows(y, features=torch.full_like(z, 10.0))) > 0).all()
    assert (score.score(Rows(5 - y, features=z)) > 0).all()  # taken for the other class


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("constant", [False, True])
def test_few_rows_and_constant_features_are_ordinary(rows: int, constant: bool) -> None:
    z = torch.full((rows, 6), 0.5) if constant else random(rows, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = taught(z, torch.arange(rows) // 2 * 3)
        got = score.score(Rows(torch.tensor([0, -1, 900, 0]), features=torch.cat([z[:1]] * 3 + [z[:1] + 9])))
    assert got.isfinite().all()
    assert (got[:3] <= 0).all()
    assert got[3] > 1


def test_state_empty_and_learning_anew() -> None:
    (z, y), (test, labels) = known(100, 0), known(20, 1)
    score, again = taught(z, y), BoxAbstraction("late")
    again.load_state(*score.state())
    rows = Rows(labels, features=test)
    assert torch.equal(score.score(rows), again.score(rows))
    assert score.score(rows[labels < 0]).shape == (0,)
    with pytest.raises(ValueError, match="no detections to learn"):
        BoxAbstraction().finish()
    score.learn(Rows(y, features=z + 1))
    score.finish()
    fresh = BoxAbstraction()
    fresh.learn(Rows(y, features=z + 1))
    fresh.finish()
    torch.testing.assert_close(score.tensors, fresh.tensors)


def test_no_box_can_be_missed_by_name() -> None:
    """Classes below, between and above those with boxes all take the nearest box of any."""
    low, high = torch.tensor([[0.0], [10.0]]), torch.tensor([[1.0], [11.0]])
    got = least_enlargement(
        torch.full((5, 1), 12.0), torch.tensor([-1, 2, 3, 5, 9]), low, high, torch.tensor([0.0, 0.5]), torch.ones(1),
        torch.tensor([2, 5]), torch.tensor([[0, -1], [1, -1]]),
    )
    torch.testing.assert_close(got, torch.tensor([0.5, 11.0, 0.5, 0.5, 0.5]))
