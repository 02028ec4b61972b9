"""`demo`: the embedded detector and its monitor on packaged photographs and on what can befall them, as one page."""

from __future__ import annotations

import argparse
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torchvision.ops import box_iou, nms

from ..explain.cause import causes
from ..explain.explainer import EVIDENCE, explain_frame
from ..hook import Handle, attach
from ..hosts.torchvision_demo import MONITOR, SCORE_THRESH, load_demo_detector
from ..instances import Instances
from ..monitor import Monitor
from ..report.figures import class_table, condition_table, spread_figure
from ..report.html import check_installed, write_page
from ..report.page import DatasetFigures, MapLayer
from ..report.strange import against_calibration
from ..signals.condition import words_of
from .common import guarded, terminal
from .demo_pictures import CONDITIONS, Photograph, photographs, versions
from .html_report import Gathered
from .layers import layers_of

SCORE, APART = 0.7, 0.3
"""Score from which a detection on a photograph as it is counts as one of its objects, and IoU from which a less sure
one counts as the same once more."""
EXPLAINED, BUDGET = 2, 24
"""Objects of a photograph whose maps are made, and pictures shown to the detector for them."""
SAME = 0.5
"""IoU from which a detection of the same class is the same object under another condition."""
CLEAN, STRANGE = "as it is", "unknown"


@dataclass(frozen=True)
class Line:
    """A photograph in one version: the mean reliability of its objects, what was named, what was right to name.

    Attributes:
        photograph: Its name.
        version: A key of `CONDITIONS`, `CLEAN`, or `STRANGE` for a photograph of what no class is for.
        objects: Of the photograph as it is; of an unknown thing, whatever is detected.
        found: Of them in this version.
        reliability: Mean over those found, NaN where there is none; of an unknown thing that of the surest detection.
        named: For each object found the condition that is named first, empty where none is.
    """

    photograph: str
    version: str
    objects: int
    found: int
    reliability: float
    named: Sequence[str]


def main(argv: Sequence[str], prog: str = "reliability-hooks demo") -> int:
    """Parse and run."""
    p = argparse.ArgumentParser(prog=prog, description="The embedded detector, hooked, on photographs that installed "
                                "packages bring along, blurred, darkened, noisy, occluded; and on unknown things.")
    p.add_argument("--out", default="runs/demo", help="directory of report.html (default: %(default)s)")
    p.add_argument("--open", action="store_true", help="open the page in a browser")
    p.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    args = p.parse_args(list(argv))
    return guarded(lambda: demo(Path(args.out), args.open), args.debug)


def demo(out: Path, show: bool = False) -> int:
    """Write `out/report.html` and print a table.

    Raises:
        ImportError: What the page needs is not installed.
    """
    check_installed()
    console, pictures = terminal(), list(photographs())
    monitor, detector = Monitor.load(MONITOR), load_demo_detector(score_thresh=SCORE_THRESH)
    lines: list[Line] = []
    with attach(detector, monitor, strict=True) as handle, Progress(console=console) as progress:
        gathered = Gathered(monitor, handle.host.class_names())
        for seed, photograph in enumerate(progress.track(pictures, description="photographs")):
            lines += look(handle, photograph, seed, gathered)
    images = gathered.images()
    figures = [spread_figure(gathered.reliability), against_calibration(monitor.judge, gathered.scores)]
    tables = [condition_table(images), class_table(images)]
    facts = [
        ("Detector", "demo-detector: a small, weak Mask R-CNN taught by 288 photographs"),
        ("Monitor", "calibrated on COCO val2017"), ("Photographs", f"{len(pictures)}, from installed packages"),
        ("Pictures", f"{len(images)}"), ("Detections", f"{len(gathered.reliability):,}"),
    ]  # fmt: skip
    page = gathered.page("When not to trust a detector", facts,
                         DatasetFigures([f for f in figures if f], [t for t in tables if t]))  # fmt: skip
    path = write_page(out / "report.html", page)
    report(console, lines)
    console.print(f"written: {path}", highlight=False)
    if show:
        webbrowser.open(path.resolve().as_uri())
    return 0


def look(handle: Handle, photograph: Photograph, seed: int, gathered: Gathered) -> list[Line]:
    """Detect on the photograph and on all of its versions."""
    monitor = handle.monitor
    phrases = words_of(monitor.signals)

    def seen(version: str, pixels: np.ndarray) -> Instances:
        name = photograph.name if version == CLEAN else f"{photograph.name}, {version}"
        look_inside = version == CLEAN and photograph.known
        found, maps = explained(handle, pixels) if look_inside else (handle.predict([pixels])[0], {})
        gathered.add(name, pixels, found, maps=maps,
                     seen_under=CONDITIONS[version][0] if version in CONDITIONS else "")  # fmt: skip
        return found

    def line(version: str, objects: Instances, found: Instances) -> Line:
        rows = again(objects, found)
        named = [row[0].name if row else "" for row in causes(monitor.judge, phrases, found)]
        kept = rows[rows >= 0]
        return Line(photograph.name, version, len(objects), len(kept),
                    float(found.reliability[kept].nanmean()) if len(kept) else float("nan"),
                    [named[k] for k in kept.tolist()])  # fmt: skip

    clean = seen(CLEAN, photograph.pixels)
    if not photograph.known:
        top = clean[clean.scores.argsort(descending=True)[:1]]
        return [Line(photograph.name, STRANGE, len(clean), len(clean), float(top.reliability.nanmean()), [])]
    sure = clean[clean.scores >= SCORE]
    objects = sure[nms(sure.boxes, sure.scores, APART)]
    lines = [line(CLEAN, objects, clean)]
    if len(objects):
        changed = versions(photograph.pixels, objects.boxes.numpy(), seed)
        lines += [line(version, objects, seen(version, pixels)) for version, pixels in changed]
    return lines


def explained(handle: Handle, pixels: np.ndarray) -> tuple[Instances, dict[int, list[MapLayer]]]:
    """What is found, and maps of the surest objects: where class and mask rest."""
    with handle.frames(*EVIDENCE) as frames:
        found = handle.predict([pixels])[0]
        rows = found.scores.argsort(descending=True)[:EXPLAINED]
        made = explain_frame(frames[0], rows, targets=("class", "mask"), budget=BUDGET, longest=max(pixels.shape[:2]),
                             instances=found[rows])  # fmt: skip
    size = (pixels.shape[0], pixels.shape[1])
    return found, {row: layers_of(made, k, size, {}) for k, row in enumerate(rows.tolist())}


def again(objects: Instances, found: Instances) -> torch.Tensor:
    """For each object the row that finds it again, the one with the highest score; -1 where none does."""
    if len(objects) == 0 or len(found) == 0:
        return torch.full((len(objects),), -1)
    same = (box_iou(objects.boxes, found.boxes) >= SAME) & (objects.labels[:, None] == found.labels)
    best = torch.where(same, found.scores, -1.0).argmax(1)
    return torch.where(same.any(1), best, -1)


def report(console: Console, lines: Sequence[Line]) -> None:
    """Two tables and two sentences."""
    versions_ = [CLEAN, *CONDITIONS]
    table = Table(title=f"mean reliability of the objects (score {SCORE} or more as it is) that are found (how many)")
    table.add_column("photograph")
    for name in versions_:
        table.add_column(name, justify="right")
    at = {(x.photograph, x.version): x for x in lines}
    known = [x.photograph for x in lines if x.version == CLEAN]
    for name in known:
        table.add_row(name, *(cell(at.get((name, v))) for v in versions_))
    mean = summary(lines)
    table.add_section()
    table.add_row("all objects", *(number(mean.get(v, float("nan"))) for v in versions_))
    console.print(table)
    strange = Table(title="things that it has no class for")
    for heading in ("photograph", "detections", "reliability of the surest"):
        strange.add_column(heading, justify="left" if heading == "photograph" else "right")
    for x in lines:
        if x.version == STRANGE:
            strange.add_row(x.photograph, str(x.objects), number(x.reliability))
    console.print(strange)
    right, cases = named_right(lines)
    if cases:
        console.print(f"of {cases} degraded pictures with an object that is found again, the condition named first for "
                      f"most of its objects is the applied one in {right}", highlight=False)  # fmt: skip


def summary(lines: Sequence[Line]) -> Mapping[str, float]:
    """Version -> mean reliability over all objects that were found in it."""
    found: dict[str, list[tuple[float, int]]] = {}
    for x in lines:
        if x.found:
            found.setdefault(x.version, []).append((x.reliability, x.found))
    return {v: sum(r * n for r, n in rows) / sum(n for _, n in rows) for v, rows in found.items()}


def named_right(lines: Sequence[Line]) -> tuple[int, int]:
    """Degraded pictures in which the condition named most is the one applied, and all with an object found again."""
    degraded = [x for x in lines if x.version in CONDITIONS and x.found]
    most = [max(sorted(set(x.named)), key=list(x.named).count) for x in degraded]
    return sum(m == CONDITIONS[x.version][0] for m, x in zip(most, degraded, strict=True)), len(degraded)


def cell(line: Line | None) -> str:
    """Reliability and how many were found; lost where all are."""
    if line is None or line.objects == 0:
        return ""
    return f"{number(line.reliability)} ({line.found})" if line.found else "lost"


def number(value: float) -> str:
    """Two digits, a dash for NaN."""
    return f"{value:.2f}" if value == value else "-"
