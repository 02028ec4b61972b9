"""torchvision: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite, and models built from their parts.

The detector returns its own list of dicts; each dict gains `reliability`, `reliability_interval`,
`verdict`, `expected_iou` and `instances`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..frame import Frame, View
from ..instances import Instances
from .base import Hook, Host, Process, Removable
from .rows import RawRows, candidates, pool_features, with_evidence

ADDED = ("reliability", "reliability_interval", "verdict", "expected_iou")
Capture = dict[str, tuple[Any, Any]]
"""(arguments, output) of each watched module in one forward pass of the model."""


class TorchvisionHost(Host):
    """A detection model of torchvision, or a subclass or custom assembly of one.

    Class names are read from the attribute `model.class_names` (a list whose first entry is the background's, or a
    dict) where the model has one; a model with 91 classes without it is taken to speak COCO. `torch.jit.script` knows
    no hooks of ours: remove the handle before it.

    Raises:
        TypeError: The model is from torchvision but no detector.
    """

    name = "torchvision"

    def __init__(self, model: Any) -> None:
        from torchvision.models.detection import FCOS, RetinaNet
        from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
        from torchvision.models.detection.ssd import SSD

        if not isinstance(model, (GeneralizedRCNN, RetinaNet, FCOS, SSD)):
            raise TypeError(
                f"{type(model).__qualname__} is no detection model; of torchvision there are hosts for Faster, Mask "
                "and Keypoint R-CNN, RetinaNet, FCOS and SSD"
            )
        super().__init__(model)
        self._raw: Callable[[Any, Capture, int], RawRows]
        if isinstance(model, GeneralizedRCNN):
            self._watched, self._raw = ("transform", "roi_heads", "roi_heads.box_predictor"), _two_stage
        else:
            self._watched = ("transform", "head", "anchor_generator")
            self._raw = _fcos if isinstance(model, FCOS) else _retinanet if isinstance(model, RetinaNet) else _ssd

    @classmethod
    def load(cls, spec: str, **options: Any) -> nn.Module:
        """`ARCHITECTURE:WEIGHTS`, such as `maskrcnn_resnet50_fpn_v2:weights.pth`; see `torchvision_zoo.load`."""
        from .torchvision_zoo import load

        return load(spec, **options)

    def class_names(self) -> dict[int, str]:
        """Label -> name; `{}` where neither names are given nor the head says how many classes there are."""
        given = getattr(self.model, "class_names", None)
        if given is not None:
            return dict(given) if isinstance(given, Mapping) else dict(enumerate(given))
        count = _num_classes(self.model)
        if count != 91:
            return {i: f"class {i}" for i in range(count)}
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        return dict(enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]))

    def module(self) -> nn.Module:
        found: nn.Module = self.model
        return found

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        """Watch the modules that make boxes; when the model's forward ends, add the keys to what it returns."""
        running = threading.local()  # `capture`: there during a forward pass in eval mode only, one for each thread

        def start(module: nn.Module, args: Any) -> None:
            tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            running.capture = None if module.training or tracing else {}

        def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
            if (capture := getattr(running, "capture", None)) is not None:
                capture[name] = (args, output)

        def finish(module: nn.Module, args: Any, output: Any) -> None:
            capture, running.capture = getattr(running, "capture", None), None
            if capture is None or output is None:  # training, or the forward pass itself has failed
                return
            with torch.no_grad():
                for i, detections in enumerate(output):
                    bare = partial(_bare, capture, detections, i)
                    instances = process(partial(self._frame, capture, detections, i), bare)
                    detections.update({name: instances.column(name) for name in ADDED}, instances=instances)

        watch = [
            self.model.get_submodule(name).register_forward_hook(Hook(partial(keep, name), report))
            for name in self._watched
        ]
        return [
            self.model.register_forward_pre_hook(Hook(start, report)),
            *watch,
            self.model.register_forward_hook(Hook(finish, report), always_call=True),
        ]

    def _frame(self, capture: Capture, detections: Mapping[str, Tensor], i: int) -> Frame:
        missing = [name for name in self._watched if name not in capture]
        if missing:
            raise RuntimeError(f"model.{missing[0]} was replaced after attach, or is not called; attach again")
        instances = _bare(capture, detections, i)
        if "masks" in detections:
            instances = instances.replace(masks=detections["masks"].detach()[:, 0] > 0.5)
        raw = self._raw(self.model, capture, i)
        return Frame(
            instances=with_evidence(instances, raw),
            view=_view(self.model.transform, capture, i),
            candidates=candidates(raw),
        )

    def predict(self, images: Sequence[np.ndarray], conf: float = 0.0, **options: Any) -> list[Instances]:
        """Run the hooked model on (H, W, 3) uint8 RGB images, all in one batch.

        Args:
            images: One array for each image.
            conf: Instances with a lower score are left out of the answer.
            **options: There are no others.

        Raises:
            RuntimeError: The model is in training mode, or not hooked.
            ValueError: An image is not (H, W, 3) uint8.
        """
        if options:
            raise TypeError(f"unknown option {sorted(options)[0]!r}; torchvision takes `conf`")
        if self.model.training:
            raise RuntimeError("the model is in training mode and returns losses; call model.eval() first")
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"images must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
        if not len(images):
            return []
        weight = next(self.model.parameters())
        with torch.inference_mode():
            # ascontiguousarray: flipped views (BGR -> RGB by [..., ::-1]) have negative strides, which torch refuses
            batch = [torch.from_numpy(np.ascontiguousarray(a)).to(weight.device).permute(2, 0, 1) / 255 for a in images]
            outputs = self.model([image.to(weight.dtype) for image in batch])
        if any("instances" not in output for output in outputs):
            raise RuntimeError("the model is not hooked; attach(model, monitor) first")
        found: list[Instances] = [output["instances"] for output in outputs]
        return [instances[instances.scores >= conf] for instances in found]


def _sizes(capture: Capture, i: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of an image as it was given, and as the detector saw it."""
    (images, *_), (inputs, _) = capture["transform"]
    (h, w), (seen_h, seen_w) = images[i].shape[-2:], inputs.image_sizes[i]
    return (int(h), int(w)), (int(seen_h), int(seen_w))


def _bare(capture: Capture, detections: Mapping[str, Tensor], i: int) -> Instances:
    # float32: the area of a box overflows float16
    return Instances(
        boxes=detections["boxes"].detach().float(),
        scores=detections["scores"].detach().float(),
        labels=detections["labels"].detach(),
        image_size=_sizes(capture, i)[0] if "transform" in capture else None,
    )


def _view(transform: Any, capture: Capture, i: int) -> View | None:
    original, (h, w) = _sizes(capture, i)
    pixels = capture["transform"][1][0].tensors[i, :, :h, :w].detach()
    if len(pixels) != 3:  # a detector of something other than RGB
        return None
    return View(
        pixels=pixels,
        scale=(w / original[1], h / original[0]),
        mean=tuple(transform.image_mean),
        std=tuple(transform.image_std),
    )


def _final(boxes: Tensor, capture: Capture, i: int) -> Tensor:
    """Decoded boxes as the detector returns them: clipped to the image, in its original pixels."""
    from torchvision.models.detection.transform import resize_boxes
    from torchvision.ops import clip_boxes_to_image

    original, seen = _sizes(capture, i)
    resized: Tensor = resize_boxes(clip_boxes_to_image(boxes, seen), seen, original)
    return resized


def _without_background(logits: Tensor) -> Tensor:
    scores = logits.softmax(-1)
    scores[:, 0] = 0
    return scores


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


def _dense(capture: Capture, i: int, coder: Callable[[Tensor, Tensor], Tensor], score: Callable[..., Tensor],
           **head: Any) -> RawRows:
    """One-stage: a row is an anchor, with one box."""
    (maps, *_), output = capture["head"]
    inputs = capture["transform"][1][0]
    anchors = capture["anchor_generator"][1][i]
    image: dict[str, Tensor] = {name: value[i].detach() for name, value in output.items()}

    def decode(rows: Tensor, labels: Tensor) -> Tensor:
        return _final(coder(image["bbox_regression"][rows], anchors[rows]), capture, i)

    def features(rows: Tensor, boxes: Tensor) -> Tensor:
        (h, w), (seen_h, seen_w) = _sizes(capture, i)
        seen = boxes * boxes.new_tensor([seen_w / w, seen_h / h] * 2)
        # maps cover the whole batch tensor: an image smaller than the batch's largest lies at its top left
        return pool_features([m[i].detach() for m in maps], seen, tuple(inputs.tensors.shape[-2:]))

    return RawRows(scores=score(image), logits=image["cls_logits"], decode=decode, features=features, **head)


def _retinanet(model: Any, capture: Capture, i: int) -> RawRows:
    return _dense(capture, i, model.box_coder.decode_single, lambda t: t["cls_logits"].sigmoid(), head="sigmoid")


def _fcos(model: Any, capture: Capture, i: int) -> RawRows:
    def score(image: Mapping[str, Tensor]) -> Tensor:
        return torch.sqrt(image["cls_logits"].sigmoid() * image["bbox_ctrness"].sigmoid())

    return _dense(capture, i, model.box_coder.decode, score, head="sigmoid")


def _ssd(model: Any, capture: Capture, i: int) -> RawRows:
    return _dense(capture, i, model.box_coder.decode_single, lambda t: _without_background(t["cls_logits"]),
                  head="softmax+background", background=0)


def _num_classes(model: Any) -> int:
    """How many columns the class logits have; 0 where a custom head does not say."""
    for path in ("roi_heads.box_predictor.cls_score.out_features", "head.classification_head.num_classes",
                 "head.classification_head.num_columns"):
        found = model
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, int):
            return found
    return 0
