"""A lower reliability for what looks unlike known objects, at a price on known ones that the user allows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from reliability_hooks.reliability.caution import MIN_IMAGES, PRIORS, SHAPE, Caution, chance_known


def known(seed: int, images: int = 150) -> tuple[torch.Tensor, ...]:
    """Score, reliability (calibrated), correct, image, class of known objects and of false alarms."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), 8)
    p = rng.beta(2, 1, len(image))
    correct = rng.random(len(image)) < p
    score = rng.normal(size=len(image)) + 0.5 * ~correct
    return tuple(torch.as_tensor(a) for a in (score, p, correct, image, rng.integers(0, 2, len(image))))


def fit(seed: int = 0, **options: float) -> Caution:
    score, p, correct, image, label = known(seed)
    return Caution.fit(score, {"class": label}, p, correct, image, **options)


def brier(p: torch.Tensor, y: torch.Tensor) -> float:
    return float((p.double() - y.double()).square().mean())


def test_the_chance_is_bayes_rule() -> None:
    """Against draws: known objects have uniform p-values, unknown ones Beta(SHAPE, 1)."""
    rng = np.random.default_rng(0)
    unknown = rng.random(2_000_000) < 0.2
    p = np.where(unknown, rng.beta(SHAPE, 1, len(unknown)), rng.random(len(unknown)))
    for low in (0.001, 0.03, 0.3, 0.9):
        near = (p >= low) & (p < low * 1.1)
        expected = float(chance_known(torch.tensor([low * 1.05]), 0.2)[0])
        assert (~unknown[near]).mean() == pytest.approx(expected, abs=0.02)
    assert chance_known(torch.tensor([0.01, 1.0]), 0.0).tolist() == [1, 1]
    assert chance_known(torch.tensor([torch.nan]), 0.2).tolist() == [pytest.approx(0.8)]


def test_the_price_on_known_objects_is_what_was_allowed() -> None:
    fitted = {allowance: fit(allowance=allowance) for allowance in (0.0, 0.01, 0.05)}
    priors = [c.prior for c in fitted.values()]
    assert priors == sorted(priors)
    assert priors[0] < priors[-1]
    score, p, correct, _, label = known(1)
    for allowance, caution in fitted.items():
        assert caution.cost <= allowance
        assert caution.prior in PRIORS
        after = caution(p, score, {"class": label})["reliability"]
        assert (after <= p + 1e-6).all()
        assert brier(after, correct) <= (1.01 + allowance) * brier(p, correct)


def test_few_images_buy_no_caution() -> None:
    for images, some in ((MIN_IMAGES - 1, False), (MIN_IMAGES, True)):
        score, p, correct, image, label = known(0, images)
        caution = Caution.fit(score, {"class": label}, p, correct, image, allowance=0.05)
        assert (caution.prior > 0) == some
        assert some or torch.allclose(caution.cross_fitted, p.float())


def test_unknown_objects_lose_their_reliability() -> None:
    caution = fit(allowance=0.01)
    rng = np.random.default_rng(5)
    p = torch.tensor(rng.beta(2, 1, 300))
    odd = caution(p, torch.tensor(rng.normal(4, 1, 300)), {"class": torch.zeros(300, dtype=torch.int64)})
    assert odd["reliability"].mean() < 0.75 * p.mean()
    assert odd["is_ood"].mean() > 0.9


def test_cross_fitted_state_and_what_is_undefined() -> None:
    score, p, correct, image, label = known(0)
    caution = Caution.fit(score, {"class": label}, p, correct, image)
    assert caution.cross_fitted is not None
    assert caution.cross_fitted.shape == p.shape
    assert brier(caution.cross_fitted, correct) / brier(p, correct) - 1 == pytest.approx(caution.cost, abs=1e-4)
    tensors, meta = caution.state()
    again = Caution.from_state((tensors, json.loads(json.dumps(meta))))
    asked = torch.tensor([0.9, 0.9, torch.nan]), torch.tensor([0.0, torch.nan, 0.0]), {"class": torch.zeros(3).long()}
    first, second = caution(*asked), again(*asked)
    assert all(torch.equal(first[n].nan_to_num(-1), second[n].nan_to_num(-1)) for n in first)
    assert float(first["reliability"][1]) == pytest.approx(0.9 * (1 - caution.prior))
    assert first["reliability"][2].isnan()
    with pytest.raises(ValueError, match="allowance"):
        fit(allowance=-1)
