"""ODIN against its formula written by hand, on a detector whose gradients are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import Tensor

from reliability_hooks.frame import Frame, Glance, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.ood.odin import ODIN
from reliability_hooks.signals.ood.pixels import gradient_sign, moved

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
HEADS = ("softmax", "softmax+background", "sigmoid")


def linear(n: int, classes: int, seed: int = 0) -> Tensor:
    """(n, classes, 3, 6, 6): the logits of object i are a linear map of the pixels."""
    return torch.randn(n, classes, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frame(weight: Tensor, head: str) -> Frame:
    g = torch.Generator().manual_seed(1)
    view = View(torch.randn(3, 6, 6, generator=g), mean=MEAN, std=STD)

    def look(pixels: Tensor) -> Glance:
        with torch.inference_mode(False), torch.enable_grad():
            return Glance(torch.einsum("nkchw,bchw->bnk", weight, pixels.double()))

    n = len(weight)
    logits = look(view.pixels.clone()[None]).logits[0].float()
    background = 1 if head == "softmax+background" else None
    found = Instances(torch.rand(n, 4, generator=g), torch.rand(n, generator=g), torch.zeros(n, dtype=torch.int64),
                      logits=logits, head=head, background=background)  # type: ignore[arg-type]
    return Frame(found, view, look=look)


def by_hand(weight: Tensor, given: Frame, head: str) -> np.ndarray:
    w, x = weight.numpy(), given.view.pixels.double().numpy()  # type: ignore[union-attr]
    if head == "softmax+background":
        w = np.delete(w, 1, 1)
    f = np.einsum("nkchw,chw->nk", w, x)
    best = f.argmax(1)
    total = np.zeros_like(x)
    for i, y in enumerate(best):
        if head == "sigmoid":
            total += -(1 - expit(f[i, y] / 1000)) * w[i, y]
        else:
            total += -(w[i, y] - np.einsum("k,kchw->chw", softmax(f[i] / 1000), w[i]))
    nudged = x - 0.0014 / np.array(STD)[:, None, None] * np.sign(total)
    f = np.einsum("nkchw,chw->nk", w, nudged)
    p = expit(f / 1000) if head == "sigmoid" else softmax(f / 1000, 1)
    return -p.max(1)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("head", HEADS)
def test_the_formula(head: str, mode: type) -> None:
    weight = linear(5, 4)
    with mode():
        given = frame(weight, head)
        found = ODIN()(given)["ood/odin/score"]
    assert found.dtype == torch.float32
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), by_hand(weight, given, head), rtol=0, atol=4e-8)  # of float32 near 0.5


@pytest.mark.parametrize("head", HEADS)
def test_the_nudge_makes_a_lone_object_surer(head: str) -> None:
    weight = linear(1, 4, seed=3)
    given = frame(weight, head)
    as_it_is = given.look(given.view.pixels[None]).logits[0] / 1000  # type: ignore[misc, union-attr]
    as_it_is = given.instances.without_background(as_it_is)
    p = as_it_is.sigmoid() if head == "sigmoid" else as_it_is.softmax(1)
    assert float(ODIN()(given)["ood/odin/score"]) < -float(p.max())


def test_a_row_that_is_not_known_is_nan_and_moves_no_pixel() -> None:
    weight = linear(4, 3)
    whole = frame(weight, "sigmoid")
    logits = whole.instances.logits.clone()  # type: ignore[union-attr]
    logits[2] = torch.nan
    known = torch.tensor([0, 1, 3])
    spoilt = ODIN()(whole.with_instances(whole.instances.replace(logits=logits)))["ood/odin/score"]
    without = ODIN()(frame(weight[known], "sigmoid"))["ood/odin/score"]
    assert spoilt.isnan().tolist() == [False, False, True, False]
    assert torch.equal(spoilt[known], without)


def test_nothing_to_judge_costs_no_look() -> None:
    given = frame(linear(2, 3), "softmax")

    def look(pixels: Tensor) -> Glance:
        raise AssertionError("looked")

    none = Frame(given.instances[:0], given.view, look=look)
    assert ODIN()(none)["ood/odin/score"].shape == (0,)
    with pytest.raises(ValueError, match="skip this signal"):
        ODIN()(Frame(given.instances, given.view))
    with pytest.raises(ValueError, match="skip this signal"):
        gradient_sign(Frame(given.instances), lambda f: f[:, 0], torch.ones(2, dtype=torch.bool))


def test_steps_are_in_units_of_the_pixels_range() -> None:
    view = frame(linear(1, 2), "sigmoid").view
    assert view is not None
    inside = View((torch.full((3, 6, 6), 0.5) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None],
                  mean=MEAN, std=STD)
    step = torch.zeros(3, 6, 6)
    step[:, 0, 0], step[:, 1, 1] = 0.25, -0.75
    assert torch.allclose(inside.rgb(moved(inside, step))[:, 0, 0], torch.tensor(0.75))
    free, kept = moved(inside, step)[:, 1, 1], moved(inside, step, clip=True)[:, 1, 1]
    undo = torch.tensor(STD), torch.tensor(MEAN)
    assert torch.allclose(free * undo[0] + undo[1], torch.tensor(-0.25))
    assert torch.allclose(kept * undo[0] + undo[1], torch.tensor(0.0), atol=1e-6)
