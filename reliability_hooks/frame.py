"""What a host hands over for one image: the objects, and the evidence that they were made from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .instances import Instances

if TYPE_CHECKING:
    from .clip.embed import Embed

MAPS = ("early", "middle", "late")
"""Feature maps by depth: the ends of the stages with 4, 8 and 16 input pixels for each of theirs."""


@dataclass(frozen=True, eq=False)
class View:
    """The pixels as the detector saw them, and where they lie in the original image.

    A point x of the original lies at `x * scale + offset` in the view.

    Attributes:
        pixels: (3, h, w) float, RGB; `pixels * std + mean` lies in [0, 1].
        scale: (x, y) view pixels in an original pixel.
        offset: (x, y) view pixels before the image begins (letterbox padding).
        mean: Mean of each channel that the detector subtracted.
        std: Deviation of each channel that it divided by.
    """

    pixels: Tensor
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def to_view(self, boxes: Tensor) -> Tensor:
        """(N, 4) xyxy from original to view pixels."""
        return boxes * boxes.new_tensor(self.scale * 2) + boxes.new_tensor(self.offset * 2)

    def to_image(self, boxes: Tensor) -> Tensor:
        """(N, 4) xyxy from view to original pixels."""
        return (boxes - boxes.new_tensor(self.offset * 2)) / boxes.new_tensor(self.scale * 2)

    def rgb(self, pixels: Tensor | None = None) -> Tensor:
        """(..., 3, h, w) float32 in [0, 1]: the normalisation undone, for the view or for crops of it."""
        pixels = (self.pixels if pixels is None else pixels).float()
        if any(self.mean) or any(s != 1.0 for s in self.std):
            pixels = pixels * pixels.new_tensor(self.std).view(3, 1, 1) + pixels.new_tensor(self.mean).view(3, 1, 1)
        return pixels.clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Raw boxes before non-maximum suppression, one row for each (box, class) above the host's score floor.

    Attributes:
        boxes: (M, 4) float, xyxy in pixels of the original image, not clipped.
        scores: (M,) float in [0, 1].
        labels: (M,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Candidates:
        return cls(torch.zeros(0, 4, device=device), torch.zeros(0, device=device),
                   torch.zeros(0, dtype=torch.int64, device=device))


@dataclass(frozen=True, eq=False)
class Pool:
    """Raw boxes before non-maximum suppression with all their logits, the kept ones among them.

    Attributes:
        boxes: (M, 4) float, xyxy in pixels of the original image, not clipped.
        logits: (M, K), columns as `Instances.logits`.
    """

    boxes: Tensor
    logits: Tensor


@dataclass(frozen=True, eq=False)
class Classifier:
    """The last layer of the detector's classifier at each object: `logits = weight[which] @ inputs + bias[which]`.

    A convolution is the linear map of the patch that it sees.

    Attributes:
        inputs: (N, D); NaN rows where the object's raw row is not known.
        weight: (L, K, D), one for each level (or anchor) that has a layer of its own; K without the background.
        bias: (L, K).
        which: (N,) int64 in [0, L).
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor
    which: Tensor


class Rerun(Protocol):
    """The detector on other pixels."""

    def __call__(self, pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        """(B, 3, h, w) pixels as the view's -> the candidates in each, boxes in view pixels; one forward pass.

        Args:
            pixels: Normalised as the view's pixels are.
            dropout: Dropout is active in this pass, and draws from the global random generators.
        """


@dataclass(frozen=True, eq=False)
class Layer:
    """Activations inside the detector that lie on the way to what a `Glance` gives: gradients can be taken of them.

    Attributes:
        values: (B, C, h, w) shared by all objects, or (B * n, C, h, w) where each of n objects has its own (RoIs).
        boxes: (1, 4) or (n, 4) xyxy, the part of the view, in its pixels, that each map covers.
        which: (n,) the objects, counted as the glance's rows, that have one of their own; None for a shared one.
    """

    values: Tensor
    boxes: Tensor
    which: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Glance:
    """The same objects in B other versions of the view's pixels; NaN for an object whose raw row is not known.

    Attributes:
        logits: (B, N, K) at the raw rows (the RoIs of two-stage detectors) that the kept boxes came from, columns as
            `Instances.logits`.
        maps: As `Frame.maps`, each (B, C, h, w); None where the host gives none, or was not asked for them.
        boxes: (B, N, 4) xyxy in view pixels at the same rows, not clipped; None unless asked for.
        masks: (B, N, h, w) mask logits as the network makes them, on the rectangles `mask_boxes`; before a host cuts
            them off at the box. None unless asked for, and where the detector makes none.
        mask_boxes: (N, 4) xyxy in view pixels: the whole view (YOLO), or the kept box (R-CNN).
        layers: By name (`MAPS`, and `rois`, `mask_rois` of two-stage detectors); None unless asked for.
    """

    logits: Tensor
    maps: Mapping[str, Tensor] | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None
    mask_boxes: Tensor | None = None
    layers: Mapping[str, Layer] | None = None


class Look(Protocol):
    """The kept objects in other pixels, differentiable."""

    def __call__(self, pixels: Tensor, parts: Collection[str] = (), rows: Tensor | None = None) -> Glance:
        """(B, 3, h, w) pixels as the view's -> what is found at the same rows; one forward pass.

        Gradients flow to `pixels` where they require them; none are left on the model's weights, and it is called in
        grad mode whatever mode the detector runs in. Where the pixels require none, no graph is kept.

        Args:
            pixels: Normalised as the view's pixels are.
            parts: What is wanted beside logits and maps: `boxes`, `masks`, `layers`.
            rows: (n,) the objects to look at, all of them without it; the glance has n rows then.
        """


class Reprompt(Protocol):
    """A promptable segmenter with other prompts on the same image, whose embedding is used again."""

    def __call__(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(J, N, 4) boxes -> masks (J, N, h, w) bool on the grid of `Prompted.logits`, and predicted IoU (J, N).

        Each object's own points and boxes, moved and scaled as its box is from `Instances.boxes` to the one given.

        Args:
            boxes: xyxy in pixels of the original image.
        """


@dataclass(frozen=True, eq=False)
class Prompted:
    """What a promptable segmenter (Segment Anything) knows of its masks; NaN where the pass of an object is not known.

    Attributes:
        logits: (N, h, w) mask logits as the network makes them, above 0 inside; the grid covers the picture that it
            saw, and beyond the image (padding) they are -inf.
        ious: (N,) the IoU that it predicts for the mask, as it says it: it may leave [0, 1].
        others: (N, K, h, w) bool, the masks of its other answers to the same prompt.
        other_ious: (N, K) what it predicts for these.
        movable: (N,) bool, whether the prompt has a place: a point or a box, and not a mask alone.
        reprompt: The same objects with their prompts moved.
    """

    logits: Tensor
    ious: Tensor
    others: Tensor
    other_ious: Tensor
    movable: Tensor
    reprompt: Reprompt


@dataclass(frozen=True, eq=False)
class Frame:
    """One image on its way through the signals.

    Attributes:
        instances: The objects that the detector kept.
        view: The pixels, or None where the host cannot give them.
        candidates: The boxes before suppression, or None where the host cannot give them.
        maps: Feature maps (C, h, w) from inside the detector by name (`MAPS`), each covering the whole view; None
            where the host cannot give them.
        rerun: (B, 3, h, w) pixels as the view's -> the candidates in each, boxes in view pixels; costs a forward
            pass. None where the host cannot do it.
        dropout: Whether the model has dropout, without which `rerun(pixels, dropout=True)` changes nothing.
        look: The kept objects in other pixels, with gradients; None where the host cannot do it.
        classifier: The last layer in front of the logits, or None where the host cannot give it.
        pool: () -> the raw boxes with their logits, made when it is called; None where the host cannot give them.
        names: Class names of the detector by label; None where they are not known.
        embed: The objects as CLIP sees them, embedded when it is first asked for; None where no signal needs it.
        mask_logits: () -> (N, h, w) logits of each mask, above 0 inside, NaN rows where they are not known and -inf
            beyond the image; made when it is called. None where the host cannot give them.
        prompted: () -> what a promptable segmenter knows of its masks, made when it is called; None for any other.
    """

    instances: Instances
    view: View | None = None
    candidates: Candidates | None = None
    maps: Mapping[str, Tensor] | None = None
    rerun: Rerun | None = None
    dropout: bool = False
    look: Look | None = None
    classifier: Classifier | None = None
    pool: Callable[[], Pool] | None = None
    names: Mapping[int, str] | None = None
    embed: Embed | None = None
    mask_logits: Callable[[], Tensor] | None = None
    prompted: Callable[[], Prompted] | None = None

    def with_instances(self, instances: Instances) -> Frame:
        return replace(self, instances=instances)

    def has(self, requirement: str) -> bool:
        """Whether the evidence that a signal requires is there (`signals.base.REQUIREMENTS`)."""
        if requirement == "image":
            return self.view is not None
        if requirement == "clip":
            return self.embed is not None
        if requirement in ("candidates", "maps", "look", "classifier", "pool", "names", "mask_logits", "prompted"):
            return getattr(self, requirement) is not None
        if requirement == "model":
            return self.rerun is not None
        if requirement == "dropout":
            return self.rerun is not None and self.dropout
        if requirement == "tracks":
            return self.instances.track_ids is not None
        return getattr(self.instances, requirement) is not None
