"""`calibrate`: fit a monitor for a detector on labelled images. Resumable; prints before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..config import Settings
from ..evaluation.bootstrap import Estimate, image_bootstrap
from ..evaluation.datasets import DetectionDataset, GroundTruth
from ..evaluation.labels import labelled
from ..evaluation.summary import CALIBRATION_METRICS
from ..export.coco import write_json
from ..hook import attach
from ..instances import Instances
from ..monitor import Monitor
from .card import card
from .collect import Collector, expanded, jobs_of, labelled_images
from .common import guarded, new_monitor, open_detector, parser, settings_of, terminal

SHOWN = ("d_ece", "brier", "auroc", "augrc")


def main(argv: Sequence[str], prog: str = "reliability-hooks calibrate") -> int:
    """Parse and run."""
    p = parser(prog, "Fit a monitor: how often is this detector right, given what its detections look like?",
               ["detector", "host", "device", "conf", "batch", "images", "annotations", "conditions"])
    p.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of settings")
    p.add_argument("--out", metavar="DIR", help="directory of the monitor (default: monitor.path, or runs/monitor)")
    args = p.parse_intermixed_args(list(argv))

    def run() -> int:
        settings = settings_of(args, args.opts)
        return calibrate(settings, Path(args.out or settings.monitor.path or "runs/monitor"))

    return guarded(run, args.debug)


def calibrate(settings: Settings, out: Path) -> int:
    """Write a monitor to `out` with `report.json` and `CARD.md` beside it.

    What is known of an image is kept in `out/cache`, so that an interrupted run goes on where it stopped.

    Returns:
        0, or 1 where some images could not be read; the monitor is fitted on the others.
    """
    settings = expanded(settings)
    console, monitor = terminal(), new_monitor(settings)
    with attach(open_detector(settings), monitor, strict=True) as handle:  # nothing is fitted on half the evidence
        fingerprint = handle.host.fingerprint()
        dataset = labelled_images(handle, settings, console)
        collector = Collector(handle, settings, out / "cache")
        found = list(collector.collect(jobs_of(dataset, settings), console))
    pairs = [(instances, truth) for _, instances, truth in found]
    model = monitor.fit(
        pairs, groups=[record.id for (record, _), _, _ in found], fingerprint=fingerprint,
        usual=[condition == settings.data.conditions[0] for (_, condition), _, _ in found], parents=dataset.parents,
    )
    table = before_and_after(monitor, pairs, [(str(record.id), c) for (record, c), _, _ in found])
    rule = protocol(settings, dataset, handle.host.class_free)
    monitor.save(out)
    write_json(out / "report.json", {
        "version": __version__, "settings": asdict(settings), "failed": collector.failed, "fit": model.report,
        "guarantee": promises(monitor),
        "protocol": rule,
        "metrics": {row: {name: asdict(e) for name, e in line.items()} for row, line in table.items()},
    })
    images, names = [(record.id, c) for (record, c), _, _ in found], dict(enumerate(dataset.names))
    said = card(monitor, settings, pairs, images, names, table, rule, len(collector.failed))
    (out / "CARD.md").write_text(said, encoding="utf-8")
    _print(console, table, monitor, out, rule)
    for failure in collector.failed:
        console.print(f"failed: {failure}", style="red")
    return 1 if collector.failed else 0


def before_and_after(
    monitor: Monitor, pairs: Sequence[tuple[Instances, GroundTruth]], images: Sequence[Any]
) -> dict[str, dict[str, Estimate]]:
    """Metrics of the raw score and of the cross-fitted reliability, intervals by bootstrap over photographs."""
    assert monitor.judge is not None
    assert monitor.judge.cross_fitted is not None
    rows, correct, _, image = labelled(pairs, monitor.terms.iou_threshold)
    photograph = np.array([name for name, *_ in images])[image.numpy()]
    metrics = {name: CALIBRATION_METRICS[name] for name in SHOWN}

    def measure(p: torch.Tensor) -> dict[str, Estimate]:
        ok = p.isfinite()
        return image_bootstrap(
            metrics, photograph[ok.numpy()], p[ok].double().numpy(), correct[ok].numpy(),
            all_images=np.unique([name for name, *_ in images]),
        )

    return {"detector's score": measure(rows.scores), "reliability": measure(monitor.judge.cross_fitted)}


def promises(monitor: Monitor) -> list[dict[str, Any]]:
    """What is certified, and what it would take where nothing is."""
    return monitor.judge.guarantee.describe() if monitor.judge and monitor.judge.guarantee else []


def protocol(settings: Settings, dataset: DetectionDataset, class_free: bool = False) -> str:
    """What the figures mean, in a sentence."""
    least = f"IoU >= {settings.monitor.iou_threshold}"
    right = f"mask {least} with its object, of whatever class" if class_free else f"same class and {least}"
    return (
        f"right = {right} by {'the prompt, or else ' if class_free else ''}COCO greedy matching; "
        f"{len(dataset)} images under {', '.join(settings.data.conditions)}; "
        f"detector options {json.dumps(settings.detector.predict)}; "
        "reliability cross-fitted by image; D-ECE in 10 equal bins; 95 % intervals by bootstrap over images"
    )


def _print(
    console: Console, table: Mapping[str, Mapping[str, Estimate]], monitor: Monitor, out: Path, text: str
) -> None:
    shown = Table(title="before and after")
    shown.add_column("")
    for name in SHOWN:
        shown.add_column(name.replace("_", "-").upper(), justify="right")
    for row, line in table.items():
        shown.add_row(row, *(str(line[name]) for name in SHOWN))
    console.print(shown)
    console.print(text, highlight=False, style="dim")
    assert monitor.judge is not None
    console.print(f"model: {monitor.judge.model.report['chosen']}", highlight=False)
    if (caution := monitor.judge.caution) is not None:
        console.print(f"unknown objects: reckoned with a share of {caution.prior:g}, which changes the Brier score on "
                      f"known ones by {caution.cost:+.1%} (score: {monitor.judge.novelty})", highlight=False)
    for note in monitor.judge.model.notes:
        console.print(f"note: {note}", highlight=False, style="yellow")
    for line in promises(monitor):
        console.print(f"{line['side']}, {line['group']}: {line['message']}", highlight=False)
    console.print(f"written: {out}/ (monitor.json, state.safetensors, report.json, CARD.md)", highlight=False)
