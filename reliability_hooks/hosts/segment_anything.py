"""Segment Anything: segment_anything's and SAM 2's image predictors and automatic mask generators.

What they return stays what it is: `predict` a tuple of arrays, `generate` a list of dicts, each of which gains
`reliability`, `reliability_interval`, `verdict` and `expected_iou`. The instances stand on the object that was attached
to: `predictor.instances` and `generator.instances` are those of the last call in the same thread (after
`predict_batch` a list, one for each image). There are no classes: every label is 0, and right means that the mask
overlaps its object enough.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluation.datasets import GroundTruth
from ..evaluation.labels import with_object_iou
from ..frame import Frame, Prompted
from ..instances import Instances
from .base import Hook, Host, Process, Removable, Undo
from .info import HostInfo
from .segment_anything_masks import origin_of, to_masks, with_answers
from .segment_anything_prompts import ask, prompts_for
from .segment_anything_rows import Origin, Shown, features, prompted, to_instances
from .segment_anything_tap import Seen, Tap, parts_of
from .watch import Around

SETTERS = ("set_torch_image", "set_image", "set_image_batch")
"""Methods of a predictor that take an image; segment_anything's `set_image` calls the first of them."""
FORGETTERS = ("reset_image", "reset_predictor")
PREDICTS = ("predict_torch", "_predict")
"""The one method of each predictor through which all others predict."""


class SegmentAnythingHost(Host):
    """Hooks on a `SamPredictor`, a `SamAutomaticMaskGenerator`, or those of SAM 2.

    An image is to be set after `attach`; of one that was set before, the pixels are not known.

    Raises:
        TypeError: The object is none of these; the message says what to attach to.
    """

    name: ClassVar[str] = "segment_anything"
    class_free: ClassVar[bool] = True
    info: ClassVar[HostInfo] = HostInfo(
        models="`SamPredictor` (points, boxes, masks), `SamAutomaticMaskGenerator`",
        beside="`predictor.instances`, `generator.instances`, keys of each generated dict", licence="Apache-2.0",
        tested="segment-anything>=1.0,<1.1", logits=False, candidates=False, gradients=False,
    )  # fmt: skip

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.generates = callable(getattr(model, "generate", None))
        self.predictor: Any = getattr(model, "predictor", None) if self.generates else model
        needed = ("set_image", "predict", "model")
        if self.predictor is None or not all(hasattr(self.predictor, name) for name in needed):
            raise TypeError(f"{type(model).__qualname__} is neither a predictor nor a mask generator; attach to "
                            "SamPredictor(sam), SamAutomaticMaskGenerator(sam) or those of SAM 2")
        parts_of(self.predictor.model)
        self._forget()
        self._process: Process = _refuse

    def _forget(self) -> None:
        """What is held of images and of the last call, in every thread."""
        self._local = threading.local()  # `instances` of the last call
        self._images: Tensor | None = None  # (B, 3, side, side) that are set on the predictor

    @classmethod
    def load(cls, spec: str, **options: Any) -> Any:
        """`ARCHITECTURE:WEIGHTS`, such as `vit_b:sam_vit_b_01ec64.pth`; see `segment_anything_zoo.load`."""
        from .segment_anything_zoo import load

        return load(cls.name, spec, **options)

    def class_names(self) -> dict[int, str]:
        return {0: "object"}

    def module(self) -> nn.Module:
        found: nn.Module = self.predictor.model
        return found

    @property
    def stretched(self) -> bool:
        """Whether an image fills the model's square input (SAM 2), or is padded."""
        return hasattr(self.predictor, "_transforms")

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        """Stand around the methods that set an image and that predict, and listen to the model meanwhile."""
        tap = Tap(self.module(), report)
        keep, judge = Hook(self._keep, report), Hook(partial(self._judge, tap, process), report)
        judge_all = Hook(partial(self._judge_generated, tap, process), report)
        self._process = process

        def stand(name: str, call: Callable[[], Any], given: Mapping[str, Any]) -> Any:
            if name in FORGETTERS:
                self._images = None
                return call()
            if name == "predict_batch":
                self._local.batch = []
                try:
                    result = call()
                finally:
                    self._local.instances, self._local.batch = self._local.batch, None
                return result
            self._local.instances = None
            with tap.listen() as seen:
                result = call()
                if name in SETTERS:
                    keep(seen)
                elif name == "generate":
                    judge_all(seen, given["image"], result)
                else:
                    judge(seen, given.get("img_idx", -1), result)
            return result

        names = ("generate",) if self.generates else (*SETTERS, *FORGETTERS, *PREDICTS, "predict_batch")
        around = Around(self.model, names, stand, {"instances": lambda: getattr(self._local, "instances", None)})
        return [around, tap, Undo(self._forget)]

    def _keep(self, seen: Seen) -> None:
        if seen.images:  # of a nested call, the inner one has heard it
            self._images = seen.images[-1]

    def _judge(self, tap: Tap, process: Process, seen: Seen, image: int, result: Any) -> None:
        masks, ious = (part.detach() for part in result[:2])
        size = self.predictor._orig_hw[image] if self.stretched else self.predictor.original_size
        shown = Shown.of((int(size[0]), int(size[1])), self._side(), self.stretched)
        inside = (masks if masks.dtype == torch.bool else masks > self._threshold()).flatten(0, 1)
        instances = to_instances(inside, ious.flatten(), shown.size)
        if not seen.passes:
            self.say("the mask decoder was not called: masks are judged by what is seen of them alone")
        origin = Origin.of_pass(seen.passes[-1], shown) if seen.passes else None
        pixels = None if self._images is None else self._images[image]
        if pixels is None:
            self.say("the image was set before the predictor was attached: nothing is judged by its pixels; set it "
                      "again")
        with torch.no_grad():
            judged = process(partial(self._frame, tap, instances, ious.flatten().float(), origin, shown, pixels),
                             partial(_bare, instances))  # fmt: skip
        batch = getattr(self._local, "batch", None)
        if batch is None:
            self._local.instances = judged
        else:
            batch.append(judged)

    def _judge_generated(self, tap: Tap, process: Process, seen: Seen, image: np.ndarray, result: Any) -> None:
        size, side, device = (int(image.shape[0]), int(image.shape[1])), self._side(), self.predictor.device
        shown = Shown.of(size, side, self.stretched)
        ious = torch.tensor([found["predicted_iou"] for found in result], dtype=torch.float32, device=device)
        masks = torch.from_numpy(to_masks([found["segmentation"] for found in result], size)).to(device)
        instances = to_instances(masks, ious, size)

        def build() -> Frame:
            origin = origin_of(result, seen.passes, side, self.stretched, device) if seen.passes else None
            pixels = seen.images[0][0] if seen.images else None  # of crops, the first is the whole image
            return self._frame(tap, instances, ious, origin, shown, pixels)

        with torch.no_grad():
            judged = process(build, partial(_bare, instances))
        self._local.instances = judged
        with_answers(result, judged)

    def _frame(
        self, tap: Tap, instances: Instances, ious: Tensor, origin: Origin | None, shown: Shown, pixels: Tensor | None
    ) -> Frame:
        view = None if pixels is None else shown.view(pixels, *self._normalisation())
        if origin is None:
            return Frame(instances, view)
        instances = instances.replace(features=features(origin.passes[0], instances.boxes, shown))
        threshold, boxes = self._threshold(), instances.boxes

        @lru_cache(maxsize=1)
        def known() -> Prompted:
            return prompted(tap, origin, ious, boxes, threshold)

        return replace(Frame(instances, view), mask_logits=lambda: known().logits, prompted=known)

    def _side(self) -> int:
        return int(self.predictor.model.image_size if self.stretched else self.predictor.model.image_encoder.img_size)

    def _threshold(self) -> float:
        of = self.model if self.stretched else self.predictor.model
        return float(of.mask_threshold)

    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        if self.stretched:
            return self.predictor._transforms.mean, self.predictor._transforms.std
        model = self.predictor.model
        return (model.pixel_mean.flatten() / 255).tolist(), (model.pixel_std.flatten() / 255).tolist()

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        """Segment (H, W, 3) uint8 RGB images, one by one.

        Args:
            images: One array for each image.
            **options: Of a predictor `boxes` (N, 4) xyxy or `points` (N, 2) or (N, P, 2) with `labels` (N, P), each a
                list with an array for each image; `multimask` for three answers to each prompt instead of one. A
                generator takes none.

        Raises:
            RuntimeError: It is not hooked.
            TypeError, ValueError: No prompts, or not as many as images.
        """
        if not hasattr(type(self.model), "_reliability_bare"):
            raise RuntimeError("it is not hooked; attach(predictor, monitor) first")
        if not self.generates:
            asked = ask(self.predictor, self.stretched, images, **options)
            return [self._nothing(image) if call is None else self._answer(call)
                    for image, call in zip(images, asked, strict=True)]  # fmt: skip
        if options:
            raise TypeError(f"unknown option {sorted(options)[0]!r}; a mask generator is set up when it is made")
        return [self._answer(lambda image=image: self.model.generate(image)) for image in images]  # type: ignore[misc]

    def _answer(self, call: Callable[[], Any]) -> Instances:
        call()
        found: Instances | None = self.model.instances
        if found is None:
            raise RuntimeError("the masks could not be read; the log says why")
        return found

    def _nothing(self, image: np.ndarray) -> Instances:
        """No prompts, which the model itself would refuse."""
        masks = torch.zeros(0, *image.shape[:2], dtype=torch.bool, device=self.predictor.device)
        empty = to_instances(masks, masks.new_zeros(0, dtype=torch.float32), (image.shape[0], image.shape[1]))
        width = int(parts_of(self.module())[2].transformer_dim)
        kept = empty.replace(features=empty.boxes.new_zeros(0, width))
        return self._process(lambda: Frame(kept), lambda: empty)

    def predict_labelled(
        self, images: Sequence[np.ndarray], truths: Sequence[GroundTruth], **options: Any
    ) -> list[Instances]:
        """As `predict`, with the column `evaluation.labels.OBJECT_IOU`: IoU of each mask with its object.

        A predictor is prompted with each annotated object (`prompt` `box` or `point`, and `jitter`: see
        `segment_anything_prompts.prompts_for`), and each mask is compared with that object. A generator's masks find
        their objects by COCO's greedy matching of masks; what nobody annotated counts as wrong.

        Raises:
            ValueError: An object has no mask.
        """
        if self.generates:
            return [with_object_iou(i, t) for i, t in zip(self.predict(images, **options), truths, strict=True)]
        how = {name: options.pop(name) for name in ("prompt", "jitter") if name in options}
        found = []
        for image, truth in zip(images, truths, strict=True):
            prompts, objects = prompts_for(truth, image.shape[:2], **how)
            (instances,) = self.predict([image], **prompts, **options)
            each = len(instances) // max(len(objects), 1)
            found.append(with_object_iou(instances, truth, np.repeat(objects, each)))
        return found


class Sam2Host(SegmentAnythingHost):
    """Hooks on a `SAM2ImagePredictor` or a `SAM2AutomaticMaskGenerator`; as `SegmentAnythingHost`."""

    name: ClassVar[str] = "sam2"
    info: ClassVar[HostInfo] = HostInfo(
        models="`SAM2ImagePredictor` (also `predict_batch`), `SAM2AutomaticMaskGenerator`; not the video predictor",
        beside="as `segment_anything`", licence="Apache-2.0", tested="sam2>=1.1,<1.2", logits=False, candidates=False,
        gradients=False,
    )  # fmt: skip


def _refuse(build: Callable[[], Frame], bare: Callable[[], Instances]) -> Instances:
    raise RuntimeError("it is not hooked; attach(predictor, monitor) first")


def _bare(instances: Instances) -> Instances:
    return instances.replace(masks=None)
