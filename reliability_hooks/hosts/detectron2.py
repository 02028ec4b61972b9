"""Detectron2: Faster and Mask R-CNN (FPN, C4), Cascade R-CNN, PointRend, RetinaNet, FCOS, and others of their parts.

The model returns its own `Instances`; each gains the fields `reliability`, `reliability_interval`, `verdict`,
`expected_iou`, every other column of the monitor, and `evidence`, our own `reliability_hooks.Instances` with logits,
features and masks. All of them survive `detector_postprocess`, indexing, `cat` and `.to()`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..frame import Candidates, Frame, Glance
from ..instances import Instances
from .base import Hook, Host, Process, Removable, check_images, dropouts, dropping
from .detectron2_inside import CHANNELS, classifier, maps, shared, view
from .detectron2_look import can_look, glance, run
from .detectron2_names import as_input, class_names
from .detectron2_rows import Pass, family
from .detectron2_watch import Watch
from .info import HostInfo
from .look import Kept, Part, frozen
from .rows import candidates, with_evidence

EVIDENCE = "evidence"
"""The field that holds our own instances."""


class Detectron2Host(Host):
    """A model of Detectron2 that returns `Instances` with `pred_boxes`, or a `DefaultPredictor` that holds one.

    Boxes come with logits, features and candidates where the head is known; where it is not, and for heads that run
    several branches side by side (TridentNet), they are judged by image signals alone, which is said once. Rotated
    boxes are left alone. Only the model's own call is judged: `model.inference(...)`, as test-time augmentation calls
    it, is not.

    A cascade averages the probabilities of its stages. Its logits are those of the average, and their log-sum-exp is
    the mean of the stages' (`detectron2_rows.joined`); its features are the last stage's.

    Class names are read from the predictor's metadata, from the attribute `model.class_names` (a list or a dict) where
    there is one, and a model of 80 classes without either is taken to speak COCO.

    Args:
        model: The model, or a `DefaultPredictor`.
        input_format: `BGR` or `RGB`, the order of the channels that the model is given; as the model or the predictor
            says without it, and Detectron2's default, BGR, where neither does.

    Raises:
        TypeError: There is no model in it.
        ValueError: The input format is not known.
    """

    name = "detectron2"
    info = HostInfo(
        models="Faster, Mask and Keypoint R-CNN (FPN, C4), Cascade R-CNN, PointRend, RetinaNet, FCOS; "
        "`DefaultPredictor`",
        beside='fields of `output["instances"]`', licence="Apache-2.0", tested="detectron2>=0.6,<0.7",
    )  # fmt: skip

    def __init__(self, model: Any, input_format: str | None = None) -> None:
        super().__init__(model)
        self.net: Any = model if isinstance(model, nn.Module) else getattr(model, "model", None)
        if not isinstance(self.net, nn.Module):
            raise TypeError(f"{type(model).__qualname__} is neither a model of Detectron2 nor a predictor of one")
        own = getattr(self.net, "input_format", None) or getattr(model, "input_format", None)
        self.format = str(input_format or own or "BGR")
        if input_format is not None and input_format not in CHANNELS:
            raise ValueError(f"input_format must be {' or '.join(CHANNELS)}, not {input_format!r}")
        self._family = family(self.net)
        self._watch = Watch(self.net, self._family)
        self._needs: frozenset[str] = frozenset()

    @classmethod
    def load(cls, spec: str, **options: Any) -> Any:
        """`CONFIG.yaml:WEIGHTS`, `CONFIG.py:WEIGHTS` or `model_zoo:CONFIG`; see `detectron2_load.load`.

        Raises:
            ImportError: Detectron2 is not installed.
        """
        try:
            from .detectron2_load import load
        except ImportError as error:
            raise ImportError(f"{error}; Detectron2 is on no registry, install it from its source: pip install "
                              "--no-build-isolation git+https://github.com/facebookresearch/detectron2") from error
        return load(spec, **options)

    def class_names(self) -> dict[int, str]:
        """Label -> name; `{}` where neither names are given nor the head says how many classes there are."""
        return class_names(self.model, self.net)

    def module(self) -> nn.Module:
        found: nn.Module = self.net
        return found

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        """Watch the modules that make boxes; when the model's forward ends, add the fields to what it returns."""
        if self._family is None:
            self.say(f"the head of {type(self.net).__qualname__} is not known: its objects are judged by image "
                      "signals alone; known are ROI heads with a `box_predictor`, RetinaNet and FCOS")
        self._needs, self._dropout = frozenset(needs), bool(dropouts(self.net))

        def finish(module: nn.Module, args: Any, output: Any) -> None:
            seen = self._watch.take()
            if seen is None or not isinstance(output, list):  # training, or the forward pass itself has failed
                return
            with torch.no_grad():
                for i, answer in enumerate(output):
                    if (found := self._judgeable(answer)) is not None:
                        bare = _bare(found)
                        judged = process(partial(self._frame, seen, found, bare, i), partial(_same, bare))
                        _add(found, judged)

        return [
            *self._watch.install(report, needs),
            self.net.register_forward_hook(Hook(finish, report), always_call=True),
        ]

    def _judgeable(self, answer: Any) -> Any:
        """The detections in a model's answer; None, said once, where there are none that we can judge."""
        found = answer.get("instances") if isinstance(answer, Mapping) else None
        boxes = found.get("pred_boxes").tensor if found is not None and found.has("pred_boxes") else None
        if boxes is None or boxes.shape[1] != 4:
            self.say(f"{type(self.net).__qualname__} returns no instances with upright `pred_boxes`: no reliability "
                      "stands beside them")
            return None
        return found

    def _frame(self, seen: Pass, found: Any, instances: Instances, i: int) -> Frame:
        masks = found.get("pred_masks") if found.has("pred_masks") else None
        masks = getattr(masks, "tensor", masks)
        if isinstance(masks, Tensor) and masks.dtype == torch.bool and masks.ndim == 3:
            instances = instances.replace(masks=masks.detach())
        shown = view(self.net, seen, i, self.format)
        if not self._fits(seen):
            return Frame(instances, shown)
        assert self._family is not None
        raw = self._family.raw(self.net, seen, i)
        raw = replace(raw, classifier=classifier(seen, i, raw.scores.shape[1] - (raw.background is not None)))
        levels = maps(seen, i)
        looks = shown is not None and "look" in self._needs and can_look(self.net)
        again = shown is not None and (hasattr(self.net, "head") or self.net.proposal_generator is not None)
        return replace(
            with_evidence(instances, raw, partial(self._look, seen, i) if looks else None),
            view=shown,
            maps=None if levels is None else {name: level.detach() for name, level in levels.items()},
            rerun=self._rerun if again else None,
            dropout=self._dropout,
        )

    def _fits(self, seen: Pass) -> bool:
        """Whether the rows are those of the images, one for one."""
        if self._family is None:
            return False
        missing = [name for name in self._family.watched if name not in seen.calls]
        if missing:
            raise RuntimeError(f"model.{missing[0]} was replaced after attach, or is not called; attach again")
        if "roi_heads" in seen.calls and len(seen.proposals) != len(seen.sizes):
            self.say(f"{type(self.net.roi_heads).__qualname__} runs several branches on each image: its objects are "
                      "judged by image signals alone")
            return False
        return True

    def _rerun(self, pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        """See `Frame.rerun`."""
        from detectron2.structures import ImageList

        backbone = self.net.backbone
        batch = ImageList.from_tensors(
            list(pixels[:, CHANNELS[self.format]]), backbone.size_divisibility,
            padding_constraints=backbone.padding_constraints,
        )  # fmt: skip
        with torch.no_grad(), dropping(self.net) if dropout else nullcontext(), self._watch.aside(pixels) as seen:
            run(self.net, seen, batch.tensor)
            self._fits(seen)
            assert self._family is not None
            return [candidates(self._family.raw(self.net, seen, i)) for i in range(len(pixels))]

    def _look(self, seen: Pass, i: int, kept: Kept, pixels: Tensor, parts: Collection[str]) -> Glance:
        """See `Frame.look`. Padded as the image was in its batch: what lies beside it shows at its edge."""
        batch, (h, w) = seen.batch, seen.sizes[i]
        if pixels.shape[1:] != (batch.shape[1], h, w):
            raise ValueError(f"pixels must be (B, {batch.shape[1]}, {h}, {w}) as the view's, not {tuple(pixels.shape)}")
        own = pixels[:, CHANNELS[self.format]].to(batch.dtype)
        padded = pad(own, (0, batch.shape[3] - w, 0, batch.shape[2] - h))
        with self._watch.aside(pixels) as again:
            found: Glance = frozen(Part(self.net, partial(glance, seen=seen, i=i, kept=kept, parts=parts)), padded)
            layers = {**shared(again), **(found.layers or {})} if "layers" in parts else None
            return replace(found, maps=maps(again, slice(None)), layers=layers)

    def predict(
        self, images: Sequence[np.ndarray], conf: float = 0.0, min_size: int = 800, max_size: int = 1333, **options: Any
    ) -> list[Instances]:
        """Run the hooked predictor on (H, W, 3) uint8 RGB images one by one, or the hooked model on all in one batch.

        Args:
            images: One array for each image.
            conf: Instances with a lower score are left out of the answer.
            min_size: Pixels of the shorter side to which a bare model's images are resized; a predictor has its own.
            max_size: Most pixels of the longer side.
            **options: There are no others.

        Raises:
            RuntimeError: The model is in training mode, or not hooked.
            ValueError: An image is not (H, W, 3) uint8.
        """
        if options:
            raise TypeError(f"unknown option {sorted(options)[0]!r}; detectron2 takes `conf`, `min_size`, `max_size`")
        if self.net.training:
            raise RuntimeError("the model is in training mode and returns losses; call model.eval() first")
        check_images(images)
        if not len(images):
            return []
        if self.model is not self.net:
            answers = [self.model(np.ascontiguousarray(image[..., ::-1])) for image in images]
        else:
            with torch.inference_mode():
                answers = self.net([as_input(image, self.format, min_size, max_size) for image in images])
        if any("instances" not in answer or not answer["instances"].has(EVIDENCE) for answer in answers):
            raise RuntimeError("the model is not hooked; attach(model, monitor) first")
        found: list[Instances] = [answer["instances"].get(EVIDENCE) for answer in answers]
        return [instances[instances.scores >= conf] for instances in found]


def _bare(found: Any) -> Instances:
    boxes = found.get("pred_boxes").tensor.detach()
    return Instances(
        boxes=boxes.float().clone(),  # Detectron2 scales and clips boxes in place
        scores=found.get("scores").detach().float(),
        labels=found.get("pred_classes").detach(),
        image_size=(int(found.image_size[0]), int(found.image_size[1])),
    )


def _same(instances: Instances) -> Instances:
    return instances


def _add(found: Any, judged: Instances) -> None:
    """Every column as a field, but for one that has the name of a field of the detector's own."""
    former = found.get(EVIDENCE).columns if found.has(EVIDENCE) else {}  # model and predictor are hooked both
    own = {name for name, value in found.get_fields().items() if former.get(name) is not value}
    for name, value in judged.columns.items():
        if name not in own:
            found.set(name, value)
    found.set(EVIDENCE, judged)
