"""What a torchvision detector computes, in our terms: raw rows, and passes on given pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rows import RawRows, pool_features

Capture = dict[str, tuple[Any, Any]]
"""(arguments, output) of each watched module in one forward pass of the model, and of each stage of `MAPS`."""


class Family(NamedTuple):
    """One of torchvision's detectors.

    Attributes:
        watched: Modules that a pass calls, without which there are no rows.
        raw: (model, capture, i) -> the rows of image i.
        run: (model, `ImageList`) -> nothing: what the model does after its transform, for the hooks to see.
        decode: How the heads of a one-stage detector turn regression and anchors into boxes; None for two stages.
        last: Where the last layer of the classifier is; None for SSD, which has one for each level, of other widths.
    """

    watched: tuple[str, ...]
    raw: Callable[[Any, Capture, int], RawRows]
    run: Callable[[Any, Any], None]
    decode: str | None
    last: str | None


def family(model: Any) -> Family | None:
    """The family of a model; None where it is no detector."""
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
    from torchvision.models.detection.ssd import SSD

    if isinstance(model, GeneralizedRCNN):
        watched = ("transform", "roi_heads", "roi_heads.box_predictor")
        return Family(watched, _two_stage, _run_two_stage, None, "roi_heads.box_predictor.cls_score")
    watched, last = ("transform", "head", "anchor_generator"), "head.classification_head.cls_logits"
    for kind, raw, decode, layer in (
        (RetinaNet, _retinanet, "decode_single", last),
        (FCOS, _fcos, "decode", last),
        (SSD, _ssd, "decode_single", None),
    ):
        if isinstance(model, kind):
            return Family(watched, raw, _run_dense, decode, layer)
    return None


def sizes(capture: Capture, i: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of an image as it was given, and as the detector saw it."""
    (images, *_), (inputs, _) = capture["transform"]
    (h, w), (seen_h, seen_w) = images[i].shape[-2:], inputs.image_sizes[i]
    return (int(h), int(w)), (int(seen_h), int(seen_w))


def _run_two_stage(model: Any, inputs: Any) -> None:
    features = fpn(model, inputs)
    proposals, _ = model.rpn(inputs, features)
    model.roi_heads(features, proposals, inputs.image_sizes)


def _run_dense(model: Any, inputs: Any) -> None:
    features = list(fpn(model, inputs).values())
    model.head(features)
    model.anchor_generator(inputs, features)


def fpn(model: Any, inputs: Any) -> OrderedDict[str, Tensor]:
    """What the backbone gives of an `ImageList`, by level."""
    features = model.backbone(inputs.tensors)
    return OrderedDict([("0", features)]) if isinstance(features, Tensor) else features


def _two_stage(model: Any, capture: Capture, i: int) -> RawRows:
    """R-CNN: a row is a proposal, with a box for each class."""
    (_, proposals, *_), _ = capture["roi_heads"]
    (box_features, *_), (class_logits, box_regression) = capture["roi_heads.box_predictor"]
    counts = [len(p) for p in proposals]
    logits, deltas, features = (t.detach().split(counts)[i] for t in (class_logits, box_regression, box_features))
    deltas = deltas.unflatten(1, (-1, 4))

    def decode(rows: Tensor, labels: Tensor) -> Tensor:
        boxes = model.roi_heads.box_coder.decode_single(deltas[rows, labels], proposals[i][rows])
        return _final(boxes, capture, i)

    return RawRows(
        scores=_without_background(logits),
        logits=logits,
        decode=decode,
        head="softmax+background",
        background=0,
        features=lambda rows, boxes: features[rows].flatten(1),
    )


def _retinanet(model: Any, capture: Capture, i: int) -> RawRows:
    """A row is an anchor, with one box."""
    return _dense(capture, i, model.box_coder.decode_single, lambda t: t["cls_logits"].sigmoid(), head="sigmoid")


def _fcos(model: Any, capture: Capture, i: int) -> RawRows:
    """A row is a place, with one box; the score is the geometric mean of class probability and centerness."""

    def score(image: Mapping[str, Tensor]) -> Tensor:
        return torch.sqrt(image["cls_logits"].sigmoid() * image["bbox_ctrness"].sigmoid())

    return _dense(capture, i, model.box_coder.decode, score, head="sigmoid")


def _ssd(model: Any, capture: Capture, i: int) -> RawRows:
    """A row is a default box, with one box."""
    return _dense(capture, i, model.box_coder.decode_single, lambda t: _without_background(t["cls_logits"]),
                  head="softmax+background", background=0)


def _dense(capture: Capture, i: int, coder: Callable[[Tensor, Tensor], Tensor], score: Callable[..., Tensor],
           **head: Any) -> RawRows:
    """One-stage: a row is an anchor, with one box."""
    (levels, *_), output = capture["head"]
    inputs = capture["transform"][1][0]
    anchors = capture["anchor_generator"][1][i]
    image: dict[str, Tensor] = {name: value[i].detach() for name, value in output.items()}

    def decode(rows: Tensor, labels: Tensor) -> Tensor:
        return _final(coder(image["bbox_regression"][rows], anchors[rows]), capture, i)

    def features(rows: Tensor, boxes: Tensor) -> Tensor:
        (h, w), (seen_h, seen_w) = sizes(capture, i)
        seen = boxes * boxes.new_tensor([seen_w / w, seen_h / h] * 2)
        # maps cover the whole batch tensor: an image smaller than the batch's largest lies at its top left
        return pool_features([m[i].detach() for m in levels], seen, tuple(inputs.tensors.shape[-2:]))

    return RawRows(scores=score(image), logits=image["cls_logits"], decode=decode, features=features, **head)


def _final(boxes: Tensor, capture: Capture, i: int) -> Tensor:
    """Decoded boxes as the detector returns them: clipped to the image, in its original pixels."""
    from torchvision.models.detection.transform import resize_boxes
    from torchvision.ops import clip_boxes_to_image

    original, seen = sizes(capture, i)
    resized: Tensor = resize_boxes(clip_boxes_to_image(boxes, seen), seen, original)
    return resized


def _without_background(logits: Tensor) -> Tensor:
    scores = logits.softmax(-1)
    scores[:, 0] = 0
    return scores
