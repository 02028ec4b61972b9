"""Detectron2's kept rows in other pixels, their last layer, and the detector run again."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.layers.mask_ops import paste_masks_in_image

from reliability_hooks import Monitor, attach
from reliability_hooks.frame import MAPS, Frame
from reliability_hooks.hosts.base import find_host
from reliability_hooks.hosts.look import grad_mode

from ..conftest import SHARED
from .case import Subject, photographs
from .detectron2_cases import CASES, MORE, SIDES
from .test_conformance import same
from .test_look import Eye, watch

ALL = {case.name.partition("/")[2]: case for case in (*CASES, *MORE)}
PARTS = ("boxes", "masks", "layers")
LEVELS = {"FasterRCNN_C4": 1, "MaskRCNN_FPN": 1, "RetinaNet": 9, "FCOS": 1, "FasterRCNN_sigmoid": 1}
LOOK = ["MaskRCNN_FPN", "MaskRCNN_C4", "CascadeMaskRCNN", "CascadeSigmoid", "RetinaNet", "FCOS", "PointRend"]


@cache
def built(name: str) -> Subject:
    with torch.no_grad():
        return Subject(ALL[name], SHARED if (SHARED / "README.md").is_file() else None)


def at_frames(name: str, check: Any, *needs: str, mode: Any = torch.inference_mode) -> None:
    own = built(name)
    same(own.case, own.bare, watch(own, check, *needs, mode=mode))
    same(own.case, own.bare, own.run())


@pytest.mark.parametrize("name", LEVELS)
def test_the_last_layer_gives_the_logits(name: str) -> None:
    def check(frame: Frame) -> None:
        kept, last = frame.instances, frame.classifier
        assert last is not None
        assert kept.logits is not None
        assert len(last.weight) == LEVELS[name]
        logits = (last.weight[last.which].double() @ last.inputs.double()[:, :, None])[..., 0] + last.bias[last.which]
        torch.testing.assert_close(logits.float(), kept.without_background(kept.logits), rtol=1e-4, atol=1e-4)

    at_frames(name, check, "classifier")


def test_a_cascade_has_no_one_last_layer() -> None:
    frames: list[Frame] = []
    own = built("CascadeMaskRCNN")
    with torch.no_grad(), attach(own.model, Monitor([Eye("classifier", at=frames.append)])):
        own.run()
    assert not frames  # the signal is skipped


@pytest.mark.parametrize("name", LOOK)
def test_unchanged_pixels_give_logits_boxes_masks_and_maps(name: str) -> None:
    def check(frame: Frame) -> None:
        kept, view, look = frame.instances, frame.view, frame.look
        assert view is not None
        assert look is not None
        assert kept.logits is not None
        assert kept.image_size is not None
        known = kept.logits.isfinite().all(1)
        assert known.float().mean() > 0.9
        glance = look(torch.stack([view.pixels.flip(2), view.pixels]), PARTS)
        torch.testing.assert_close(glance.logits[1], kept.logits, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert not torch.allclose(glance.logits[0, known], kept.logits[known], atol=1e-2)
        assert glance.maps is not None
        assert frame.maps is not None
        for level in MAPS:
            torch.testing.assert_close(glance.maps[level][1], frame.maps[level], rtol=1e-4, atol=1e-4)
        h, w = kept.image_size
        assert glance.boxes is not None
        boxes = view.to_image(glance.boxes[1, known])
        clipped = torch.stack([boxes[:, 0::2].clamp(0, w), boxes[:, 1::2].clamp(0, h)], 2).flatten(1)
        torch.testing.assert_close(clipped, kept.boxes[known], rtol=1e-3, atol=0.05)
        assert (glance.masks is not None) == (kept.masks is not None and name != "PointRend")
        if glance.masks is not None and kept.masks is not None:
            found = paste_masks_in_image(glance.masks[1].sigmoid(), kept.boxes, (h, w))
            common, either = (both[known].sum((1, 2)) for both in (found & kept.masks, found | kept.masks))
            large = either > 20  # cells at the edge weigh little
            assert bool(large.any())
            assert float((common / either)[large].min()) > 0.9
        with pytest.raises(ValueError, match="as the view's"):
            look(view.pixels[None, :, 1:])

    at_frames(name, check, "look", "maps")


@pytest.mark.parametrize("name", ["MaskRCNN_C4", "CascadeMaskRCNN", "RetinaNet"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    def check(frame: Frame) -> None:
        view, look, logits = frame.view, frame.look, frame.instances.logits
        assert view is not None
        assert look is not None
        assert logits is not None
        row = int(logits.isfinite().all(1).nonzero()[0])

        def values(pixels: Tensor) -> Tensor:
            glance = look(pixels, PARTS)
            assert glance.boxes is not None
            found = [glance.logits[:, row, int(frame.instances.labels[row])], glance.boxes[:, row].sum(1)]
            return torch.stack(found if glance.masks is None else [*found, glance.masks[:, row].mean((1, 2))], 1)

        with grad_mode():
            pixels = view.pixels.clone()[None].requires_grad_()
            now = values(pixels)[0]
            for k in range(len(now)):
                (gradient,) = torch.autograd.grad(now[k], pixels, retain_graph=True)
                flat = gradient.flatten()
                strongest = flat.abs().topk(200).indices
                step = torch.zeros_like(flat).index_put((strongest,), flat[strongest].sign()).view_as(gradient)
                errors = []
                for size in (0.2, 0.06, 0.02):  # of 255: too large bends, too small rounds
                    up, down = values(torch.cat([pixels + size * step, pixels - size * step]).detach())[:, k]
                    errors.append(abs(float(up - down) / (2 * size) / float((gradient * step).sum()) - 1))
                assert min(errors) < 0.03, errors

    module = find_host(built(name).model).module()
    wanted = [p.requires_grad for p in module.parameters()]
    at_frames(name, check, "look")
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == wanted


@pytest.mark.parametrize("name", ["FasterRCNN_C4", "CascadeMaskRCNN", "RetinaNet", "FCOS"])
def test_the_detector_runs_again(name: str) -> None:
    """On the same pixels the same candidates, in pixels of the view; on others, others."""

    def check(frame: Frame) -> None:
        view, found = frame.view, frame.candidates
        assert view is not None
        assert frame.rerun is not None
        assert found is not None
        again, mirrored = frame.rerun(torch.stack([view.pixels, view.pixels.flip(2)]))
        assert len(found) > 0
        torch.testing.assert_close(again.scores, found.scores, rtol=1e-4, atol=1e-5)
        near = (again.boxes - view.to_view(found.boxes)).abs().amax(1) < 0.05
        assert near.float().mean() > 0.99  # of equal scores either may come first
        assert len(mirrored) != len(found) or not torch.allclose(mirrored.scores, found.scores, atol=1e-3)

    own = built(name)
    (image,) = photographs(SHARED if (SHARED / "README.md").is_file() else None, (SIDES,))
    watch(own, check, "look", images=[image])
