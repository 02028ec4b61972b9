"""Explanations by gradients: activations inside the detector, weighed by what the target gains from them.

Y is the target's scalar, A_k channel k of a layer; every map is a ReLU of the sum over k. On a shared layer each
instance costs a backward pass. RoI features belong to one instance alone, so that the gradient of the sum of all
instances' scalars is each one's own: one backward pass for the whole image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..frame import MAPS, Frame, Glance, Layer
from .base import Heat, Heats, Method
from .places import smoothed
from .targets import MaskEvidence, Reference, Target


class GradientMethod(Method):
    """Maps on shared layers of the backbone, exact for each instance. `weigh` is the one function to override.

    Args:
        layers: Of `frame.MAPS`, or `pixels`; the maps of several are scaled to a maximum of 1 and added up.
        smooth: Standard deviation of a Gaussian over each map, as a share of the sides of the instance's box.

    Attributes:
        scalars: For which targets another scalar is explained.
    """

    requires = ("image", "look", "logits")
    scalars: ClassVar[Mapping[str, Target]] = {}

    def __init__(self, layers: Sequence[str] = ("late",), smooth: float = 0.0) -> None:
        if smooth < 0:
            raise ValueError(f"smooth must be at least 0, not {smooth}")
        self.smooth = smooth
        if not layers or set(layers) - {*MAPS, "pixels"}:
            raise ValueError(f"layers must be some of {', '.join(MAPS)}, pixels; not {list(layers)}")
        self.layers = tuple(layers)

    def weigh(self, values: Tensor, gradients: Tensor) -> Tensor:
        """(..., C, h, w) activations and gradients of Y -> (..., h, w) before the ReLU."""
        return (values * gradients).sum(-3)

    def missing(self, frame: Frame) -> list[str]:
        no_maps = frame.maps is None and self.layers != ("pixels",)
        return super().missing(frame) + (["maps"] if no_maps else [])

    def heats(self, frame: Frame, rows: Tensor, targets: Sequence[Target], budget: int) -> Heats:
        view, look = frame.view, frame.look
        if view is None or look is None:
            raise ValueError("this detector gives no gradients; use a perturbation method (drise)")
        explained = {t.name: self.scalars.get(t.name, t) for t in targets}
        with torch.inference_mode(False), torch.enable_grad():
            pixels = view.pixels.clone().float()[None].requires_grad_()
            parts = {"layers"}.union(*(t.parts for t in explained.values()))
            glance = look(pixels, parts, rows)
            reference = Reference.of(frame, rows, glance)
            scalars = {name: t.scalar(glance, reference)[0] for name, t in explained.items()}
            maps, backwards = {}, 0
            for name, scalar in scalars.items():
                maps[name], cost = self.attribute(scalar, glance, pixels, reference)
                backwards += cost
        if self.smooth:
            reach = (reference.boxes[:, 2:] - reference.boxes[:, :2]) * self.smooth
            for name, heats in maps.items():
                maps[name] = [Heat(smoothed(heat.values, heat.boxes, reach), heat.boxes) for heat in heats]
        return Heats(maps, passes=1, backwards=backwards)

    def attribute(
        self, scalar: Tensor, glance: Glance, pixels: Tensor, reference: Reference
    ) -> tuple[list[Heat], int]:
        """Maps of scalars (n,), and the backward passes that they took."""
        layers = self.shared(glance, pixels)
        maps = [layer.values.new_full((len(scalar), *layer.values.shape[2:]), torch.nan) for layer in layers]
        known = scalar.isfinite().nonzero()[:, 0].tolist()
        for i in known:
            found = torch.autograd.grad(scalar[i], [x.values for x in layers], retain_graph=True, allow_unused=True)
            for out, layer, gradient in zip(maps, layers, found, strict=True):
                out[i] = 0 if gradient is None else self.weigh(layer.values[0].detach(), gradient[0]).relu()
        return [Heat(_scaled(m, len(maps)), x.boxes) for m, x in zip(maps, layers, strict=True)], len(known)

    def shared(self, glance: Glance, pixels: Tensor) -> list[Layer]:
        """The layers that were asked for.

        Raises:
            ValueError: The detector gives none of this name.
        """
        whole = pixels.new_tensor([[0, 0, pixels.shape[3], pixels.shape[2]]])
        given = {**(glance.layers or {}), "pixels": Layer(pixels, whole)}
        if missing := [name for name in self.layers if name not in given]:
            raise ValueError(f"this detector gives no feature maps {', '.join(missing)}: choose layers=('pixels',) or "
                             "a perturbation method (drise); a frame can be asked for them while its "
                             "`handle.frames(...)` is open")
        return [given[name] for name in self.layers]


class ODAM(GradientMethod):
    """ReLU sum_k dY/dA_k A_k, Y the class probability or the extent of the box (Zhao and Chan 2023, ODAM)."""

    name = "odam"


class SegHiResCAM(GradientMethod):
    """ReLU sum_k dY/dA_k A_k; for masks Y is the sum of mask logits over the mask (Hasany et al. 2023)."""

    name = "hirescam"
    scalars = {"mask": MaskEvidence()}  # noqa: RUF012


class SegXResCAM(SegHiResCAM):
    """As Seg-HiRes-CAM, gradients first averaged over windows (Hasany et al. 2023, Seg-XRes-CAM).

    Args:
        layers: See `GradientMethod`.
        window: Side in cells.
        smooth: See `GradientMethod`.
    """

    name = "xrescam"

    def __init__(self, layers: Sequence[str] = ("late",), window: int = 4, smooth: float = 0.0) -> None:
        super().__init__(layers, smooth)
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

    def weigh(self, values: Tensor, gradients: Tensor) -> Tensor:
        pooled = avg_pool2d(gradients[None], self.window, ceil_mode=True)
        return super().weigh(values, interpolate(pooled, size=gradients.shape[-2:], mode="nearest")[0])


class SegGradCAM(SegHiResCAM):
    """ReLU sum_k w_k A_k, w_k the mean of dY/dA_k (Vinogradova et al. 2020, Seg-Grad-CAM; Selvaraju et al. 2017)."""

    name = "gradcam"

    def weigh(self, values: Tensor, gradients: Tensor) -> Tensor:
        return super().weigh(values, gradients.mean((-2, -1), keepdim=True))


class JointGradient(GradientMethod):
    """Gradient x activation of the target itself, `joint` above all: S = log softIoU + log p.

    Two-stage detectors: at the RoI features of box and mask, one backward pass for all instances; the two add up as
    densities over their rectangles, and nothing outside of these can show. One-stage detectors: on shared layers, one
    backward pass for each instance.

    Args:
        layers: Of one-stage detectors; see `GradientMethod`.
        exact: Without it one-stage detectors too take one backward pass, of the sum of all scalars, of which each
            instance keeps what lies within `CONTEXT` times its box: what neighbours share is then counted for both.
        smooth: See `GradientMethod`.
    """

    name = "gradient"
    CONTEXT: ClassVar[float] = 2.0

    def __init__(self, layers: Sequence[str] = ("late",), exact: bool = True, smooth: float = 0.0) -> None:
        super().__init__(layers, smooth)
        self.exact = exact

    def attribute(
        self, scalar: Tensor, glance: Glance, pixels: Tensor, reference: Reference
    ) -> tuple[list[Heat], int]:
        own = [layer for layer in (glance.layers or {}).values() if layer.which is not None]
        if not own and self.exact:
            return super().attribute(scalar, glance, pixels, reference)
        layers = own or self.shared(glance, pixels)
        known = scalar.isfinite()
        if not bool(known.any()):
            none = scalar.new_full((len(scalar), 1, 1), torch.nan)
            return [Heat(none, pixels.new_tensor([[0, 0, pixels.shape[3], pixels.shape[2]]]))], 0
        found = torch.autograd.grad(
            scalar[known].sum(), [x.values for x in layers], retain_graph=True, allow_unused=True
        )
        heats = []
        for layer, gradient in zip(layers, found, strict=True):
            if gradient is None:
                continue
            map_ = self.weigh(layer.values.detach(), gradient).relu()
            heats.append(_own(map_, layer, known) if own else self._near(map_, layer, reference, known, len(layers)))
        return heats, 1

    def _near(self, map_: Tensor, layer: Layer, reference: Reference, known: Tensor, layers: int) -> Heat:
        (h, w), (x1, y1, x2, y2), boxes = map_.shape[1:], layer.boxes[0].tolist(), reference.boxes
        middle, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * self.CONTEXT
        x = x1 + (torch.arange(w, device=map_.device) + 0.5) / w * (x2 - x1)
        y = y1 + (torch.arange(h, device=map_.device) + 0.5) / h * (y2 - y1)
        across = (x - middle[:, 0:1]).abs() <= half[:, 0:1]
        down = (y - middle[:, 1:2]).abs() <= half[:, 1:2]
        values = map_ * (down[:, :, None] & across[:, None])
        return Heat(_scaled(values.detach().masked_fill(~known[:, None, None], torch.nan), layers), layer.boxes)


def _own(map_: Tensor, layer: Layer, known: Tensor) -> Heat:
    """Densities on the rectangles of their own, NaN for an instance that has none."""
    (h, w), which = map_.shape[1:], layer.which
    areas = (layer.boxes[:, 2:] - layer.boxes[:, :2]).clamp(min=1e-6).prod(1)
    values = map_.new_full((len(known), h, w), torch.nan)
    values[which] = map_ * (h * w / areas)[:, None, None]
    boxes = layer.boxes.new_zeros(len(known), 4)
    boxes[which] = layer.boxes
    return Heat(values, boxes)


def _scaled(maps: Tensor, layers: int) -> Tensor:
    """Maps (n, h, w) of one of several layers, scaled to a maximum of 1: layers differ by orders of magnitude."""
    if layers == 1:
        return maps
    return maps / maps.flatten(1).amax(1).clamp(min=torch.finfo(maps.dtype).tiny)[:, None, None]
