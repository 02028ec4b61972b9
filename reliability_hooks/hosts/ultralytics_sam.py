"""Ultralytics `SAM`, with the weights of SAM, MobileSAM and SAM 2: prompts and the segmentation of everything.

Each result becomes a `Results` with `instances` and `reliability`, as those of `YOLO`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..evaluation.datasets import GroundTruth
from ..evaluation.labels import with_object_iou
from ..frame import Frame, Prompted
from ..instances import Instances
from .info import HostInfo
from .segment_anything_prompts import prompts_for
from .segment_anything_rows import Origin, Shown, features, prompted
from .segment_anything_tap import Pass, Seen, Tap
from .ultralytics import UltralyticsHost

log = logging.getLogger(__name__)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels in [0, 1], which the predictor has in 255ths."""


class UltralyticsSamHost(UltralyticsHost):
    """Hooks on an `ultralytics.SAM`; every label is 0, and the score the predicted IoU."""

    name: ClassVar[str] = "ultralytics.models.sam"
    class_free: ClassVar[bool] = True
    info: ClassVar[HostInfo] = HostInfo(
        models="`SAM` (SAM, MobileSAM, SAM 2): `bboxes`, `points`, or everything",
        beside="`result.instances`, `result.reliability`, `to_df()`", licence="AGPL-3.0",
        tested="ultralytics>=8.4,<8.5", logits=False, candidates=False, gradients=False,
    )  # fmt: skip
    _begins: ClassVar[str] = "on_predict_batch_start"

    @classmethod
    def load(cls, spec: str, **options: Any) -> Any:
        """`SAM(spec)`, whose name tells the architecture: `sam_b.pt`, `mobile_sam.pt`, `sam2.1_t.pt`."""
        if options:
            raise ValueError(f"unknown options for an ultralytics model: {sorted(options)}")
        if not Path(spec).is_file():
            raise FileNotFoundError(f"no weights file {spec!r}; give the path of a .pt file on this machine")
        try:
            from ultralytics import SAM
        except ImportError as e:
            raise ImportError("this detector needs ultralytics: pip install 'reliability_hooks[ultralytics]'") from e
        return SAM(spec)

    def class_names(self) -> dict[int, str]:
        return {0: "object"}

    def _tap(self, report: Callable[[Exception], None], needs: Collection[str]) -> Any:
        return _SamTap(report)

    def predict_labelled(
        self, images: Sequence[np.ndarray], truths: Sequence[GroundTruth], **options: Any
    ) -> list[Instances]:
        """As `predict`, prompted with the annotated objects; see `SegmentAnythingHost.predict_labelled`.

        `prompt="none"` segments everything and finds the objects by matching masks.

        Raises:
            ValueError: An object has no mask.
        """
        how = {name: options.pop(name) for name in ("prompt", "jitter") if name in options}
        if how.get("prompt") == "none":
            return [with_object_iou(i, t) for i, t in zip(self.predict(images, **options), truths, strict=True)]
        found = []
        for image, truth in zip(images, truths, strict=True):
            prompts, objects = prompts_for(truth, image.shape[:2], **how)
            asked: dict[str, Any] = {{"boxes": "bboxes"}.get(k, k): given[0].tolist() for k, given in prompts.items()}
            if not len(objects):
                asked = {"bboxes": [[0, 0, image.shape[1], image.shape[0]]]}
            # every answer counts, also one that a cut at the predicted IoU would hide
            (result,) = self.model.predict(np.ascontiguousarray(image[..., ::-1]), verbose=False,
                                           **{**options, "conf": 0.0}, **asked)  # fmt: skip
            which = result.boxes.cls.long().cpu().numpy()  # of SAM, the number of the prompt
            rows = len(which) if len(objects) else 0
            found.append(with_object_iou(result.instances[:rows], truth, objects[which[:rows]]))
        return found


class _SamTap:
    """Listens to the network of an ultralytics predictor from the beginning of a batch to its end."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self.report = report
        self.tap: Tap | None = None
        self.net: Any = None

    def install(self, predictor: Any) -> None:
        if predictor.model is not self.net:
            self.remove()
            self.net, self.tap = predictor.model, Tap(predictor.model, self.report)
        assert self.tap is not None
        self.tap.local.seen = Seen()

    def drop(self) -> None:
        if self.tap is not None:
            self.tap.local.seen = None

    def remove(self) -> None:
        if self.tap is not None:
            self.tap.remove()
        self.net = self.tap = None

    def evidence(self, i: int, result: Any, predictor: Any) -> Callable[[Instances], Frame]:
        """How the frame of the image is built once its kept rows are known."""
        tap, floor = self.tap, float(predictor.args.conf)
        seen = Seen() if tap is None else getattr(tap.local, "seen", None) or Seen()
        size = (int(result.orig_shape[0]), int(result.orig_shape[1]))
        ious = torch.as_tensor(result.boxes.conf).float()

        def build(kept: Instances) -> Frame:
            if tap is None or not seen.images:
                return Frame(kept)
            pixels = seen.images[0][0]
            shown = Shown.of(size, pixels.shape[-1], stretched=False)
            view = shown.view(pixels, MEAN, STD)
            if len(seen.images) > 1 or not seen.passes:
                log.warning("masks of crops of an image (crop_n_layers) are judged by what is seen of them alone")
                return Frame(kept, view)
            kept = kept.replace(features=features(seen.passes[0], kept.boxes, shown))
            origin = _origin(seen.passes, ious, shown, floor)

            @lru_cache(maxsize=1)
            def known() -> Prompted:
                return prompted(tap, origin, ious, kept.boxes, float(predictor.model.mask_threshold))

            return replace(Frame(kept, view), mask_logits=lambda: known().logits, prompted=known)

        return build


def _origin(passes: Sequence[Pass], ious: torch.Tensor, shown: Shown, floor: float) -> Origin:
    """The answer that each kept row is: the one of its predicted IoU, or, of one pass, in their order."""
    answers = [made.ious.float().flatten() for made in passes]
    which = torch.cat([torch.full_like(a, i, dtype=torch.int64) for i, a in enumerate(answers)])
    position = torch.cat([torch.arange(len(a), device=a.device) for a in answers])
    every, columns = torch.cat(answers), passes[0].ious.shape[1]
    above = (every > floor).nonzero()[:, 0]
    if len(passes) == 1 and torch.equal(every[above], ious):
        at, one = above, torch.ones_like(ious, dtype=torch.bool)
    else:
        same = every == ious[:, None]
        at, one = same.float().argmax(1), same.sum(1) == 1
    return Origin(passes, torch.where(one, which[at], -1), position[at] // columns, position[at] % columns,
                  [shown] * len(ious))  # fmt: skip

