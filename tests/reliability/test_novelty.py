"""The promised false-alarm rate holds in each cell, under dependence inside images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from reliability_hooks.reliability.novelty import Novelty

Draw = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def draw(rng: np.random.Generator, images: int) -> Draw:
    """Known objects: those of an image share most of their score, images differ in number, classes in level."""
    n = rng.integers(1, 12, images)
    image = np.repeat(np.arange(images), n)
    label = rng.choice(3, len(image), p=[0.6, 0.39, 0.01])
    score = rng.normal(0, 1, images)[image] + 0.3 * rng.normal(size=len(image)) + 5.0 * label + 0.2 * n[image]
    return torch.tensor(score), torch.tensor(image), {"class": torch.tensor(label)}


def naive(fitted: Draw, score: float, label: int) -> float:
    s, image, factors = fitted
    mine = factors["class"] == label
    shares = [float((s[mine & (image == i)] >= score).double().mean()) for i in image[mine].unique()]
    return (1 + sum(shares)) / (1 + len(shares))


def test_p_values_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    fitted, (score, _, factors) = draw(rng, 80), draw(rng, 10)
    p = Novelty.fit(*fitted, alpha=0.05).p_values(score, factors)
    for k in range(len(score)):
        if (label := int(factors["class"][k])) < 2:
            assert float(p[k]) == pytest.approx(naive(fitted, float(score[k]), label), abs=1e-6)


def test_false_alarms_keep_the_promise_in_each_class() -> None:
    """Averaged over calibration sets, an object drawn at random from each new image."""
    rng = np.random.default_rng(1)
    alarms: dict[int, list[float]] = {0: [], 1: []}
    pooled: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(60):
        fitted, (score, image, factors) = draw(rng, 60), draw(rng, 60)
        novelty = Novelty.fit(*fitted, alpha=0.1)
        p = novelty.p_values(score, factors)
        threshold = torch.quantile(fitted[0], 0.9)
        for label in alarms:
            mine = factors["class"] == label
            for i in image[mine].unique():
                alarms[label].append(float((p[mine & (image == i)] <= 0.1).double().mean()))
                pooled[label].append(float((score[mine & (image == i)] > threshold).double().mean()))
    for label, values in alarms.items():
        assert np.mean(values) <= 0.1 + 2 * np.std(values) / len(values) ** 0.5, label
        assert np.mean(values) >= 0.05, label
    assert np.mean(pooled[1]) > 0.15  # one threshold for all classes does not


def test_rare_and_unseen_classes_are_judged_together() -> None:
    rng = np.random.default_rng(2)
    novelty = Novelty.fit(*draw(rng, 60), alpha=0.05)
    cells = {row["cell"]: row for row in novelty.describe()}
    assert set(cells) == {"all others", "class=0", "class=1"}
    assert cells["class=0"]["certifiable"]
    assert not cells["all others"]["certifiable"]
    out = novelty(torch.tensor([1e9, 1e9, 1e9, torch.nan]), {"class": torch.tensor([0, 2, 7, 0])})
    assert out["is_ood"][:3].tolist() == [1, 0, 0]  # too few to raise an alarm, however high
    assert out["is_ood"][3].isnan()
    assert out["ood_p_value"][3].isnan()
    assert novelty(torch.zeros(0), {"class": torch.zeros(0, dtype=torch.int64)})["is_ood"].shape == (0,)


def test_ties_and_state() -> None:
    score, image = torch.tensor([1.0, 1.0, 2.0, 2.0]), torch.tensor([0, 1, 2, 2])
    factors = {"class": torch.zeros(4, dtype=torch.int64)}
    novelty = Novelty.fit(score, image, factors, alpha=0.25)
    asked, of = torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0]), {"class": torch.zeros(5, dtype=torch.int64)}
    assert novelty.p_values(asked, of).tolist() == [1, 1, 0.5, 0.5, 0.25]
    tensors, meta = novelty.state()
    again = Novelty.from_state((tensors, json.loads(json.dumps(meta))))
    assert torch.equal(again.p_values(asked, of), novelty.p_values(asked, of))
    with pytest.raises(ValueError, match="no finite score"):
        Novelty.fit(torch.tensor([torch.nan]), torch.tensor([0]), {"class": torch.tensor([0])})
    with pytest.raises(ValueError, match="alpha is a rate"):
        Novelty.fit(score, image, factors, alpha=5)
