"""The last layer, and the kept queries of transformers models in other pixels; explanations of them."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reliability_hooks import Monitor, attach
from reliability_hooks.explain.explainer import explain
from reliability_hooks.frame import MAPS, Frame
from reliability_hooks.hosts.look import Kept, grad_mode
from reliability_hooks.hosts.queries import Inside, Pass
from reliability_hooks.hosts.query_look import glance

from ..conftest import SHARED
from .case import Subject
from .test_conformance import same, traces
from .test_look import watch
from .transformers_cases import CASES, MORE

pytest.importorskip("transformers", reason="transformers is not installed")
ALL = {case.name.partition("/")[2]: case for case in (*CASES, *MORE)}
NAMES = ["rt_detr", "d_fine", "detr", "mask2former"]


@cache
def built(name: str) -> Subject:
    with torch.no_grad():
        return Subject(ALL[name], SHARED if (SHARED / "README.md").is_file() else None)


@pytest.mark.parametrize("name", ["rt_detr", "detr", "mask2former", "maskformer"])
def test_the_last_layer_gives_the_logits(name: str) -> None:
    def check(frame: Frame) -> None:
        kept, last = frame.instances, frame.classifier
        assert last is not None
        assert kept.logits is not None
        assert len(kept) > 0
        logits = (last.weight[last.which] @ last.inputs[:, :, None])[..., 0] + last.bias[last.which]
        torch.testing.assert_close(logits, kept.without_background(kept.logits), rtol=1e-4, atol=1e-4)

    own = built(name)
    same(own.case, own.bare, watch(own, check, "classifier"))


def test_d_fine_adds_a_quality_to_its_last_layer_which_is_none_then() -> None:
    own = built("d_fine")
    with torch.no_grad(), attach(own.model, Monitor([]), strict=True) as handle, handle.frames("classifier") as frames:
        own.run()
    assert len(frames) == len(own.images)
    assert all(frame.classifier is None for frame in frames)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", NAMES)
def test_unchanged_pixels_give_the_same(name: str, mode: Any) -> None:
    def check(frame: Frame) -> None:
        kept, view, look = frame.instances, frame.view, frame.look
        assert view is not None
        assert look is not None
        assert kept.logits is not None
        assert frame.maps is not None
        found = look(torch.stack([view.pixels, view.pixels.flip(2), view.pixels]), ("boxes", "masks", "layers"))
        for i in (0, 2):
            torch.testing.assert_close(found.logits[i], kept.logits, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(found.logits[1], kept.logits, atol=1e-2)
        assert found.maps is not None
        assert found.layers is not None
        for level in MAPS:
            torch.testing.assert_close(found.maps[level][0], frame.maps[level], rtol=1e-3, atol=1e-3)
        if kept.masks is None:
            assert found.boxes is not None
            torch.testing.assert_close(view.to_image(found.boxes[0]), kept.boxes, rtol=1e-3, atol=0.05)
        else:
            assert found.masks is not None
            h, w = kept.masks.shape[1:]
            large = torch.nn.functional.interpolate(found.masks[0][None], (h, w), mode="bilinear")[0] > 0
            assert (large == kept.masks).float().mean() > 0.999
        with pytest.raises(ValueError, match="as the view's"):
            look(view.pixels[None, :, 1:])

    own = built(name)
    before = traces(own.model)
    with mode():
        bare = own.run()
    same(own.case, bare, watch(own, check, "look", "maps", mode=mode))
    with torch.no_grad():
        same(own.case, own.bare, own.run())
    assert traces(own.model) == before


@pytest.mark.parametrize("name", ["detr", "mask2former"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """RT-DETR and D-FINE cut theirs off at their queries, as in training: they have no such oracle."""

    def check(frame: Frame) -> None:
        kept, view, look = frame.instances, frame.view, frame.look
        assert view is not None
        assert look is not None
        label = int(kept.labels[0])
        with grad_mode():
            pixels = view.pixels.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(look(pixels[None]).logits[0, 0, label], pixels)
        strongest = gradient.abs().flatten().topk(200).indices
        direction = torch.zeros_like(gradient).flatten()
        direction[strongest] = gradient.flatten()[strongest].sign()
        direction = direction.view_as(gradient)
        expected = float((gradient * direction).sum())
        errors = []
        for step in (1e-2, 3e-3, 1e-3, 3e-4):  # too large bends, too small rounds
            both = look(torch.stack([view.pixels + step * direction, view.pixels - step * direction])).logits
            errors.append(abs(float(both[0, 0, label] - both[1, 0, label]) / (2 * step) / expected - 1))
        assert expected > 0
        assert min(errors) < 0.03, errors

    own = built(name)
    same(own.case, own.bare, watch(own, check, "look"))
    assert all(p.grad is None for p in own.model.model.parameters())


def test_partners_are_found_by_box_and_class_and_not_by_number() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 8, 5, generator=g) * 3
    boxes = torch.cat([torch.rand(1, 8, 2, generator=g), torch.full((1, 8, 2), 0.2)], 2)
    boxes[0, 1] = boxes[0, 0] + 0.01  # two boxes at nearly the same place
    logits[0, 1] = -logits[0, 0]
    seen = Pass("rt_detr", torch.rand(1, 3, 40, 60), None, logits, boxes, None, None, {}, [])
    rows, labels = torch.tensor([0, 5, 1]), torch.tensor([2, 1, 2])
    kept = Kept(rows, labels, torch.zeros(3, 4))
    order = torch.randperm(8, generator=g)
    both = [torch.cat([values, values[:, order]]) for values in (logits, boxes)]
    found = glance(SimpleNamespace(logits=both[0], pred_boxes=both[1]), seen, 0, kept, ("boxes",))
    for version in range(2):
        assert torch.equal(found.logits[version], logits[0, rows])
    assert found.boxes is not None
    assert torch.equal(found.boxes[0], found.boxes[1])
    centre = (found.boxes[0, :, :2] + found.boxes[0, :, 2:]) / 2
    torch.testing.assert_close(centre, boxes[0, rows, :2] * torch.tensor([60.0, 40.0]))
    assert Inside().maps((1, 3, 40, 60)) == {}


@pytest.mark.parametrize("method", ["gradient", "odam", "drise"])
@pytest.mark.parametrize("name", ["rt_detr", "mask2former"])
def test_explanations(name: str, method: str) -> None:
    own = built(name)
    before = traces(own.model)
    flags = [p.requires_grad for p in own.model.model.parameters()]
    target = "joint" if name == "rt_detr" else "class"
    with attach(own.model, Monitor([]), strict=True) as handle:
        made = explain(handle, own.images[0], targets=(target,), method=method, budget=6, longest=40,
                       options={"conf": 0.5})
        maps: Tensor = made.maps[target]
        assert len(maps) > 0
        assert max(maps.shape[1:]) == 40
        known = maps[~maps.flatten(1).isnan().any(1)]
        assert len(known) > 0
        assert bool(((known >= 0) & (known <= 1)).all())
        assert bool((known.amax((1, 2)) > 0).any())
    assert traces(own.model) == before
    assert [p.requires_grad for p in own.model.model.parameters()] == flags
    assert all(p.grad is None for p in own.model.model.parameters())
