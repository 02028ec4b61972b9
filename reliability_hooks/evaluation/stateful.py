"""The metrics as torchmetrics `Metric` classes: `update` on batches, `compute`, and `estimate` with an interval.

Each matches at `update` (COCO greedy, by the detector's score) and keeps one row for each detection that counts and
each missed ground truth, never a mask. Needs torchmetrics: `pip install "reliability_hooks[metrics]"`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import calibration, classwise, lrp, oce, selective
from .batches import Arrays, Batch, as_array, flatten
from .bootstrap import Estimate, Metric, image_bootstrap
from .masks import MaskIoU
from .matching import match

try:
    from torchmetrics import Metric as TorchMetric
    from torchmetrics.utilities.data import dim_zero_cat
except ImportError as error:
    raise ImportError(
        'torchmetrics is needed for metric classes: pip install "reliability_hooks[metrics]". '
        "The pure functions in reliability_hooks.evaluation need no torchmetrics"
    ) from error


class DetectionMetric(TorchMetric):
    """A pure function over matched detections, gathered batch by batch.

    Args:
        iou_threshold: of the matching; None: the metric's own (0.5; LaECE 0.1; LaECE_0 and LaACE_0 0).
        iou_type: "bbox", or "segm" to match masks.
        score_cut: detections of a lower score are left out.
        **settings: of the pure function (`bins`, `n_classes`, `positive`, ...) and of `torchmetrics.Metric`.

    Raises:
        ValueError: an unknown `iou_type` or setting.
    """

    function: ClassVar[Callable[..., Any]]
    needs: ClassVar[tuple[str, ...]] = ("p", "y")
    default_iou: ClassVar[float] = 0.5
    bound: ClassVar[dict[str, Any]] = {}
    is_differentiable = False
    higher_is_better: bool | None = False
    full_state_update = False

    def __init__(
        self, iou_threshold: float | None = None, iou_type: str = "bbox", score_cut: float = 0.0, **settings: Any
    ) -> None:
        known = inspect.signature(type(self).function).parameters
        own = {name: settings.pop(name) for name in list(settings) if name in known}
        super().__init__(**settings)
        if iou_type not in ("bbox", "segm"):
            raise ValueError(f"iou_type must be 'bbox' or 'segm', got {iou_type!r}")
        self.iou_threshold = self.default_iou if iou_threshold is None else iou_threshold
        self.iou_type, self.score_cut = iou_type, score_cut
        of_matching = {"iou_threshold": self.iou_threshold} if "iou_threshold" in known else {}
        self.metric: Metric = partial(type(self).function, **{**of_matching, **self.bound, **own})
        for name in (*self.columns(), "rows"):
            self.add_state(name, [], dist_reduce_fx="cat")

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The columns that are kept, one tensor each."""
        return ("p", "iou", "outcome", "labels")

    def update(self, preds: Batch, target: Batch) -> None:
        """Add images.

        Args:
            preds: for each image `boxes` (N, 4) xyxy, `scores` (N,), `labels` (N,), with "segm" `masks` (N, H, W)
                bool, and where it is judged in the place of the score `reliability` (N,).
            target: for each image `boxes` (G, 4), `labels` (G,), with "segm" `masks`, and `iscrowd` (G,) if there
                are crowds.

        Raises:
            ValueError: the two differ in length, a key is missing or a shape does not fit.
        """
        detections, truths, overlap = flatten(preds, target, self.iou_type, self.score_cut)
        columns, image = self._rows(detections, truths, overlap)
        order = np.argsort(image, kind="stable")
        for name, value in columns.items():
            self._append(name, value[order])
        self._append("rows", np.bincount(image, minlength=len(preds)))

    def compute(self) -> Tensor:
        """The metric over all images, a scalar; NaN where there is nothing."""
        arrays, _, _ = self._gathered()
        return torch.tensor(float(self.metric(*arrays)), device=self.device)

    def estimate(self, draws: int = 500, level: float = 0.95, seed: int = 0) -> Estimate:
        """The metric with its protocol and an interval by bootstrap over the images; see `image_bootstrap`."""
        arrays, image, n_images = self._gathered()
        name = type(self).__name__
        return image_bootstrap(
            {name: self.metric}, image, *arrays, draws=draws, level=level, seed=seed, all_images=np.arange(n_images),
            protocol={**self._protocol(), "score_cut": self.score_cut},
        )[name]

    def _append(self, name: str, value: NDArray[Any]) -> None:
        getattr(self, name).append(torch.as_tensor(value, device=self.device))

    def _rows(self, d: Arrays, t: Arrays, overlap: MaskIoU | None) -> tuple[Arrays, NDArray[Any]]:
        score, label, image = d["scores"], d["labels"], d["image"]
        found = match(d["boxes"], score, label, image, t["boxes"], t["labels"], t["image"], t["iscrowd"],
                      iou_threshold=self.iou_threshold, pair_iou=overlap)
        e = lrp.events(found, d["p"], label, image, t["labels"], t["image"], t["iscrowd"])
        return {"p": e.scores, "iou": e.iou, "outcome": e.outcome, "labels": e.labels}, e.image_ids

    def _protocol(self) -> dict[str, Any]:
        overlap = MaskIoU([], []) if self.iou_type == "segm" else None
        rule = match([], [], [], [], [], [], [], iou_threshold=self.iou_threshold, pair_iou=overlap).rule
        return {"matching": rule, "iou_threshold": self.iou_threshold}

    def _gathered(self) -> tuple[list[NDArray[Any]], NDArray[np.int64], int]:
        """The arrays of the pure function, the image of each row, the number of images."""
        kept = {name: _cat(getattr(self, name)) for name in (*self.columns(), "rows")}
        image = np.repeat(np.arange(len(kept["rows"])), kept["rows"].astype(np.int64))
        if "outcome" not in kept:
            return [kept[name] for name in self.needs], image, len(kept["rows"])
        kept["y"] = kept["outcome"] == lrp.TRUE_POSITIVE
        rows = np.ones(len(image), bool) if "outcome" in self.needs else kept["outcome"] != lrp.MISSED
        return [kept[name][rows] for name in self.needs], image[rows], len(kept["rows"])


class DetectionECE(DetectionMetric):
    """`calibration.d_ece`."""

    function = calibration.d_ece


class ClassWiseDetectionECE(DetectionMetric):
    """`classwise.class_wise_d_ece`."""

    function, needs = classwise.class_wise_d_ece, ("p", "y", "labels")


class LaECE(DetectionMetric):
    """`classwise.la_ece` of a matching at IoU >= 0.1."""

    function, needs, default_iou = classwise.la_ece, ("p", "iou", "labels"), 0.1


class LaECE0(LaECE):
    """`classwise.la_ece` of a matching at any overlap."""

    default_iou = 0.0


class LaACE0(DetectionMetric):
    """`classwise.la_ace` of a matching at any overlap."""

    function, needs, default_iou = classwise.la_ace, ("p", "iou", "labels"), 0.0


class Brier(DetectionMetric):
    """`calibration.brier`."""

    function = calibration.brier


class NLL(DetectionMetric):
    """`calibration.nll`."""

    function = calibration.nll


class FailureAUROC(DetectionMetric):
    """`selective.auroc`."""

    function, higher_is_better = selective.auroc, True


class FailureAUPR(DetectionMetric):
    """`selective.aupr`; `positive` is "error" unless told otherwise."""

    function, higher_is_better = selective.aupr, True


class FailureFPR95(DetectionMetric):
    """`selective.fpr_at_tpr`; `positive` is "error" unless told otherwise."""

    function = selective.fpr_at_tpr


class AURC(DetectionMetric):
    """`selective.aurc`."""

    function = selective.aurc


class EAURC(DetectionMetric):
    """`selective.e_aurc`."""

    function = selective.e_aurc


class AUGRC(DetectionMetric):
    """`selective.augrc`."""

    function = selective.augrc


class SelectiveRisk(DetectionMetric):
    """`selective.selective_risk` at coverage 0.8 unless told otherwise."""

    function, bound = selective.selective_risk, {"coverage": 0.8}


class LRPOptimal(DetectionMetric):
    """`lrp.lrp_optimal`, the mean over classes."""

    function, needs = lrp.lrp_optimal, ("p", "iou", "outcome", "labels")


class OCE(DetectionMetric):
    """`oce.oce` of the confidence and label of each detection; the IoU thresholds are 0.5 and 0.75."""

    function, needs = oce.oce, ("object_brier",)

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """One row for each ground truth that is no crowd."""
        return ("object_brier",)

    def _rows(self, d: Arrays, t: Arrays, overlap: MaskIoU | None) -> tuple[Arrays, NDArray[Any]]:
        each = oce.object_brier(d["boxes"], d["p"], d["labels"], d["image"], t["boxes"], t["labels"], t["image"],
                                pair_iou=overlap)
        objects = ~t["iscrowd"] & (t["labels"] >= 0)
        return {"object_brier": each[objects]}, t["image"][objects]

    def _protocol(self) -> dict[str, Any]:
        return {"iou_thresholds": [0.5, 0.75], "matching": oce.RULE}


def _cat(parts: Any) -> NDArray[Any]:
    return as_array(dim_zero_cat(parts)) if len(parts) else np.zeros(0)
