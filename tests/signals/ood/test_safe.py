"""SAFE: what it learns from, against a loop by hand; that it learns; that what it learnt is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks.frame import MAPS, Frame, Glance, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.ood import safe as module
from reliability_hooks.signals.ood.safe import CAPACITY, SAFE, features, fit, logit

KERNELS = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(5))
CLASSES = torch.randn(4, 3, generator=torch.Generator().manual_seed(6))


def look(pixels: Tensor) -> Glance:
    """Colours mixed, at three scales; the logits are those of the colours in the object's quarter."""
    with torch.inference_mode(False), torch.enable_grad():
        maps = {name: torch.nn.functional.avg_pool2d(torch.einsum("kc,bchw->bkhw", k, pixels), s)
                for name, k, s in zip(MAPS, KERNELS, (1, 2, 4), strict=True)}
        quarters = pixels.unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5)).flatten(2)  # (B, 3, 4)
        return Glance(torch.einsum("kc,bcn->bnk", CLASSES, quarters) * 5, maps)


def frame(seed: int, head: str = "sigmoid", scores: tuple[float, ...] = (0.9, 0.6, 0.4, 0.8)) -> Frame:
    g = torch.Generator().manual_seed(seed)
    view = View(torch.rand(3, 8, 8, generator=g) * 0.5 + 0.25)
    glance = look(view.pixels.clone()[None])
    boxes = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]])
    background = 3 if head == "softmax+background" else None
    found = Instances(boxes, torch.tensor(scores), torch.randint(3, (4,), generator=g), logits=glance.logits[0],
                      head=head, background=background)  # type: ignore[arg-type]
    return Frame(found, view, maps={k: m[0] for k, m in glance.maps.items()}, look=look)  # type: ignore[union-attr]


def kept(signal: SAFE) -> Tensor:
    return signal._pairs.rows


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("head", ["sigmoid", "softmax", "softmax+background"])
def test_pairs_are_those_of_a_loop(head: str, mode: Any) -> None:
    with mode():
        given, signal = frame(0, head), SAFE()
        signal.update(given)
    pairs = kept(signal)
    assert len(pairs) == 3  # the third is not sure

    x = given.view.pixels.double()  # type: ignore[union-attr]
    classes = CLASSES.double()[:3] if head == "softmax+background" else CLASSES.double()
    gradient = torch.zeros_like(x)
    for i in (0, 1, 3):
        y, top, left = int(given.instances.labels[i]), 4 * (i // 2), 4 * (i % 2)
        f = 5 * classes @ x[:, top : top + 4, left : left + 4].mean((1, 2))
        if head == "sigmoid":
            by_logit = torch.zeros(len(f), dtype=torch.float64)
            by_logit[y] = f[y].sigmoid() - 1
        else:
            by_logit = f.softmax(0)
            by_logit[y] -= 1
        gradient[:, top : top + 4, left : left + 4] += (5 * by_logit @ classes)[:, None, None] / 16
    moved = (x + 8 / 255 * gradient.sign()).clamp(0, 1)
    for row, i in zip(pairs, (0, 1, 3), strict=True):
        expected = []
        for image in (x, moved):
            quarter = image[:, 4 * (i // 2) : 4 * (i // 2) + 4, 4 * (i % 2) : 4 * (i % 2) + 4]
            for k, stride in zip(KERNELS.double(), (1, 2, 4), strict=True):
                if stride == 4:  # a single cell: all samples lie inside of the map, between neighbours
                    expected.append(torch.full((3,), torch.nan, dtype=torch.float64))
                    continue
                expected.append(k @ quarter.mean((1, 2)))
        wanted = torch.cat(expected)
        assert (row[:9] - features(given, given.maps)[i]).abs().max() < 1e-6
        # RoIAlign samples between the cells: near the mean of the box, and exactly as it does for the same maps
        changed = look(moved.float()[None]).maps
        assert changed is not None
        exact = features(given, {name: changed[name][0] for name in MAPS})[i]
        assert (row[9:] - exact).abs().max() < 1e-5
        known = ~wanted.isnan()
        assert (row.double() - wanted)[known].abs().max() < 0.5


def test_truth_says_which_objects_are_learnt_from() -> None:
    given, signal = frame(1), SAFE()
    truth = given.instances.labels.clone()
    truth[[0, 3]] = -1
    signal.update(given.with_instances(given.instances.with_columns({"truth": truth})))
    whole = features(given, given.maps)
    assert torch.equal(kept(signal)[:, :9], whole[[1, 2]])
    signal = SAFE()
    signal.update(frame(1, scores=(0.1, 0.1, 0.1, 0.1)))
    with pytest.raises(ValueError, match="show more images"):
        signal.finish()


def rows(n: int, shift: float, seed: int, d: int = 20) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) * 10 + shift * torch.linspace(-1, 1, d) * 10 + 7


def test_the_network_tells_the_two_apart_as_the_best_rule_does() -> None:
    from sklearn.metrics import roc_auc_score

    shift = 0.5
    learnt = fit(rows(1000, 0, 0), rows(1000, shift, 1))
    test = torch.cat([rows(1000, 0, 2), rows(1000, shift, 3)])
    target = np.repeat([0, 1], 1000)
    best = roc_auc_score(target, (test @ torch.linspace(-1, 1, 20)).numpy())
    ours = roc_auc_score(target, logit(test, learnt).numpy())
    assert 0.8 < best < 0.95
    assert best - 0.03 < ours <= best + 0.01


def test_fitting_is_repeatable_and_leaves_the_generators_alone() -> None:
    before = torch.get_rng_state()
    with torch.inference_mode():
        first = fit(rows(30, 0, 0), rows(30, 1, 1))
    second = fit(rows(30, 0, 0), rows(30, 1, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert not value.requires_grad
    one = fit(rows(1, 0, 0), rows(1, 0, 0))  # nothing to tell apart
    assert all(value.isfinite().all() for value in one.values())


def test_it_learns_the_perturbation_and_keeps_what_it_learnt() -> None:
    signal = SAFE()
    for seed in range(40):
        signal.update(frame(seed, scores=(0.9,) * 4))
    assert len(kept(signal)) == 160
    pairs = kept(signal)
    signal.finish()
    clean, changed = logit(pairs[:, :9], signal.tensors), logit(pairs[:, 9:], signal.tensors)
    assert (changed > clean).float().mean() > 0.7
    again, there = SAFE(), frame(1000)
    again.load_state(*signal.state())
    assert torch.equal(signal(there)["ood/safe/score"], again(there)["ood/safe/score"])
    with pytest.raises(ValueError, match="not learnt"):
        SAFE()(there)
    assert signal(Frame(there.instances[:0], there.view, maps=there.maps))["ood/safe/score"].shape == (0,)


def test_pairs_are_bounded_and_modes_may_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CAPACITY >= 1000
    monkeypatch.setattr(module, "CAPACITY", 5)
    signal = SAFE()
    for seed, mode in enumerate((torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode)):
        with mode():
            signal.update(frame(seed))
    assert kept(signal).shape == (5, 18)
    assert not kept(signal).is_inference()
