"""torchvision: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite, and models built from their parts.

The detector returns its own list of dicts; each dict gains `reliability`, `reliability_interval`,
`verdict`, `expected_iou` and `instances`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..frame import Candidates, Frame, Glance, View
from ..instances import Instances
from .base import Hook, Host, Process, Removable, check_images, dropouts, dropping
from .info import HostInfo
from .look import Kept, Part, frozen
from .rows import candidates, with_evidence
from .torchvision_inside import LAST, classifier, last_layer, maps, stage, trunk
from .torchvision_look import glance, shared
from .torchvision_rows import Capture, family, sizes

ADDED = ("reliability", "reliability_interval", "verdict", "expected_iou")


class TorchvisionHost(Host):
    """A detection model of torchvision, or a subclass or custom assembly of one.

    Class names are read from the attribute `model.class_names` (a list whose first entry is the background's, or a
    dict) where the model has one; a model with 91 classes without it is taken to speak COCO. `torch.jit.script` knows
    no hooks of ours: remove the handle before it.

    Raises:
        TypeError: The model is from torchvision but no detector.
    """

    name = "torchvision"
    info = HostInfo(
        models="Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD, SSDLite",
        beside='`output["reliability"]`, `output["instances"]`', licence="BSD-3-Clause",
        tested="torchvision>=0.19,<0.30",
    )  # fmt: skip

    def __init__(self, model: Any) -> None:
        found = family(model)
        if found is None:
            raise TypeError(
                f"{type(model).__qualname__} is no detection model; of torchvision there are hosts for Faster, Mask "
                "and Keypoint R-CNN, RetinaNet, FCOS and SSD"
            )
        super().__init__(model)
        self._running = threading.local()  # `capture`: there during a pass in eval mode only, one for each thread
        self._family = found
        self._watched, self._raw = found.watched, found.raw
        self._needs: frozenset[str] = frozenset()

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
        running = self._running
        self._needs = frozenset(needs)
        self._dropout = bool(dropouts(self.model))

        def start(module: nn.Module, args: Any) -> None:
            tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            running.capture = None if module.training or tracing else {}

        def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
            if (capture := getattr(running, "capture", None)) is not None:
                capture[name] = (args, output)

        def keep_stage(module: nn.Module, args: Any, output: Any) -> None:
            capture = getattr(running, "capture", None)
            if capture is not None and (name := stage(capture, output)) is not None:
                capture[name] = ((), output)  # what runs later is deeper; a sequence ends with its last block

        def keep_input(module: nn.Module, args: Any) -> None:
            if (capture := getattr(running, "capture", None)) is not None:
                capture.setdefault(LAST, ([], module))[0].append(args[0].detach())

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
        if "maps" in needs:
            watch += [m.register_forward_hook(Hook(keep_stage, report)) for m in trunk(self.model.backbone)]
        layer = last_layer(self.model, self._family.last) if "classifier" in needs else None
        if layer is not None:
            watch.append(layer.register_forward_pre_hook(Hook(keep_input, report)))
        return [
            self.model.register_forward_pre_hook(Hook(start, report)),
            *watch,
            self.model.register_forward_hook(Hook(finish, report), always_call=True),
        ]

    def _frame(self, capture: Capture, detections: Mapping[str, Tensor], i: int) -> Frame:
        self._check(capture)
        instances = _bare(capture, detections, i)
        if "masks" in detections:
            instances = instances.replace(masks=detections["masks"].detach()[:, 0] > 0.5)
        raw = self._raw(self.model, capture, i)
        raw = replace(raw, classifier=classifier(capture, i, raw.logits.shape[1]))
        view = _view(self.model.transform, capture, i)
        levels = maps(capture, i)
        return replace(
            with_evidence(instances, raw, partial(self._look, capture, i) if view and "look" in self._needs else None),
            view=view,
            maps=None if levels is None else {name: level.detach() for name, level in levels.items()},
            rerun=None if view is None else self._rerun,
            dropout=self._dropout,
        )

    def _rerun(self, pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        """See `Frame.rerun`."""
        transform = self.model.transform
        batch = transform.batch_images(list(pixels), size_divisible=transform.size_divisible)
        with torch.no_grad(), dropping(self.model) if dropout else nullcontext(), self._aside(pixels, batch) as capture:
            self._family.run(self.model, capture["transform"][1][0])
            self._check(capture)
            return [candidates(self._raw(self.model, capture, i)) for i in range(len(pixels))]

    def _look(self, seen: Capture, i: int, kept: Kept, pixels: Tensor, parts: Collection[str]) -> Glance:
        """See `Frame.look`. Padded as the image was in its batch: what lies beside it shows at its edge."""
        batch, (h, w) = seen["transform"][1][0].tensors, sizes(seen, i)[1]
        if pixels.shape[1:] != (batch.shape[1], h, w):
            raise ValueError(f"pixels must be (B, {batch.shape[1]}, {h}, {w}) as the view's, not {tuple(pixels.shape)}")
        padded = pad(pixels.to(batch.dtype), (0, batch.shape[3] - w, 0, batch.shape[2] - h))
        with self._aside(pixels, padded) as capture:
            run = partial(glance, family=self._family, capture=seen, i=i, kept=kept, parts=parts)
            found: Glance = frozen(Part(self.model, run), capture["transform"][1][0])
            layers = {**shared(capture), **(found.layers or {})} if "layers" in parts else None
            return replace(found, maps=maps(capture, slice(None)), layers=layers)

    @contextmanager
    def _aside(self, pixels: Tensor, batch: Tensor) -> Iterator[Capture]:
        """The hooks write into a capture of its own, of a batch of (B, 3, h, w) pixels; the running pass's stays."""
        from torchvision.models.detection.image_list import ImageList

        images = list(pixels)
        inputs = ImageList(batch, [(int(image.shape[1]), int(image.shape[2])) for image in images])
        capture: Capture = {"transform": ((images, None), (inputs, None))}  # resized by nothing: boxes stay as seen
        outer, self._running.capture = getattr(self._running, "capture", None), capture
        try:
            yield capture
        finally:
            self._running.capture = outer

    def _check(self, capture: Capture) -> None:
        missing = [name for name in self._watched if name not in capture]
        if missing:
            raise RuntimeError(f"model.{missing[0]} was replaced after attach, or is not called; attach again")

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
        check_images(images)
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


def _bare(capture: Capture, detections: Mapping[str, Tensor], i: int) -> Instances:
    # float32: the area of a box overflows float16
    return Instances(
        boxes=detections["boxes"].detach().float(),
        scores=detections["scores"].detach().float(),
        labels=detections["labels"].detach(),
        image_size=sizes(capture, i)[0] if "transform" in capture else None,
    )


def _view(transform: Any, capture: Capture, i: int) -> View | None:
    original, (h, w) = sizes(capture, i)
    pixels = capture["transform"][1][0].tensors[i, :, :h, :w].detach()
    if len(pixels) != 3:  # a detector of something other than RGB
        return None
    return View(
        pixels=pixels,
        scale=(w / original[1], h / original[0]),
        mean=tuple(transform.image_mean),
        std=tuple(transform.image_std),
    )


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
