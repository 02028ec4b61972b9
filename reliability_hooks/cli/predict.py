"""`predict`: run a detector with a monitor over images or videos; pictures, predictions.json and a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..config import Settings
from ..explain.cause import clearest
from ..export.coco import Rows, read_ids, to_coco, write_json
from ..export.optional import require
from ..export.parquet import write_parquet
from ..hook import Handle, attach
from ..images import ImageError, find_images, is_video, read_image, read_video
from ..instances import Instances
from ..monitor import Monitor
from ..reliability.drift import DriftState
from ..report.html import write_page
from ..report.overlay import draw
from ..signals.condition import words_of
from .common import batches, guarded, new_monitor, open_detector, parser, settings_of, terminal, unique_stem
from .html_report import Gathered, add_flag, page_path
from .pages import predict_page

FORMATS = {"coco": (write_json, "json"), "parquet": (write_parquet, "parquet")}
"""What `predictions` can be, who writes it, and how its file ends."""


@dataclass
class Run:
    """What a run has done so far; all of it is written even where images fail."""

    out: Path
    rows: Rows = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    images: int = 0
    drift: DriftState | None = None
    evidence: list[float] = field(default_factory=list)
    """Of drift, after each image."""


@dataclass(frozen=True)
class Item:
    """One picture to look at."""

    name: str
    stem: str
    pixels: np.ndarray
    video: Path | None = None


def main(argv: Sequence[str], prog: str = "reliability-hooks predict") -> int:
    """Parse and run."""
    p = parser(prog, "Detect objects and say how far each may be trusted.",
               ["detector", "host", "device", "conf", "batch", "monitor"])
    p.add_argument("source", help="image, folder, glob pattern or video")
    p.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of settings")
    p.add_argument("--out", default="runs/predict", help="directory of the results (default: %(default)s)")
    p.add_argument("--annotations", help="COCO json whose image and category ids the predictions shall use")
    p.add_argument("--format", choices=FORMATS, default="coco",
                   help="of the predictions: COCO results (predictions.json) or a table (predictions.parquet)")
    add_flag(p)
    args = p.parse_intermixed_args(list(argv))

    def run() -> int:
        out = Path(args.out)
        return predict(settings_of(args, args.opts), args.source, out, args.annotations, args.format,
                       page_path(args.report, out))  # fmt: skip

    return guarded(run, args.debug)


def predict(
    settings: Settings, source: str, out: Path, annotations: str | None = None, format: str = "coco",
    report: Path | None = None,
) -> int:
    """Write `out/NAME.jpg` for each image (`NAME.mp4` for a video), `out/predictions.json`, `out/run.json`.

    Args:
        settings: Detector, monitor and batch size.
        source: Image, folder, glob pattern or video.
        out: Directory.
        annotations: COCO json whose ids are used.
        format: A key of `FORMATS`.
        report: Where an HTML page of it all goes.

    Returns:
        0, or 1 where some images could not be read or detected on; the others are written all the same.
    """
    console = terminal()
    write, suffix = FORMATS[format]
    if format == "parquet":
        require("pyarrow", "parquet")  # said now, not when all is detected
    files = find_images(source)
    image_ids, category_ids = read_ids(annotations) if annotations else ({}, None)
    m = settings.monitor
    monitor = Monitor.load(m.path) if m.path else new_monitor(settings)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out)
    with (
        attach(open_detector(settings), monitor, strict=m.strict) as handle,
        Progress(console=console) as progress,
    ):
        names = handle.host.class_names()
        gathered = None if report is None else Gathered(monitor, names)
        phrases = words_of(monitor.signals)
        task = progress.add_task("detecting", total=len(files))
        with _Videos(out) as videos:
            for batch in batches(_items(files, run, lambda: progress.advance(task)), settings.batch):
                for item, instances in _detect(handle, batch, settings.detector.predict, run):
                    run.images += 1
                    if monitor.drift is not None and item.video is None:  # frames of a video depend on their neighbours
                        run.drift = monitor.drift.update(instances)
                        run.evidence.append(run.drift.evidence)
                    reasons = [[r for r in row if r.change < -0.02] for row in monitor.reasons(instances)]
                    words = [[f"{r.phrase} ({r.change:+.2f})" for r in row] for row in reasons]
                    conditions = clearest(monitor.judge, phrases, instances)
                    captions = [", ".join(dict.fromkeys([*([row[0].phrase] if row else []), *([c] if c else [])]))
                                for row, c in zip(reasons, conditions, strict=True)]  # fmt: skip
                    picture = draw(item.pixels, instances, names, captions)
                    videos.write(item, picture) if item.video else _save(picture, out / f"{item.stem}.jpg")
                    if gathered is not None:
                        gathered.add(item.name, item.pixels, instances)
                    image_id = image_ids.get(item.name, _image_id(item.stem))
                    run.rows += [
                        {**row, "file_name": item.name, **({"condition": c} if phrases else {})}
                        for row, c in zip(to_coco(instances, image_id, names, category_ids, words), conditions,
                                          strict=True)
                    ]
    write(out / f"predictions.{suffix}", run.rows)
    write_json(out / "run.json", {
        "source": str(source), "detector": settings.detector.weights, "monitor": m.path, "images": run.images,
        "detections": len(run.rows), "failed": run.failed, "drift": None if run.drift is None else asdict(run.drift),
    })
    if report is not None and gathered is not None:
        failures = [f"{f['file']}: {f['error']}" for f in run.failed]
        write_page(report, predict_page(gathered, settings, source, len(run.rows), run.drift, run.evidence, failures))
        console.print(f"written: {report}", highlight=False)
    _print(console, run, fitted=monitor.judge is not None, predictions=f"predictions.{suffix}")
    return 1 if run.failed else 0


def _items(files: Sequence[Path], run: Run, done: Any) -> Iterator[Item]:
    taken: set[str] = set()
    for path in files:
        stem = unique_stem(path, taken)
        try:
            if is_video(path):
                for k, frame in enumerate(read_video(path)):
                    yield Item(f"{path.name}#{k}", f"{stem}_{k:06d}", frame, video=path)
            else:
                yield Item(path.name, stem, read_image(path))
        except ImageError as e:
            run.failed.append({"file": str(path), "error": str(e)})
        done()


def _detect(
    handle: Handle, batch: list[Item], options: dict[str, Any], run: Run
) -> Iterator[tuple[Item, Instances]]:
    """The batch in one call; one by one where the detector fails, so that one image does not cost the others."""
    try:
        yield from zip(batch, handle.predict([item.pixels for item in batch], **options), strict=True)
    except Exception as e:
        if handle.strict:
            raise
        if len(batch) == 1:
            run.failed.append({"file": batch[0].name, "error": f"the detector failed: {type(e).__name__}: {e}"})
            return
        for item in batch:
            yield from _detect(handle, [item], options, run)


def _image_id(stem: str) -> int | str:
    return int(stem) if stem.isdecimal() else stem


def _save(picture: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path, quality=90)


class _Videos:
    """Annotated videos, each open while its frames come."""

    def __init__(self, out: Path) -> None:
        self.out, self.writers = out, dict[Path, Any]()

    def write(self, item: Item, picture: np.ndarray) -> None:
        import cv2

        assert item.video is not None
        if item.video not in self.writers:
            fps = cv2.VideoCapture(str(item.video)).get(cv2.CAP_PROP_FPS) or 25.0
            path = self.out / f"{item.stem.rpartition('_')[0]}.mp4"
            size = (picture.shape[1], picture.shape[0])
            self.writers[item.video] = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        self.writers[item.video].write(np.ascontiguousarray(picture[..., ::-1]))

    def __enter__(self) -> _Videos:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self.writers.values():
            writer.release()


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "unknown"


def _print(console: Console, run: Run, fitted: bool, predictions: str, most: int = 25) -> None:
    rows = sorted(run.rows, key=lambda r: r["reliability"] if r["reliability"] == r["reliability"] else -1.0)
    table = Table(title=f"least reliable {min(most, len(rows))} of {len(rows)} detections in {run.images} images")
    words = ("image", "class", "against it", "condition")
    named = ("condition",) if any("condition" in row for row in rows) else ()
    for heading in ("image", "class", "score", "reliability", "90 % interval", "verdict", "E[IoU]", "against it",
                    *named):  # fmt: skip
        table.add_column(heading, justify="left" if heading in words else "right")
    for row in rows[:most]:
        score, value, iou = (_number(row[key]) for key in ("score", "reliability", "expected_iou"))
        ends = [_number(v) for v in row["reliability_interval"]]
        interval = "" if "unknown" in ends else "-".join(ends)
        table.add_row(row["file_name"], row["category_name"], score, value, interval, row["verdict"], iou,
                      "; ".join(row["reasons"]), *(row[key] for key in named))
    console.print(table)
    if not fitted:
        console.print("no monitor: reliability is unknown. Fit one: reliability-hooks calibrate --help", style="yellow")
    if run.drift is not None:
        shown = replace(run.drift, moved=run.drift.moved[:3])
        style = "yellow" if shown.alarm else None
        console.print(f"against the calibration images: {shown}", style=style, highlight=False)
    console.print(f"written: {run.out}/ (pictures, {predictions}, run.json)", highlight=False)
    for failure in run.failed:
        print(f"failed: {failure['file']}: {failure['error']}", file=sys.stderr)
