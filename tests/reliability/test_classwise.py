from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from reliability_hooks.reliability.calibrators import METHODS, Platt, logit
from reliability_hooks.reliability.classwise import Classwise, TargetCalibrators
from reliability_hooks.reliability.state import StateError
from reliability_hooks.reliability.targets import targets

PARENTS = {0: 10, 1: 10, 2: 11, 3: 11}


def sample(n: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, right ones and labels; classes 0 and 1 are worse than their scores say, 2 and 3 better."""
    g = torch.Generator().manual_seed(seed)
    scores, labels = torch.rand(n, generator=g).double(), torch.randint(4, (n,), generator=g)
    z = logit(scores) + torch.tensor([-1.5, -1.0, 1.0, 1.5]).double()[labels]
    return scores, torch.rand(n, generator=g).double() < z.sigmoid(), labels


def map_estimate(z: np.ndarray, t: np.ndarray, strength: float) -> np.ndarray:
    def loss(theta: np.ndarray) -> float:
        u = theta[0] * z + theta[1]
        return float((np.logaddexp(0, u) - t * u).sum() + strength / 2 * ((theta[0] - 1) ** 2 + theta[1] ** 2))

    return np.asarray(minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-7}).x)


def test_each_level_is_the_penalised_fit_around_the_level_above() -> None:
    scores, target, labels = sample(300)
    fitted = Classwise.fit(scores, target, labels, parents=PARENTS, strength=7.0)
    z = logit(Platt.fit(scores, target).predict(scores)).numpy()
    t = target.double().numpy()
    group = (labels < 2).numpy()
    slope, intercept = map_estimate(z[group], t[group], 7.0)
    one = (labels == 1).numpy()
    z1 = slope * z[one] + intercept
    own = map_estimate(z1, t[one], 7.0)
    expected = 1 / (1 + np.exp(-(own[0] * z1 + own[1])))
    np.testing.assert_allclose(fitted.predict(scores, labels)[labels == 1], expected, atol=1e-4)
    assert fitted.rows.tolist() == torch.bincount(labels).tolist()


def test_better_than_one_map_and_than_each_class_alone_where_data_are_few() -> None:
    test_scores, test_target, test_labels = sample(20000, seed=1)

    def brier(p: torch.Tensor) -> float:
        return float((p - test_target.double()).square().mean())

    shrunk, whole, alone = [], [], []
    for seed in range(8):
        scores, target, labels = sample(60, seed=10 + seed)
        shrunk.append(brier(Classwise.fit(scores, target, labels, parents=PARENTS).predict(test_scores, test_labels)))
        whole.append(brier(Platt.fit(scores, target).predict(test_scores)))
        p = torch.zeros_like(test_scores)
        for c in range(4):
            p[test_labels == c] = Platt.fit(scores[labels == c], target[labels == c]).predict(
                test_scores[test_labels == c]
            )
        alone.append(brier(p))
    assert np.mean(shrunk) < np.mean(whole) - 0.01
    assert np.mean(shrunk) < np.mean(alone)


def test_few_rows_stay_with_the_group_and_many_go_their_own_way() -> None:
    scores, target, labels = sample()
    keep = (labels != 3) | (torch.arange(len(labels)) % 400 == 0)  # class 3: a few rows
    fitted = Classwise.fit(scores[keep], target[keep], labels[keep], parents=PARENTS)
    query = torch.linspace(0.1, 0.9, 9)

    def at(c: int, model: Classwise = fitted) -> torch.Tensor:
        return model.predict(query, torch.full((9,), c))

    assert float((at(3) - at(2)).abs().max()) < 0.1  # follows its group
    assert float((at(0) - at(2)).abs().max()) > 0.2
    known = Classwise.fit(scores, target, labels, parents={**PARENTS, 4: 11})
    unseen_in_group = at(4, known)
    assert float((unseen_in_group - (at(2, known) + at(3, known)) / 2).abs().max()) < 0.05
    base = known.base.predict(query)
    assert torch.equal(at(99, known), base)  # never heard of: the whole


@pytest.mark.parametrize("method", METHODS)
def test_every_method_survives_its_state(method: str) -> None:
    scores, target, labels = sample(200)
    fitted = Classwise.fit(scores, target, labels, method=method, parents=PARENTS)
    tensors, meta = fitted.state()
    again = Classwise.from_state((tensors, json.loads(json.dumps(meta))))
    query = torch.cat([torch.linspace(0, 1, 21), torch.tensor([torch.nan])])
    p = fitted.predict(query, torch.arange(22) % 6)
    assert torch.equal(again.predict(query, torch.arange(22) % 6)[:-1], p[:-1])
    assert p.isnan().tolist() == [False] * 21 + [True]
    with pytest.raises(StateError, match="unknown calibrator"):
        Classwise.from_state((tensors, {"parts": {"base": {"kind": "magic"}}}))


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=20))
def test_any_data_give_probabilities(rows: list[tuple[float, float, int]]) -> None:
    scores, target, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
    fitted = Classwise.fit(scores, target, labels, parents=PARENTS)
    p = fitted.predict(torch.linspace(0, 1, 11), torch.full((11,), int(labels[0])))
    assert bool(((p >= 0) & (p <= 1)).all())
    assert bool((p.diff() >= -1e-9).all())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown method"):
        Classwise.fit(*sample(10), method="magic")
    with pytest.raises(ValueError, match="alike"):
        Classwise.fit(torch.rand(3), torch.ones(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 1 labelled"):
        Classwise.fit(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="like the scores"):
        Classwise.fit(*sample(10)).predict(torch.rand(3), torch.zeros(2, dtype=torch.int64))


def test_targets_of_a_picture_worked_by_hand() -> None:
    boxes = [[0, 0, 10, 10], [20, 0, 30, 6], [20, 20, 30, 30], [50, 50, 60, 60], [80, 80, 90, 90]]
    truth = [[0, 0, 10, 10], [20, 0, 30, 10], [20, 20, 30, 30], [75, 75, 95, 95]]
    found = targets(
        boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 2, 1, 3], [0] * 5, truth, [1, 1, 1, 3], [0] * 4,
        [False, False, False, True], mask_iou=lambda det, gt: np.where(det == gt, 0.7, 0.0),
    )
    nan = float("nan")
    expected = {
        "class_right": [1, 1, 0, nan, nan],  # right, right, another class, no object, absorbed by a crowd
        "iou": [1, 0.6, 0, 0, nan],
        "tp_50": [1, 1, 0, 0, nan],
        "tp_75": [1, 0, 0, 0, nan],
        "mask_iou": [0.7, 0.7, 0, 0, 0],
        "mask_tp_50": [1, 1, 0, 0, 0],
        "mask_tp_75": [0, 0, 0, 0, 0],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)
    with pytest.raises(ValueError, match="whole percents"):
        targets([], [], [], [], [], [], [], taus=(0.555,))
    assert all(len(v) == 0 for v in targets([], [], [], [], [], [], []).values())


def test_a_calibrator_for_each_target() -> None:
    scores, right, labels = sample(1000)
    iou = (scores * right).clamp(max=0.95)
    wanted = {
        "class_right": right.double().masked_fill(scores < 0.2, torch.nan),
        "iou": iou, "tp_50": (iou > 0.5).double(), "tp_75": (iou > 0.75).double(),
    }
    fitted = TargetCalibrators.fit(scores, wanted, labels, method="beta")
    tensors, meta = fitted.state()
    p = TargetCalibrators.from_state((tensors, json.loads(json.dumps(meta)))).predict(scores, labels)
    assert set(p) == set(wanted)
    for name, target in wanted.items():
        known = ~target.isnan()
        assert float(p[name][known].mean()) == pytest.approx(float(target[known].mean()), abs=0.03)
    assert bool((p["tp_75"] <= p["tp_50"]).all())
    by_name = fitted.predict(dict.fromkeys(wanted, scores), labels)
    assert torch.equal(by_name["iou"], p["iou"])
