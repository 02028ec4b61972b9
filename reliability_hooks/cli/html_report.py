"""`--report`: what a command saw, gathered for its page."""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..config import Settings
from ..explain.cause import clearest
from ..export.columns import VERDICTS
from ..instances import Instances
from ..monitor import Monitor
from ..report.html import check_installed
from ..report.page import DatasetFigures, MapLayer, Page, ReportImage, ReportInstance
from ..report.pictures import LONGEST, jpeg, outlines
from ..report.strange import calibration_histograms, strangeness_of
from ..signals.condition import words_of

MOST = 1000
"""Images that a page shows: those with the least reliable detections."""
DEFAULT = "report.html"
NO_MONITOR = "No monitor was fitted: every reliability is unknown. Fit one with `reliability-hooks calibrate`."


def add_flag(p: argparse.ArgumentParser) -> None:
    """`--report [FILE.html]`."""
    p.add_argument("--report", metavar="FILE.html", nargs="?", const="", type=_html,
                   help=f"write it as one HTML page to click through (OUT/{DEFAULT} without FILE.html)")  # fmt: skip


def page_path(given: str | None, out: Path) -> Path | None:
    """Where the page goes; None where none was asked for.

    Args:
        given: Of the flag.
        out: Directory of the results.

    Raises:
        ImportError: What a page needs is not installed: said before anything runs.
    """
    if given is None:
        return None
    check_installed()
    return Path(given) if given else out / DEFAULT


class Gathered:
    """The images of a page, as they come.

    Args:
        monitor: At work in the hooked detector.
        names: Label -> class name.
        longest: Long side of the pictures in pixels; larger images are scaled down.
        most: Images that are kept: those with the least reliable detections.

    Attributes:
        reliability: Of all instances so far, also of images that are not kept. Likewise `scores`.
        scores: Out-of-distribution scores, where the monitor has one.
        seen: Images that were looked at, shown or not.
    """

    def __init__(
        self, monitor: Monitor, names: Mapping[int, str], longest: int = LONGEST, most: int = MOST
    ) -> None:
        self.monitor, self.names, self.longest, self.most = monitor, names, longest, most
        self.phrases = words_of(monitor.signals)
        self.reliability: list[float] = []
        self.scores: list[float] = []
        self.seen = 0
        self._heap: list[tuple[float, int, ReportImage]] = []

    def add(
        self,
        name: str,
        pixels: np.ndarray,
        instances: Instances,
        *,
        maps: Mapping[int, Sequence[MapLayer]] | None = None,
        remarks: Mapping[int, Sequence[str]] | None = None,
        correct: Sequence[bool | None] | None = None,
        seen_under: str = "",
    ) -> None:
        """One image.

        Args:
            name: Of its file.
            pixels: (H, W, 3) uint8 RGB as the detector saw it.
            instances: With columns.
            maps: Row -> explanation maps.
            remarks: Row -> sentences.
            correct: For each row whether it is right, None where that is not known.
            seen_under: Synthetic condition.
        """
        size = (pixels.shape[0], pixels.shape[1])
        instances = instances.cpu().replace(image_size=size)
        rows = self._rows(instances, maps or {}, remarks or {}, correct or [None] * len(instances))
        self.reliability += [i.reliability for i in rows]
        self.scores += [i.strangeness.score for i in rows if i.strangeness is not None]
        image = ReportImage(name, jpeg(pixels, self.longest), size, rows, seen_under)
        push = heapq.heappush if len(self._heap) < self.most else heapq.heappushpop
        push(self._heap, (-image.least, -self.seen, image))
        self.seen += 1

    def images(self) -> list[ReportImage]:
        """Those that are kept, in the order in which they came."""
        return [image for _, _, image in sorted(self._heap, key=lambda row: -row[1])]

    def page(
        self, title: str, facts: Sequence[tuple[str, str]], data: DatasetFigures, remarks: Sequence[str] = (),
        data_first: bool = False,
    ) -> Page:
        """The page of these images; for what is not said here see `Page`."""
        judge, images = self.monitor.judge, self.images()
        certified = judge is not None and judge.guarantee is not None
        return Page(
            title, facts, images, data, calibration_histograms(judge, self.names),
            [*([] if judge else [NO_MONITOR]), *remarks], fitted=judge is not None,
            promise=self.monitor.terms.target if certified else None, left_out=self.seen - len(images),
            data_first=data_first,
        )  # fmt: skip

    def _rows(
        self, instances: Instances, maps: Mapping[int, Sequence[MapLayer]], remarks: Mapping[int, Sequence[str]],
        correct: Sequence[bool | None],
    ) -> list[ReportInstance]:
        n, columns = len(instances), instances.columns
        nan = torch.full((n,), torch.nan)
        reliability = columns.get("reliability", nan).tolist()
        interval = columns.get("reliability_interval", torch.stack([nan, nan], 1)).tolist()
        iou, verdict = columns.get("expected_iou", nan).tolist(), columns.get("verdict", nan * 0).nan_to_num().tolist()
        known = any(v == v for v in reliability)  # after a fault there is no evidence to share out
        shares = self.monitor.shares(instances) if known else [[]] * n
        conditions = clearest(self.monitor.judge, self.phrases, instances)
        strange = strangeness_of(self.monitor.judge, instances)
        paths, boxes, scores = outlines(instances), instances.boxes.tolist(), instances.scores.tolist()
        return [
            ReportInstance(
                self.names.get(label, str(label)), scores[i], tuple(boxes[i]), reliability[i], tuple(interval[i]),
                VERDICTS[int(verdict[i])], iou[i], conditions[i] if self.phrases else None,
                [(r.phrase, r.change) for r in shares[i]], paths[i], strange[i], maps.get(i, ()), remarks.get(i, ()),
                correct[i],
            )
            for i, label in enumerate(instances.labels.tolist())
        ]  # fmt: skip


def facts_of(settings: Settings, source: object, images: int, detections: int) -> list[tuple[str, str]]:
    """What a page says at its top."""
    return [
        ("Source", str(source)), ("Detector", str(settings.detector.weights)),
        ("Monitor", settings.monitor.path or "none"), ("Images", f"{images:,}"), ("Detections", f"{detections:,}"),
    ]  # fmt: skip


def _html(text: str) -> str:
    if text and not text.lower().endswith((".html", ".htm")):  # `--report detector.predict.imgsz 320`
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .html; put --report last, or name a file")
    return text
