"""The last layer at the kept rows, and the kept rows in other pixels, for every kind of model."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks import Monitor, attach
from reliability_hooks.frame import MAPS, Frame
from reliability_hooks.hosts.base import find_host
from reliability_hooks.hosts.last_layer import patches
from reliability_hooks.hosts.look import grad_mode
from reliability_hooks.signals.base import Signal

from ..conftest import SHARED
from .case import Subject
from .test_conformance import alive, same, traces
from .torchvision_cases import CASES, STOCK
from .ultralytics_cases import CASES as YOLO

pytest.importorskip("torchvision")
ALL = {case.name: case for cases in (CASES, STOCK, YOLO) for case in cases}
LEVELS = {  # with a last layer that is known: how many of them
    **dict.fromkeys(("ultralytics/yolo11n_seg", "ultralytics/yolov8n", "ultralytics/yolo26n",
                     "ultralytics/yolo26n_end2end"), 3),
    **dict.fromkeys(("torchvision/FasterRCNN", "torchvision/MaskRCNN", "torchvision/FCOS",
                     "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", "torchvision/fcos_resnet50_fpn"), 1),
    **dict.fromkeys(("torchvision/RetinaNet", "torchvision/retinanet_resnet50_fpn"), 9),
}
LOOK = ["ultralytics/yolo11n_seg", "ultralytics/yolo26n", "ultralytics/yolo26n_end2end", "torchvision/FasterRCNN",
        "torchvision/RetinaNet", "torchvision/FCOS", "torchvision/SSD",
        "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"]


@cache
def built(name: str) -> Subject:
    with torch.no_grad():
        return Subject(ALL[name], SHARED if (SHARED / "README.md").is_file() else None)


class Eye(Signal):
    """Looks at every frame inside of the detector's pass."""

    name = "eye"
    requires = ("image",)

    def __init__(self, *needs: str, at: Any = None) -> None:
        self.requires = ("image", *needs)  # type: ignore[misc, assignment]
        self.at, self.seen = at, 0

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        self.seen += 1
        self.at(frame)
        return {}


def watch(
    own: Subject, at: Any, *needs: str, images: list[np.ndarray] | None = None, mode: Any = torch.no_grad
) -> list[Any]:
    eye = Eye(*needs, at=at)
    with mode(), attach(own.model, Monitor([eye]), strict=True):
        hooked = own.run(images)
    assert eye.seen == len(own.images if images is None else images)
    return hooked


@pytest.mark.parametrize("name", LEVELS)
def test_the_last_layer_gives_the_logits(name: str) -> None:
    def check(frame: Frame) -> None:
        kept, last = frame.instances, frame.classifier
        assert last is not None
        assert len(last.weight) == LEVELS[name]
        assert len(kept) > 0
        assert not any(t.requires_grad for t in (last.inputs, last.weight, last.bias))
        logits = (last.weight[last.which].double() @ last.inputs.double()[:, :, None])[..., 0] + last.bias[last.which]
        assert kept.logits is not None
        torch.testing.assert_close(logits.float(), kept.without_background(kept.logits), rtol=1e-4, atol=1e-4)

    own = built(name)
    same(own.case, own.bare, watch(own, check, "classifier"))


def test_no_last_layer_of_an_ssd_and_none_where_nobody_needs_it() -> None:
    frames: list[Frame] = []
    with torch.no_grad():
        with attach(built("torchvision/SSD").model, Monitor([Eye("classifier", at=frames.append)])):
            built("torchvision/SSD").run()
        assert not frames
    watch(built("torchvision/RetinaNet"), frames.append)
    assert len(frames) > 0
    assert all(frame.classifier is None and frame.look is None for frame in frames)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_patches_are_what_a_convolution_sees(kernel: int) -> None:
    g = torch.Generator().manual_seed(kernel)
    maps = [torch.randn(3, h, w, generator=g) for h, w in ((4, 5), (2, 3), (1, 1))]
    layer = torch.nn.Conv2d(3, 2 * 4, kernel, padding=kernel // 2)
    with torch.no_grad():
        expected = torch.cat([layer(m[None]).view(2, 4, -1).permute(2, 0, 1).reshape(-1, 4) for m in maps])
        rows = torch.randperm(len(expected), generator=g)
        seen, level, anchor = patches(maps, rows, kernel, anchors=2)
        weight, bias = layer.weight.view(2, 4, -1), layer.bias.view(2, 4)
        found = (weight[anchor] @ seen[:, :, None])[..., 0] + bias[anchor]
    torch.testing.assert_close(found, expected[rows])
    assert torch.equal(level, torch.bucketize(rows, torch.tensor([40, 52, 54]), right=True))
    assert patches(maps, rows[:0], kernel)[0].shape == (0, 3 * kernel**2)


@pytest.mark.parametrize(("name", "mode"), [
    *((name, torch.no_grad) for name in LOOK),
    *((LOOK[i], mode) for i in (0, 3) for mode in (torch.inference_mode, torch.enable_grad)),
])
def test_unchanged_pixels_give_the_logits_and_the_maps(name: str, mode: Any) -> None:
    def check(frame: Frame) -> None:
        kept, view, look = frame.instances, frame.view, frame.look
        assert view is not None
        assert look is not None
        assert kept.logits is not None
        glance = look(torch.stack([view.pixels, view.pixels.flip(2), view.pixels]))
        assert glance.logits.shape == (3, *kept.logits.shape)
        for i in (0, 2):
            torch.testing.assert_close(glance.logits[i], kept.logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(glance.logits[1], kept.logits, atol=1e-2)
        assert (glance.maps is None) == (frame.maps is None)
        for level in MAPS if frame.maps is not None else ():
            torch.testing.assert_close(glance.maps[level][0], frame.maps[level], rtol=1e-4, atol=1e-4)  # type: ignore[index]
        with pytest.raises(ValueError, match="as the view's"):
            look(view.pixels[None, :, 1:])

    own = built(name)
    before, held = traces(own.model), alive()
    same(own.case, own.bare, watch(own, check, "look", "maps", mode=mode))
    same(own.case, own.bare, own.run())
    assert traces(own.model)[1:] == before[1:]
    assert alive() <= held + 60  # the anchors of the head; no graph


@pytest.mark.parametrize(("name", "mode"), [
    *((name, torch.inference_mode) for name in LOOK), ("torchvision/FasterRCNN", torch.no_grad),
])
def test_gradients_are_those_of_finite_differences(name: str, mode: Any) -> None:
    """Along the signs of the 200 strongest entries of the gradient of one object's logit."""

    def check(frame: Frame) -> None:
        kept, view, look = frame.instances, frame.view, frame.look
        assert view is not None
        assert look is not None
        known = kept.logits.isfinite().all(1).nonzero()[:, 0]  # type: ignore[union-attr]
        row = int(known[0])
        label = int(kept.labels[row])
        with grad_mode():
            pixels = view.pixels.clone().requires_grad_()
            value = look(pixels[None]).logits[0, row, label]
            (gradient,) = torch.autograd.grad(value, pixels, retain_graph=True)
            value.backward()  # whoever calls it leaves nothing on the weights
            assert torch.equal(pixels.grad, gradient)
        assert gradient.shape == view.pixels.shape
        assert gradient.isfinite().all()
        strongest = gradient.abs().flatten().topk(200).indices
        direction = torch.zeros_like(gradient).flatten()
        direction[strongest] = gradient.flatten()[strongest].sign()
        direction = direction.view_as(gradient)
        expected = float((gradient * direction).sum())
        errors = []
        for step in (1e-2, 3e-3, 1e-3):  # too large bends, too small rounds
            both = look(torch.stack([view.pixels + step * direction, view.pixels - step * direction])).logits
            errors.append(abs(float(both[0, row, label] - both[1, row, label]) / (2 * step) / expected - 1))
        assert expected > 0
        assert min(errors) < 0.02, errors

    own = built(name)
    module = find_host(own.model).module()
    wanted = [p.requires_grad for p in module.parameters()]
    flags = [m.training for m in module.modules()]
    same(own.case, own.bare, watch(own, check, "look", mode=mode))
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == wanted
    assert [m.training for m in module.modules()] == flags
    same(own.case, own.bare, own.run())


def test_the_anchors_of_a_head_stay_and_other_shapes_follow() -> None:
    own = built("ultralytics/yolo26n")

    def check(frame: Frame) -> None:
        head = own.model.predictor.model.model.model[-1]
        held = head.shape, head.anchors, head.strides
        frame.look(frame.view.pixels[None])  # type: ignore[misc, union-attr]
        assert all(a is b for a, b in zip(held, (head.shape, head.anchors, head.strides), strict=True))

    wide = [np.ascontiguousarray(image[:100]) for image in own.images]
    with torch.no_grad():
        bare = own.run(wide)
    same(own.case, bare, watch(own, check, "look", images=wide))
    same(own.case, own.bare, own.run())


def test_an_object_without_a_raw_row_is_nan_and_others_keep_their_gradients() -> None:
    from reliability_hooks.frame import Glance
    from reliability_hooks.hosts.look import Kept, look_at

    def run(kept: Kept, pixels: Tensor, parts: Collection[str]) -> Glance:
        return Glance(pixels.flatten(1)[:, kept.rows, None] * 2)

    with torch.inference_mode():
        pixels, rows = torch.rand(2, 3, 2, 2), torch.tensor([4, 1])
        look = look_at(run, Kept(rows, rows, torch.zeros(2, 4)), torch.tensor([True, False, True]))
        with grad_mode():
            leaf = pixels.clone().requires_grad_()
            logits = look(leaf).logits
            (gradient,) = torch.autograd.grad(logits[:, [0, 2]].sum(), leaf)
        assert torch.equal(look(pixels).logits[:, [0, 2], 0], pixels.flatten(1)[:, [4, 1]] * 2)
    assert logits[:, 1].isnan().all()
    assert torch.equal(gradient.flatten(1).nonzero()[:, 1], torch.tensor([1, 4, 1, 4]))
