"""Detections on known and on unknown objects, with every score, as arrays."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..config import OodSet, Settings
from ..evaluation.corruptions import CONDITIONS
from ..evaluation.datasets import DetectionDataset, GroundTruth, read_coco
from ..evaluation.labels import truth_of, with_truth
from ..evaluation.matching import match
from ..evaluation.voc import read_voc
from ..hook import Handle
from ..images import read_image
from ..instances import Instances
from .collect import Collector, jobs_of, label_names, labelled_images

Pairs = Sequence[tuple[Instances, GroundTruth]]


@dataclass(frozen=True, eq=False)
class Seen:
    """Detections on one set of images.

    Attributes:
        boxes, scores, labels, image: Of N detections; `image` counts from 0.
        columns: Score -> (N,), higher = more out-of-distribution.
        truth: Boxes, labels (-1: unknown), image and crowd flags of the annotated objects.
        images: How many there are.
        exhaustive: Every detection is one of an unknown object.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image: np.ndarray
    columns: dict[str, np.ndarray]
    truth: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    images: int
    exhaustive: bool = False

    @classmethod
    def of(cls, pairs: Pairs, names: Sequence[str], exhaustive: bool = False) -> Seen:
        """From instances and ground truth of each image; `unreliability` is 1 - reliability."""
        bare = [Instances(i.boxes, i.scores, i.labels, columns=i.columns) for i, _ in pairs]
        rows = Instances.cat(bare)
        columns = {name: rows.columns[name].double().numpy() for name in names if name in rows.columns}
        if bool(rows.reliability.isfinite().any()):
            columns["unreliability"] = 1 - rows.reliability.double().numpy()
        image = np.repeat(np.arange(len(pairs)), [len(i) for i in bare])
        return cls(rows.boxes.numpy(), rows.scores.double().numpy(), rows.labels.numpy(), image, columns,
                   truth_of(pairs), len(pairs), exhaustive)

    def score_names(self) -> list[str]:
        return list(self.columns)

    @cached_property
    def _matches(self) -> Any:
        return match(self.boxes, self.scores, self.labels, self.image, *self.truth)

    def right(self) -> np.ndarray:
        """(N,) bool: the detection is right."""
        found: np.ndarray = self._matches.tp
        return found

    def on_unknown(self) -> np.ndarray:
        """(N,) bool: the detection lies on an unknown object (IoU >= 0.5), or anywhere where the set is exhaustive."""
        if self.exhaustive:
            return np.ones(len(self.boxes), bool)
        boxes, labels, image, _ = self.truth
        unknown = labels < 0
        nothing = np.zeros(len(self.boxes), np.int64)
        hit = match(self.boxes, self.scores, nothing, self.image, boxes[unknown], np.zeros(unknown.sum(), np.int64),
                    image[unknown])  # fmt: skip
        found: np.ndarray = hit.best_iou >= 0.5
        return found

    def joined(self, other: Seen) -> Seen:
        """The rows of both, images of the other numbered after these."""
        a, b = self.truth, other.truth
        return Seen(
            np.concatenate([self.boxes, other.boxes]), np.concatenate([self.scores, other.scores]),
            np.concatenate([self.labels, other.labels]), np.concatenate([self.image, other.image + self.images]),
            {name: np.concatenate([v, other.columns[name]]) for name, v in self.columns.items()},
            (np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]), np.concatenate([a[2], b[2] + self.images]),
             np.concatenate([a[3], b[3]])), self.images + other.images,
        )  # fmt: skip


def collect(
    handle: Handle, settings: Settings, cache: Path, console: Console
) -> tuple[Seen, dict[str, Seen], list[str]]:
    """Run the detector over the known and the unknown images: (known, name -> unknown, what failed)."""
    clean = replace(settings, data=replace(settings.data, conditions=["clean"]))
    collector = Collector(handle, clean, cache)
    names = [name for signal in handle.monitor.signals for name in signal.scores]

    def run(dataset: DetectionDataset, exhaustive: bool = False) -> Seen:
        found = collector.collect(jobs_of(dataset, clean), console)
        return Seen.of([(instances, truth) for _, instances, truth in found], names, exhaustive)

    known = run(labelled_images(handle, settings, console))
    labels = label_names(handle.host.class_names())
    unknown = {name: run(read_set(of, labels), of.exhaustive) for name, of in settings.ood.sets.items()}
    return known, unknown, collector.failed


def read_set(of: OodSet, names: Sequence[str]) -> DetectionDataset:
    """COCO json or a directory of VOC xml; classes that the detector does not know get the label -1."""
    read = read_voc if Path(of.annotations).is_dir() else read_coco
    dataset = read(of.annotations, of.images, names, open_set=True)
    return dataset.subset(range(min(of.limit, len(dataset)))) if of.limit else dataset


def degraded(
    handle: Handle, settings: Settings, cache: Path, console: Console
) -> dict[str, dict[str, np.ndarray]]:
    """Condition -> each score, `severity` and `item` of the known objects that are found, as it gets worse."""
    o = settings.ood
    if not o.intensities:
        return {}
    dataset = labelled_images(handle, settings, console).subset(range(o.intensity_limit))
    names = [name for signal in handle.monitor.signals for name in signal.scores]
    parts: dict[str, list[dict[str, np.ndarray]]] = {condition: [] for condition in CONDITIONS}
    for severity in o.intensities:
        worse = replace(settings, data=replace(settings.data, conditions=list(CONDITIONS), severity=severity))
        collector = Collector(handle, worse, cache)
        for (record, condition), instances, truth in collector.collect(jobs_of(dataset, worse), console):
            found = with_truth(instances, truth)
            hit = match(found.boxes, found.scores, found.labels, np.zeros(len(found)), truth.boxes, truth.labels,
                        np.zeros(len(truth)), truth.crowd, class_agnostic=True)  # fmt: skip
            rows = Instances(found.boxes, found.scores, found.labels, columns=found.columns)[torch.from_numpy(hit.tp)]
            seen = Seen.of([(rows, truth)], names)
            items = np.array([f"{record.id}/{k}" for k in hit.gt_index[hit.tp]], dtype=object)
            parts[condition].append({**seen.columns, "severity": np.full(len(rows), severity), "item": items})
    return {
        condition: {name: np.concatenate([part[name] for part in some]) for name in some[0]}
        for condition, some in parts.items()
    }


def costs(handle: Handle, settings: Settings, images: int = 12) -> dict[str, float]:
    """Seconds for each signal and image (median), and under `detector` that of the whole call without them."""
    assert settings.data.images is not None
    paths = sorted(Path(settings.data.images).iterdir())[:images]
    taken: dict[str, list[float]] = {}
    clock, monitor = time.perf_counter, handle.monitor
    for path in paths:
        pixels = read_image(path)
        monitor.seconds.clear()
        start = clock()
        handle.predict([pixels], **settings.detector.predict)
        whole = clock() - start
        spent = dict(monitor.seconds)
        for name, value in {**spent, "detector": whole - sum(spent.values())}.items():
            taken.setdefault(name, []).append(value)
    return {name: float(np.median(values)) for name, values in taken.items()}


def threshold_at(score: np.ndarray, image: np.ndarray, false_alarm: float) -> float:
    """The least threshold that right detections exceed with a rate of at most `false_alarm`, each image counted once.

    The conformal quantile of `reliability.novelty`, for all classes and sizes together; infinite with too few images.
    """
    keep = np.isfinite(score)
    s, img = score[keep], image[keep]
    _, same, n = np.unique(img, return_inverse=True, return_counts=True)
    order = np.argsort(-s, kind="stable")
    p = (1 + np.cumsum(1 / n[same][order])) / (1 + len(n))
    allowed = np.flatnonzero(p <= false_alarm)
    if not len(allowed):
        return float(s.max()) if len(s) and 1 / (1 + len(n)) <= false_alarm else float("inf")
    return float(s[order][min(allowed[-1] + 1, len(s) - 1)])


def by_mean_auroc(tables: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Scores, the best first by their mean AUROC over the sets."""
    names = list(next(iter(tables.values())))
    mean = {s: float(np.mean([t[s]["ood_auroc"].value for t in tables.values()])) for s in names}
    return sorted(names, key=lambda s: -mean[s])
