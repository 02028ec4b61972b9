"""Labelled detections of a detector on photographs under conditions, and on out-of-distribution images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED
from rich.console import Console

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.cli.collect import Collector, label_names
from reliability_hooks.config import Settings
from reliability_hooks.evaluation.datasets import DetectionDataset, read_coco
from reliability_hooks.evaluation.labels import labelled
from reliability_hooks.evaluation.matching import match
from reliability_hooks.evaluation.voc import read_voc
from reliability_hooks.hosts.base import load

SCORE_CUT = 0.1


class Rows:
    """All labelled detections of one detector.

    Attributes:
        instances: Boxes, scores, labels and columns.
        correct: (N,) bool.
        iou: (N,) with the matched object, 0 without.
        image: (N,) number of the photograph, the same for all conditions.
        condition: (N,) name.
        images: How many photographs there are.
    """

    def __init__(self, instances: Instances, correct: torch.Tensor, iou: torch.Tensor, image: np.ndarray,
                 condition: np.ndarray, images: int) -> None:
        self.instances, self.correct, self.iou = instances, correct, iou
        self.image, self.condition, self.images = image, condition, images

    def __getitem__(self, keep: np.ndarray) -> Rows:
        rows = torch.from_numpy(keep)
        return Rows(self.instances[rows], self.correct[rows], self.iou[rows], self.image[keep], self.condition[keep],
                    self.images)


def settings_for(conditions: Sequence[str], signals: Sequence[str], bank: Path | None) -> Settings:
    """What every collection has in common."""
    settings = Settings()
    return replace(
        settings,
        detector=replace(settings.detector, predict={"conf": SCORE_CUT}),
        monitor=replace(settings.monitor, signals=list(signals)),
        data=replace(settings.data, conditions=list(conditions), bank=None if bank is None else str(bank)),
    )


def run(model: Any, settings: Settings, dataset: DetectionDataset, cache: Path) -> list[tuple[Any, Instances, Any]]:
    """Every image under every condition; kept in `cache`."""
    with attach(model, Monitor(settings.monitor.signals), strict=True) as handle:
        collector = Collector(handle, settings, cache)
        jobs = [(record, condition) for condition in settings.data.conditions for record in dataset]
        found = list(collector.collect(jobs, Console(stderr=True)))
    if collector.failed:
        raise SystemExit("\n".join(collector.failed))
    return found


def collect(
    detector: str,
    images: Path,
    annotations: Path,
    conditions: Sequence[str],
    limit: int | None,
    cache: Path,
    signals: Sequence[str] = ("cheap",),
    bank: Path | None = None,
) -> Rows:
    """Detections on a COCO set, labelled by COCO greedy matching."""
    model = load(detector)
    dataset = read_coco(annotations, images, label_names(dict(model.names)))
    dataset = dataset.subset(range(limit)) if limit else dataset
    found = run(model, settings_for(conditions, signals, bank), dataset, cache)
    instances, correct, iou, index = labelled([(kept, truth) for _, kept, truth in found])
    numbers = {name: i for i, name in enumerate(dict.fromkeys(str(job[0].id) for job, _, _ in found))}
    image = np.array([numbers[str(job[0].id)] for job, _, _ in found])[index.numpy()]
    condition = np.array([job[1] for job, _, _ in found])[index.numpy()]
    return Rows(instances, correct, iou, image, condition, len(numbers))


def collect_ood(
    detector: str, cache: Path, signals: Sequence[str] = ("cheap",), bank: Path | None = None, limit: int | None = None
) -> Rows:
    """Detections on raccoons and blood cells, which no COCO class describes: wrong by definition.

    On the raccoon photographs only boxes on a raccoon (IoU >= .5) count, since people and dogs beside it are not
    annotated; on the blood smears every box does.
    """
    model = load(detector)
    names = label_names(dict(model.names))
    parts: list[Instances] = []
    image: list[int] = []
    condition: list[str] = []
    count = 0
    for name, (xml, folder) in OOD.items():
        dataset = read_voc(SHARED / xml, SHARED / folder, names, open_set=True)
        dataset = dataset.subset(range(min(limit, len(dataset)))) if limit else dataset
        for _, kept, truth in run(model, settings_for(["clean"], signals, bank), dataset, cache):
            if name == "raccoon":
                own, theirs = np.zeros(len(kept)), np.zeros(len(truth))
                hit = match(kept.boxes, kept.scores, own, own, truth.boxes, theirs, theirs)
                kept = kept[torch.from_numpy(hit.best_iou >= 0.5)]
            parts.append(kept)
            image += [count] * len(kept)
            condition += [name] * len(kept)
            count += 1
    instances = Instances.cat(parts)
    wrong = torch.zeros(len(instances), dtype=torch.bool)
    return Rows(instances, wrong, wrong.float(), np.array(image), np.array(condition), count)


OOD = {
    "raccoon": ("data/ood/raccoon/annotations", "data/ood/raccoon/images"),
    "bccd": ("data/ood/bccd/BCCD/Annotations", "data/ood/bccd/BCCD/JPEGImages"),
}
