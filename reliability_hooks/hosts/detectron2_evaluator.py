"""`ReliabilityEvaluator` for Detectron2's `inference_on_dataset`. Imported only where Detectron2 is wanted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..evaluation.bootstrap import Estimate
from ..evaluation.datasets import GroundTruth
from ..evaluation.labels import labelled, truth_of
from ..evaluation.summary import evaluate
from ..export.coco import Rows, to_coco, write_json
from ..export.columns import VERDICTS
from ..instances import Instances
from .detectron2 import EVIDENCE


class Judged(NamedTuple):
    """What is kept of an image."""

    image_id: Any
    instances: Instances
    rows: Rows


class ReliabilityEvaluator(DatasetEvaluator):  # type: ignore[misc]
    """How good the reliability of a hooked model is, beside the detector's own score on the same detections.

    `inference_on_dataset(model, loader, [COCOEvaluator(name), ReliabilityEvaluator(name, output_dir)])`, the model
    hooked before. The ground truth is that of the registered data set, crowd regions included: a detection on one
    counts neither as right nor as wrong. Right means the same class and an IoU of at least `iou_threshold` by COCO's
    greedy matching. Detections without a reliability are left out of the metrics of both.

    With `output_dir`, the main process writes `reliability_instances_results.json`, COCO results with the reliability
    and every other column beside an untouched `score` (`COCO.loadRes` reads it), and `reliability_metrics.json`, all
    metrics with intervals over images and the protocol of each.

    Args:
        dataset_name: Registered in Detectron2's `DatasetCatalog`.
        output_dir: Where the files go; none are written without it.
        distributed: Gather the results of all processes in the main one.
        iou_threshold: From which a detection is right.
        draws: Of the bootstrap that gives the intervals.

    Attributes:
        pairs: What was found in each image and what is there, after `evaluate`.
        estimates: All metrics with their intervals, after `evaluate`: `reliability` and `confidence`.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | Path | None = None, distributed: bool = True,
        iou_threshold: float = 0.5, draws: int = 200,
    ) -> None:  # fmt: skip
        self.metadata, self.output_dir = MetadataCatalog.get(dataset_name), output_dir
        self.distributed, self.iou_threshold, self.draws = distributed, iou_threshold, draws
        self.truths = {record["image_id"]: _truth(record) for record in DatasetCatalog.get(dataset_name)}
        self.names = dict(enumerate(self.metadata.get("thing_classes", ())))
        to_label = self.metadata.get("thing_dataset_id_to_contiguous_id", {})
        self.category_ids = {self.names[label]: category for category, label in to_label.items() if label in self.names}
        self.pairs: list[tuple[Instances, GroundTruth]] = []
        self.estimates: dict[str, dict[str, Estimate]] = {}
        self._judged: list[Judged] = []

    def reset(self) -> None:
        """Forget what was seen."""
        self._judged, self.pairs, self.estimates = [], [], {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep what a hooked model found on a batch, without masks, logits and features.

        Raises:
            RuntimeError: The model is not hooked.
            ValueError: An image is not of the data set.
        """
        for given, answer in zip(inputs, outputs, strict=True):
            if not answer["instances"].has(EVIDENCE):
                raise RuntimeError("no reliability beside these instances; attach(model, monitor) before you evaluate")
            if given["image_id"] not in self.truths:
                raise ValueError(f"image {given['image_id']!r} is not in the data set that is evaluated")
            found: Instances = answer["instances"].get(EVIDENCE).cpu()
            rows = to_coco(found, given["image_id"], self.names, self.category_ids or None) if self.output_dir else []
            bare = found.replace(masks=None, logits=None, head=None, background=None, features=None, track_ids=None)
            self._judged.append(Judged(given["image_id"], bare, rows))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """`{"reliability": {metric: value}, "confidence": {metric: value}}`; None but in the main process.

        The metrics are those of `evaluation.summary.evaluate`, and for each verdict its share and precision, as
        `accept_share`, `accept_precision` ...; NaN where there is nothing to measure.
        """
        judged = self._judged
        if self.distributed:
            comm.synchronize()
            parts = comm.gather(judged, dst=0)
            if not comm.is_main_process():
                return None
            judged = list(chain(*parts))
        judged = list({j.image_id: j for j in judged}.values())  # samplers may repeat an image to fill a batch
        if not judged:
            return OrderedDict()
        self.pairs = pairs = [(j.instances, self.truths[j.image_id]) for j in judged]
        self.estimates = found = {
            "reliability": self._measure(pairs, "reliability"), "confidence": self._measure(pairs, None)
        }  # fmt: skip
        verdicts = _verdicts(pairs, self.iou_threshold)
        if self.output_dir:
            folder = Path(self.output_dir)
            write_json(folder / "reliability_instances_results.json", list(chain(*(j.rows for j in judged))))
            write_json(folder / "reliability_metrics.json", {
                "images": len(judged), "iou_threshold": self.iou_threshold, "verdicts": verdicts,
                "metrics": {row: {name: asdict(e) for name, e in line.items()} for row, line in found.items()},
            })  # fmt: skip
        values = {row: {name: e.value for name, e in line.items()} for row, line in found.items()}
        return OrderedDict(reliability={**values["reliability"], **verdicts}, confidence=values["confidence"])

    def _measure(self, pairs: Sequence[tuple[Instances, GroundTruth]], column: str | None) -> dict[str, Estimate]:
        kept = [(i[i.reliability.isfinite()], truth) for i, truth in pairs]
        rows = Instances.cat([i for i, _ in kept if len(i)] or [kept[0][0]])
        if not len(rows):
            return {}
        image = np.repeat(np.arange(len(kept)), [len(i) for i, _ in kept])
        return evaluate(
            rows.boxes, rows.scores, rows.labels, image, *truth_of(kept), iou_threshold=self.iou_threshold,
            reliability=None if column is None else rows.columns[column], all_images=np.arange(len(kept)),
            draws=self.draws,
        )


def _verdicts(pairs: Sequence[tuple[Instances, GroundTruth]], iou_threshold: float) -> dict[str, float]:
    rows, correct, _, _ = labelled(pairs, iou_threshold)
    out = {}
    for code, name in VERDICTS.items():
        own = rows.column("verdict") == code
        out[f"{name}_share"] = float(own.float().mean())
        out[f"{name}_precision"] = float(correct[own].float().mean())
    return out


def _truth(record: Mapping[str, Any]) -> GroundTruth:
    """The annotations of a record of the catalog, labels as the model has them."""
    objects = record.get("annotations", ())
    boxes = [BoxMode.convert(list(o["bbox"]), o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    return GroundTruth(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array([o["category_id"] for o in objects], np.int64),
        crowd=np.array([bool(o.get("iscrowd", 0)) for o in objects], bool),
    )
