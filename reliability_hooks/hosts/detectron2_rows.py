"""What a Detectron2 model computes, in our terms: the notes of one pass, and raw rows made from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .rows import RawRows, pool_features


@dataclass
class Pass:
    """One forward pass.

    Attributes:
        sizes: (height, width) of each image as the model saw it, without the padding of its batch.
        finals: (height, width) of each image in whose pixels the boxes are returned.
        images: (C, H, W) each, as they were given; empty where the pixels are given at once.
        calls: (arguments, output) of each watched module, and of each stage of `MAPS`.
        pixels: (B, C, H, W) what the backbone is given: normalised, padded; None until it is called.
    """

    sizes: Sequence[tuple[int, int]]
    finals: Sequence[tuple[int, int]]
    images: Sequence[Tensor] = ()
    calls: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    pixels: Tensor | None = None

    @classmethod
    def of(cls, inputs: Sequence[Mapping[str, Any]]) -> Pass:
        """Of a model's own arguments: dicts with `image` (C, H, W) and, as they like, `height` and `width`."""
        sizes = [(int(x["image"].shape[-2]), int(x["image"].shape[-1])) for x in inputs]
        finals = [(int(x.get("height", h)), int(x.get("width", w))) for x, (h, w) in zip(inputs, sizes, strict=True)]
        return cls(sizes, finals, [x["image"] for x in inputs])

    @property
    def batch(self) -> Tensor:
        """The pixels, where there has to be a backbone."""
        assert self.pixels is not None
        return self.pixels

    @property
    def proposals(self) -> Sequence[Any]:
        """Of each image, as the heads are given them."""
        found: Sequence[Any] = self.calls["roi_heads"][0][2]
        return found

    def scale(self, i: int) -> tuple[float, float]:
        """(x, y) pixels that the model saw in a pixel of its answer."""
        (h, w), (final_h, final_w) = self.sizes[i], self.finals[i]
        return w / final_w, h / final_h


class Family(NamedTuple):
    """A kind of head.

    Attributes:
        watched: Modules that a pass calls, without which there are no rows.
        raw: (model, pass, i) -> the rows of image i.
        last: Where the last layer of the classifier is; None where several make the logits together.
    """

    watched: tuple[str, ...]
    raw: Callable[[Any, Pass, int], RawRows]
    last: str | None


def family(model: nn.Module) -> Family | None:
    """The family of a model; None where its head is not known.

    Two-stage heads are known by their `box_predictor`, one or a list of those of a cascade, which has to speak as
    `FastRCNNOutputLayers` does.
    """
    from detectron2.modeling import FCOS, RetinaNet

    if isinstance(model, (RetinaNet, FCOS)):
        return Family(("head", "anchor_generator"), _dense, "head.cls_score")
    predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
    stages = list(predictor) if isinstance(predictor, nn.ModuleList) else [predictor]
    if not stages or not all(hasattr(p, "predict_probs") and hasattr(p, "box2box_transform") for p in stages):
        return None
    path = "roi_heads.box_predictor"
    names = tuple(f"{path}.{k}" for k in range(len(stages))) if isinstance(predictor, nn.ModuleList) else (path,)
    last = f"{names[0]}.cls_score" if len(names) == 1 else None
    return Family(("roi_heads", *names), _two_stage, last)


def stages(model: Any) -> list[tuple[str, Any]]:
    """Path and module of the box predictor of each stage."""
    predictor, path = model.roi_heads.box_predictor, "roi_heads.box_predictor"
    if not isinstance(predictor, nn.ModuleList):
        return [(path, predictor)]
    return [(f"{path}.{k}", p) for k, p in enumerate(predictor)]


def joined(logits: Sequence[Tensor], sigmoid: bool) -> Tensor:
    """(..., K) logits of the mean of several stages' probabilities, which is what a cascade scores by.

    A softmax does not see a shift: theirs is such that log-sum-exp, the energy, is the mean of the stages'.
    """
    if len(logits) == 1:
        return logits[0]
    each = torch.stack([x.float() for x in logits])
    if sigmoid:
        on, off = (torch.nn.functional.logsigmoid(sign * each).logsumexp(0) for sign in (1, -1))
        return on - off
    return each.log_softmax(-1).logsumexp(0) - math.log(len(each)) + each.logsumexp(-1, keepdim=True).mean(0)


def rois(model: Any, seen: Pass, i: int) -> list[Tensor]:
    """(R, 4) xyxy in seen pixels, for each stage: where it looks at each row; one after another in a cascade."""
    found = [seen.proposals[i].proposal_boxes.tensor.detach()]
    for name, predictor in stages(model)[:-1]:
        _, deltas = own(seen, name, i)
        found.append(_clipped(predictor.box2box_transform.apply_deltas(deltas, found[-1]), seen.sizes[i]))
    return found


def own(seen: Pass, name: str, i: int) -> tuple[Tensor, Tensor]:
    """Logits and box deltas of a box predictor at the rows of image i."""
    counts = [len(p) for p in seen.proposals]
    logits, deltas = (t.detach().split(counts)[i] for t in seen.calls[name][1][:2])
    return logits, deltas


def of_class(deltas: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """(n, 4) the deltas of each row's label; the row's only ones where classes share a box."""
    each = deltas.reshape(len(deltas), -1, 4)
    return each[rows, labels if each.shape[1] > 1 else torch.zeros_like(labels)]


def _two_stage(model: Any, seen: Pass, i: int) -> RawRows:
    """R-CNN: a row is a proposal. A cascade averages the probabilities of its stages and keeps the last one's boxes."""
    made = [(predictor, *own(seen, name, i)) for name, predictor in stages(model)]
    sigmoid = bool(getattr(made[0][0], "use_sigmoid_ce", False))
    probable = [predictor.predict_probs((x, d), [seen.proposals[i]])[0].detach() for predictor, x, d in made]
    scores = sum(probable) * (1.0 / len(probable)) if len(probable) > 1 else probable[0].clone()
    logits, background = joined([x for _, x, _ in made], sigmoid), scores.shape[1] - 1
    predictor, _, deltas = made[-1]
    scores[~deltas.isfinite().all(1)] = 0  # Detectron2 drops such rows
    if sigmoid:
        scores, logits = scores[:, :-1], logits[:, :-1]
    else:
        scores[:, background] = 0
    boxes = rois(model, seen, i)[-1]
    (features, *_), _ = seen.calls[stages(model)[-1][0]]
    features = features.detach().split([len(p) for p in seen.proposals])[i]

    def decode(rows: Tensor, labels: Tensor) -> Tensor:
        moved = predictor.box2box_transform.apply_deltas(of_class(deltas, rows, labels), boxes[rows])
        return _final(moved, seen, i)

    return RawRows(
        scores=scores,
        logits=logits,
        decode=decode,
        head="sigmoid" if sigmoid else "softmax+background",
        background=None if sigmoid else background,
        features=lambda rows, _: features[rows].flatten(1),
    )


def dense_rows(model: Any, output: Any) -> list[Tensor]:
    """(B, R, k) logits, deltas and, of FCOS, centerness: a copy, as Detectron2 takes the sigmoids in place."""
    from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K

    widths = (model.num_classes, 4, 1)
    return [torch.cat([permute_to_N_HWA_K(x, k) for x in part], 1) for part, k in zip(output, widths, strict=False)]


def anchors(seen: Pass) -> Tensor:
    """(R, 4) xyxy in seen pixels, the same for each image of a batch."""
    return torch.cat([boxes.tensor for boxes in seen.calls["anchor_generator"][1]])


def _dense(model: Any, seen: Pass, i: int) -> RawRows:
    """A row is an anchor, or a place of FCOS, whose score is the geometric mean of probability and centerness."""
    (levels, *_), output = seen.calls["head"]
    logits, deltas, *centre = (part[i].detach() for part in output)
    scores = (logits.sigmoid() * centre[0].sigmoid()).sqrt() if centre else logits.sigmoid()
    at = anchors(seen)

    def decode(rows: Tensor, labels: Tensor) -> Tensor:
        return _final(model.box2box_transform.apply_deltas(deltas[rows], at[rows]), seen, i)

    def features(rows: Tensor, boxes: Tensor) -> Tensor:
        on_batch = boxes * boxes.new_tensor(seen.scale(i) * 2)
        height, width = seen.batch.shape[-2:]
        return pool_features([level[i].detach() for level in levels], on_batch, (height, width))

    return RawRows(scores=scores, logits=logits, decode=decode, head="sigmoid", features=features)


def _final(boxes: Tensor, seen: Pass, i: int) -> Tensor:
    """Decoded boxes as `detector_postprocess` leaves them: clipped to the image, in its original pixels."""
    (h, w), (final_h, final_w) = seen.sizes[i], seen.finals[i]
    return _clipped(_clipped(boxes, (h, w)) * boxes.new_tensor([final_w / w, final_h / h] * 2), (final_h, final_w))


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.stack([boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])], 2).flatten(1)
