"""Gradients of real architectures against grad-cam, captum and one backward pass for each instance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reliability_hooks import Monitor, attach
from reliability_hooks.explain.base import create
from reliability_hooks.explain.explainer import EVIDENCE
from reliability_hooks.explain.gradient import ODAM, JointGradient, SegGradCAM, SegHiResCAM, SegXResCAM
from reliability_hooks.explain.targets import TARGETS, Reference
from reliability_hooks.frame import Frame
from reliability_hooks.hosts.look import grad_mode

from ..hosts.test_look import built

pytest.importorskip("torchvision")


def frame_of(name: str, check: Any) -> None:
    """Calls `check` with the frame of one image while the model is still hooked."""
    own = built(name)
    with attach(own.model, Monitor([]), strict=True) as handle, handle.frames(*EVIDENCE) as frames:
        own.run(own.images[:1])
        check(frames[0])


class Row(nn.Module):
    """The class logits of one anchor, as a classifier for other people's tools."""

    def __init__(self, model: Any, row: int) -> None:
        super().__init__()
        self.model, self.row = model, row

    def forward(self, pixels: Tensor) -> Tensor:
        maps = list(self.model.backbone(pixels).values())
        logits: Tensor = self.model.head(maps)["cls_logits"][:, self.row]
        return logits


def padded(view: Any) -> Tensor:
    """What torchvision's model sees: sides are multiples of 32."""
    height, width = (-(-side // 32) * 32 for side in view.pixels.shape[1:])
    out = torch.zeros(1, 3, height, width)
    out[0, :, : view.pixels.shape[1], : view.pixels.shape[2]] = view.pixels
    return out


def rows_in(model: Any, frame: Frame) -> Tensor:
    """(N,) anchors of the instances, found again by their logits."""
    with torch.no_grad():
        every = model.head(list(model.backbone(padded(frame.view)).values()))["cls_logits"][0]
    far = (frame.instances.logits[:, None] - every).abs().amax(2)  # type: ignore[index]
    assert float(far.amin(1).max()) < 1e-4
    return far.argmin(1)


@pytest.mark.parametrize(("ours", "theirs"), [(SegHiResCAM, "HiResCAM"), (ODAM, "HiResCAM"), (SegGradCAM, "GradCAM")])
def test_terms_are_those_of_grad_cam(ours: Any, theirs: str) -> None:
    cams = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    model = built("torchvision/RetinaNet").model

    def check(frame: Frame) -> None:
        rows = rows_in(model, frame)
        heat = ours().heats(frame, torch.arange(3), [TARGETS["class"]], 1).maps["class"][0]
        with grad_mode():
            for i in range(3):
                label = int(frame.instances.labels[i])
                layer = model.backbone.body.layer3
                with getattr(cams, theirs)(Row(model, int(rows[i])), [layer]) as cam:
                    cam(padded(frame.view), [lambda logits, k=label: nn.functional.logsigmoid(logits[k])])
                    inner = cam.activations_and_grads
                    activations, grads = inner.activations[0], inner.gradients[0].numpy()
                    if theirs == "HiResCAM":
                        activations = activations.numpy()
                    expected = cam.get_cam_image(None, layer, None, activations, grads, False)[0]
                torch.testing.assert_close(heat.values[i], torch.as_tensor(expected).relu(), rtol=1e-5, atol=1e-7)
        model.zero_grad()

    frame_of("torchvision/RetinaNet", check)


def test_terms_are_those_of_captum_on_pixels_and_layers() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    model = built("torchvision/FCOS").model

    def check(frame: Frame) -> None:
        row, label = int(rows_in(model, frame)[0]), int(frame.instances.labels[0])
        logit = frame.instances.logits[0, label]  # type: ignore[index]
        factor = 1 - logit.sigmoid()  # of log p by the logit
        classifier, pixels = Row(model, row), padded(frame.view)
        with grad_mode():
            found = create("odam", layers=("middle",)).heats(frame, torch.tensor([0]), [TARGETS["class"]], 1)
            tool = captum.LayerGradientXActivation(classifier, model.backbone.body.layer2)
            expected = tool.attribute(pixels, label).sum(1).relu() * factor
            torch.testing.assert_close(found.maps["class"][0].values, expected.detach(), rtol=1e-4, atol=1e-7)
            found = create("odam", layers=("pixels",)).heats(frame, torch.tensor([0]), [TARGETS["class"]], 1)
            height, width = frame.view.pixels.shape[1:]  # type: ignore[union-attr]
            wanted = captum.InputXGradient(classifier).attribute(pixels.requires_grad_(), label)
            wanted = (wanted.sum(1).relu() * factor)[:, :height, :width]
            torch.testing.assert_close(found.maps["class"][0].values, wanted.detach(), rtol=1e-4, atol=1e-7)

    frame_of("torchvision/FCOS", check)


def test_one_backward_pass_gives_each_roi_its_own_gradient() -> None:
    def check(frame: Frame) -> None:
        n = len(frame.instances)
        assert n > 2
        heats = JointGradient().heats(frame, torch.arange(n), [TARGETS["joint"]], 1)
        assert (heats.passes, heats.backwards) == (1, 1)
        with grad_mode():
            glance = frame.look(frame.view.pixels.clone()[None].requires_grad_(), ("layers", "boxes", "masks"))  # type: ignore[misc, union-attr]
            scalar = TARGETS["joint"].scalar(glance, Reference.of(frame, torch.arange(n), glance))[0]
            for i in range(n):
                for name, heat in zip(("rois", "mask_rois"), heats.maps["joint"], strict=True):
                    layer = glance.layers[name]  # type: ignore[index]
                    (gradient,) = torch.autograd.grad(scalar[i], layer.values, retain_graph=True)
                    own = (layer.values[i] * gradient[i]).sum(0).relu().detach()
                    area = (layer.boxes[i, 2:] - layer.boxes[i, :2]).prod()
                    torch.testing.assert_close(heat.values[i], own * own.numel() / area, rtol=1e-3, atol=1e-8)

    frame_of("torchvision/MaskRCNN", check)


def test_pooled_gradients_lie_between_the_two_others() -> None:
    def check(frame: Frame) -> None:
        def values(method: Any) -> Tensor:
            return method.heats(frame, torch.arange(2), [TARGETS["class"]], 1).maps["class"][0].values  # type: ignore[no-any-return]

        torch.testing.assert_close(values(SegXResCAM(window=1)), values(SegHiResCAM()))
        torch.testing.assert_close(values(SegXResCAM(window=1000)), values(SegGradCAM()))
        assert not torch.allclose(values(SegXResCAM(window=3)), values(SegGradCAM()))

    frame_of("torchvision/RetinaNet", check)
