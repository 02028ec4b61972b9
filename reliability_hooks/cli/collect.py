"""Run a hooked detector over labelled images under conditions, keeping on disk what was found."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from .. import __version__
from ..config import Settings
from ..evaluation.corruptions import CONDITIONS, corrupt
from ..evaluation.datasets import DetectionDataset, GroundTruth, ImageRecord, read_coco
from ..evaluation.labels import with_mask_iou
from ..hook import Handle
from ..images import ImageError, find_images, read_image
from ..instances import Instances
from .cache import RowCache, digest, truth_digest
from .common import batches

T = TypeVar("T")
Job = tuple[ImageRecord, str]
"""An image and the condition under which it is seen."""
Lesson = tuple[Path, GroundTruth | None]
"""An image that signals learn from, and what is there where it is known."""
FOLDS = 3
"""Parts of the images, each scored by signals that have learnt from the others."""


class Collector:
    """Runs the hooked detector over labelled images and keeps what it found on disk.

    Args:
        handle: Of the hooked detector.
        settings: Detector options, conditions and their severity, bank, batch size.
        cache: Where rows are kept, so that an interrupted run goes on; None keeps nothing.
    """

    def __init__(self, handle: Handle, settings: Settings, cache: Path | None) -> None:
        self.handle, self.settings = handle, settings
        data = settings.data
        self.taught_by = asdict(data) if data.bank is None else [data.bank, data.bank_annotations]
        self.encoder = None if handle.monitor.encoder is None else handle.monitor.encoder.fingerprint
        self.cache = None
        if cache is not None:
            same = [__version__, handle.host.fingerprint(), settings.detector.predict]
            self.cache = RowCache(cache / digest(same), handle.monitor.signals, self.taught_by, self.encoder)
        self.failed: list[str] = []

    def learn(self, lessons: Sequence[Lesson], console: Console) -> None:
        """Show images to the signals that have to see some first, unless they are known to have seen these."""
        signals = [s for s in self.handle.monitor.signals if s.learns]
        key = digest([s.name for s in signals], self.taught_by, [path for path, _ in lessons],
                     *([self.encoder] if any("clip" in s.requires for s in signals) else []))
        if self.cache is not None and self.cache.recall(key, signals):
            return
        waiting: deque[GroundTruth | None] = deque()  # of the images of a batch, in the order in which frames come
        with self.handle.monitor.learning(_drawn(waiting)):
            for batch in batches(self._progress(lessons, console, "learning"), self.settings.batch):
                images = list(self._read((lesson, lesson[0]) for lesson in batch))
                waiting.clear()
                waiting.extend(truth for (_, truth), _ in images)
                self._detect([pixels for _, pixels in images], [truth for (_, truth), _ in images])
        if self.cache is not None:
            self.cache.remember(key, signals)

    def collect(self, jobs: Sequence[Job], console: Console) -> Iterator[tuple[Job, Instances, GroundTruth]]:
        """The instances of every job, without masks, logits and features; from the cache where it is there.

        Signals that learn are shown `data.bank`, or else the clean images themselves: those of the other folds before
        an image is seen, since what a signal was taught by an image it takes for usual, and all of them in the end.

        Raises:
            ValueError: A condition is unknown; nothing was run then.
        """
        for condition in {condition for _, condition in jobs}:
            corrupt(torch.zeros(3, 8, 8, dtype=torch.uint8), condition)
        if not self.handle.monitor.learns or self.handle.monitor.judge is not None:  # a fitted one has learnt
            yield from self._collect(jobs, console)
        elif self.settings.data.bank is not None:
            self.learn(self._bank(), console)
            yield from self._collect(jobs, console)
        else:
            lessons: list[Lesson] = list({record.path: (record.path, record.truth) for record, _ in jobs}.values())
            for k in range(FOLDS):
                held = {path for path, _ in lessons[k::FOLDS]}
                own = [job for job in jobs if job[0].path in held]
                self.learn([lesson for lesson in lessons if lesson[0] not in held], console)
                yield from self._collect(own, console)
            self.learn(lessons, console)

    def _bank(self) -> list[Lesson]:
        data = self.settings.data
        assert data.bank is not None
        if data.bank_annotations is None:
            return [(path, None) for path in find_images(data.bank)]
        dataset = read_coco(data.bank_annotations, data.bank, label_names(self.handle.host.class_names()))
        return [(record.path, record.truth) for record in dataset]

    def _collect(self, jobs: Sequence[Job], console: Console) -> Iterator[tuple[Job, Instances, GroundTruth]]:
        severity = self.settings.data.severity
        for batch in batches(self._progress(jobs, console, "detecting"), self.settings.batch):
            rows = {job: kept for job in batch if (kept := self._kept(job)) is not None}
            found = list(self._read((job, job[0].path) for job in batch if job not in rows))
            images = [degrade(pixels, job[1], severity, job[0].id) for job, pixels in found]
            seen = self._detect(images, [job[0].truth for job, _ in found])
            for (job, _), instances in zip(found, seen, strict=True):
                rows[job] = _bare(with_mask_iou(instances, job[0].truth))
                if self.cache is not None:
                    self.cache.write(self._key(job), rows[job])
            yield from ((job, rows[job], job[0].truth) for job in batch if job in rows)

    def _read(self, items: Iterable[tuple[T, Path]]) -> Iterator[tuple[T, np.ndarray]]:
        for item, path in items:
            try:
                yield item, read_image(path)
            except ImageError as e:
                if str(e) not in self.failed:
                    self.failed.append(str(e))

    def _detect(self, images: Sequence[np.ndarray], truths: Sequence[GroundTruth | None]) -> list[Instances]:
        options, known = self.settings.detector.predict, [truth for truth in truths if truth is not None]
        if len(known) < len(images):
            return self.handle.predict(images, **options)
        return self.handle.host.predict_labelled(images, known, **options) if images else []

    def _kept(self, job: Job) -> Instances | None:
        return None if self.cache is None else self.cache.read(self._key(job))

    def _key(self, job: Job) -> str:
        record, condition = job
        severity = None if condition == "clean" else self.settings.data.severity
        return digest(record.id, record.path, condition, severity, truth_digest(record.truth))

    @staticmethod
    def _progress(jobs: Sequence[T], console: Console, text: str) -> Iterator[T]:
        columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            yield from progress.track(jobs, description=text)


def labelled_images(handle: Handle, settings: Settings, console: Console) -> DetectionDataset:
    """The images that the settings name, with labels in the detector's terms.

    Raises:
        ValueError: They name none.
    """
    data = settings.data
    if data.images is None or data.annotations is None:
        raise ValueError("which labelled images? give --images DIR and --annotations instances.json")
    names = label_names(handle.host.class_names())
    if handle.host.class_free:
        dataset = _as_one_class(read_coco(data.annotations, data.images), names)
    else:
        dataset = read_coco(data.annotations, data.images, names)
    for name, count in dataset.unmapped.items():
        console.print(f"{count} objects of class {name!r}, which the detector does not know", style="yellow")
    return dataset.subset(range(min(data.limit, len(dataset)))) if data.limit else dataset


def _as_one_class(dataset: DetectionDataset, names: Sequence[str]) -> DetectionDataset:
    """Every object is of the one class that there is."""
    truths = [replace(record.truth, labels=np.zeros_like(record.truth.labels)) for record in dataset]
    images = tuple(replace(record, truth=truth) for record, truth in zip(dataset, truths, strict=True))
    return replace(dataset, names=tuple(names), images=images, parents={})


def jobs_of(dataset: DetectionDataset, settings: Settings) -> list[Job]:
    """Every image under every condition of the settings."""
    return [(record, condition) for condition in settings.data.conditions for record in dataset]


def expanded(settings: Settings) -> Settings:
    """With `all` among the conditions standing for clean and every synthetic one."""
    if "all" not in settings.data.conditions:
        return settings
    return replace(settings, data=replace(settings.data, conditions=["clean", *CONDITIONS]))


def degrade(image: np.ndarray, condition: str, severity: float, seed: int | str) -> np.ndarray:
    """(H, W, 3) uint8 under a condition; the same image always gets the same noise."""
    if condition == "clean":
        return image
    number = int(hashlib.sha256(str(seed).encode()).hexdigest()[:8], 16)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
    return corrupt(pixels, condition, severity, seed=number).permute(1, 2, 0).contiguous().numpy()


def label_names(names: Mapping[int, str]) -> list[str]:
    """Class names by label; labels without a name of their own get `#label`."""
    seen: dict[str, int] = {}
    for label, name in sorted(names.items()):
        seen.setdefault(name, label)
    return [names[i] if i in names and seen[names[i]] == i else f"#{i}" for i in range(max(names, default=-1) + 1)]


def _drawn(waiting: deque[T]) -> Iterator[T | None]:
    while True:
        yield waiting.popleft() if waiting else None


def _bare(instances: Instances) -> Instances:
    return Instances(instances.boxes, instances.scores, instances.labels, columns=instances.columns).cpu()
