"""Boxes, masks and layers of a glance: those of the detector itself, and differentiable."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reliability_hooks.explain.places import resample
from reliability_hooks.frame import MAPS, Frame, Glance, Layer
from reliability_hooks.hosts.look import Kept, grad_mode, look_at

from .test_conformance import same
from .test_look import LOOK, built, watch

paste_masks_in_image = pytest.importorskip("torchvision.models.detection.roi_heads").paste_masks_in_image
MASKS = ["ultralytics/yolo11n_seg", "torchvision/MaskRCNN"]
PARTS = ("boxes", "masks", "layers")


def at_frames(name: str, check: Any, mode: Any = torch.inference_mode) -> None:
    own = built(name)
    same(own.case, own.bare, watch(own, check, "look", "maps", mode=mode))
    same(own.case, own.bare, own.run())


def known_rows(frame: Frame) -> Tensor:
    known: Tensor = frame.instances.logits.isfinite().all(1).nonzero()[:, 0]  # type: ignore[union-attr]
    return known


@pytest.mark.parametrize("name", [*LOOK, "torchvision/MaskRCNN"])
def test_boxes_and_masks_are_the_detectors_own(name: str) -> None:
    def check(frame: Frame) -> None:
        kept, view = frame.instances, frame.view
        rows = known_rows(frame)
        assert len(rows) > 0
        bare = frame.look(view.pixels[None])  # type: ignore[misc, union-attr]
        assert bare.boxes is bare.masks is bare.mask_boxes is bare.layers is None
        glance = frame.look(torch.stack([view.pixels.flip(2), view.pixels]), PARTS)  # type: ignore[misc, union-attr]
        assert glance.boxes.shape == (2, len(kept), 4)
        h, w = kept.image_size  # type: ignore[misc]
        boxes = view.to_image(glance.boxes[1, rows])  # type: ignore[union-attr]
        clipped = torch.stack([boxes[:, 0::2].clamp(0, w), boxes[:, 1::2].clamp(0, h)], 2).flatten(1)
        torch.testing.assert_close(clipped, kept.boxes[rows], rtol=1e-3, atol=0.05)
        assert (glance.masks is None) == (kept.masks is None)
        if glance.masks is None:
            return
        probable, masks = glance.masks[1, rows].sigmoid(), kept.masks[rows]  # type: ignore[index]
        if name.startswith("torchvision"):
            found = paste_masks_in_image(probable[:, None], kept.boxes[rows], (h, w))[:, 0] > 0.5
        else:
            own = view.to_view(kept.boxes[rows])  # type: ignore[union-attr]
            found = resample(probable, glance.mask_boxes[rows], view, (h, w)) > 0.5  # type: ignore[arg-type]
            found &= resample(torch.ones(len(rows), 1, 1), own, view, (h, w)) > 0.5  # type: ignore[arg-type]
            masks = interpolate(masks[:, None].float(), found.shape[1:])[:, 0] > 0.5
        common, either = (found & masks).sum((1, 2)), (found | masks).sum((1, 2))
        large = either > 300  # cells at the edge weigh little
        assert bool(large.any())
        assert float((common / either)[large].min()) > 0.9

    at_frames(name, check)


@pytest.mark.parametrize("name", ["ultralytics/yolo26n_end2end", *MASKS, "torchvision/FCOS"])
def test_chosen_rows_are_those_of_all(name: str) -> None:
    def check(frame: Frame) -> None:
        rows = torch.arange(len(frame.instances) - 1, -1, -2)
        pixels = frame.view.pixels[None]  # type: ignore[union-attr]
        every, some, none = (frame.look(pixels, PARTS, r) for r in (None, rows, rows[:0]))  # type: ignore[misc]
        for part in ("logits", "boxes", "masks"):
            whole, own, empty = (getattr(g, part) for g in (every, some, none))
            if whole is not None:
                torch.testing.assert_close(own, whole[:, rows], equal_nan=True, rtol=1e-4, atol=1e-4)
                assert empty.shape == (1, 0, *whole.shape[2:])

    at_frames(name, check)


@pytest.mark.parametrize("name", [*MASKS, "torchvision/SSD"])
def test_gradients_of_boxes_and_masks_are_those_of_finite_differences(name: str) -> None:
    def check(frame: Frame) -> None:
        view, row = frame.view, int(known_rows(frame)[0])

        def values(pixels: Tensor) -> Tensor:
            glance = frame.look(pixels, PARTS)  # type: ignore[misc]
            found = [glance.boxes[:, row].sum(1)]
            return torch.stack(found if glance.masks is None else [*found, glance.masks[:, row].mean((1, 2))], 1)

        with grad_mode():
            pixels = view.pixels.clone()[None].requires_grad_()  # type: ignore[union-attr]
            now = values(pixels)[0]
            for k in range(len(now)):
                (gradient,) = torch.autograd.grad(now[k], pixels, retain_graph=True)
                flat = gradient.flatten()
                strongest = flat.abs().topk(200).indices
                step = torch.zeros_like(flat).index_put((strongest,), flat[strongest].sign()).view_as(gradient)
                errors = []
                for size in (1e-2, 3e-3, 1e-3):
                    up, down = values(torch.cat([pixels + size * step, pixels - size * step]).detach())[:, k]
                    errors.append(abs(float(up - down) / (2 * size) / float((gradient * step).sum()) - 1))
                assert min(errors) < 0.03, errors

    at_frames(name, check)


def test_layers_lie_on_the_way_and_rois_belong_to_one_object() -> None:
    def check(frame: Frame) -> None:
        with grad_mode():
            pixels = frame.view.pixels.clone()[None].requires_grad_()  # type: ignore[union-attr]
            glance = frame.look(pixels, PARTS)  # type: ignore[misc]
            layers = glance.layers
            assert list(layers) == [*MAPS, "rois", "mask_rois"]  # type: ignore[arg-type]
            for name, part in (("late", "logits"), ("rois", "logits"), ("mask_rois", "masks")):
                layer = layers[name]  # type: ignore[index]
                (gradient,) = torch.autograd.grad(getattr(glance, part)[0, 1].sum(), layer.values, retain_graph=True)
                assert gradient.abs().sum() > 0
                if layer.which is not None:
                    other = gradient[layer.which != 1]
                    assert len(other) > 0
                    assert bool((other == 0).all())

    at_frames("torchvision/MaskRCNN", check)


def test_parts_of_an_object_without_a_raw_row_are_nan() -> None:
    def run(kept: Kept, pixels: Tensor, parts: Collection[str]) -> Glance:
        n = len(kept.rows)
        values = kept.rows[None, :, None] + torch.zeros(len(pixels), n, 4)
        rect = kept.boxes
        layer = Layer(torch.zeros(len(pixels) * n, 1, 2, 2), rect, torch.arange(n))
        return Glance(values[..., :2], None, values, values[..., None], rect, {"rois": layer})

    kept = Kept(torch.tensor([7, 5]), torch.tensor([1, 0]), torch.rand(2, 4))
    look = look_at(run, kept, torch.tensor([True, False, True]))
    glance = look(torch.zeros(2, 3, 4, 4), PARTS, torch.tensor([1, 2, 0]))
    expected = torch.tensor([torch.nan, 5, 7])
    for found in (glance.logits[..., 0], glance.boxes[..., 3], glance.masks[..., 2, 0]):  # type: ignore[index]
        torch.testing.assert_close(found, expected.expand(2, 3), equal_nan=True)
    torch.testing.assert_close(glance.mask_boxes[1:], kept.boxes[[1, 0]])  # type: ignore[index]
    assert glance.mask_boxes[0].isnan().all()  # type: ignore[index]
    assert glance.layers["rois"].which.tolist() == [1, 2]  # type: ignore[index, union-attr]
