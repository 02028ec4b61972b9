"""`evaluate`: a detector with its monitor against labelled images it was not fitted on; table, JSON, diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..config import Settings
from ..evaluation.bootstrap import Estimate, image_bootstrap
from ..evaluation.datasets import GroundTruth
from ..evaluation.diagram import ReliabilityDiagram, reliability_diagram
from ..evaluation.labels import labelled, truth_of
from ..evaluation.selective import RiskCoverage, risk_coverage
from ..evaluation.summary import CALIBRATION_METRICS, evaluate
from ..export.coco import write_json
from ..hook import attach
from ..instances import Instances
from ..monitor import Monitor
from ..report.html import write_page
from .collect import Collector, expanded, jobs_of, labelled_images
from .common import guarded, open_detector, parser, settings_of, terminal
from .html_report import Gathered, add_flag, page_path
from .pages import evaluation_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (
    "d_ece", "brier", "nll", "auroc", "aupr_error", "fpr95_error", "augrc", "excess_augrc", "la_ece_0", "lrp_optimal",
    "oce",
)


def main(argv: Sequence[str], prog: str = "reliability-hooks evaluate") -> int:
    """Parse and run."""
    p = parser(prog, "How good is the reliability on labelled images that the monitor was not fitted on?",
               ["detector", "host", "device", "conf", "batch", "monitor", "images", "annotations", "conditions"])
    p.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of settings")
    p.add_argument("--out", metavar="DIR", default="runs/evaluate", help="directory of the results")
    add_flag(p)
    args = p.parse_intermixed_args(list(argv))

    def run() -> int:
        out = Path(args.out)
        return evaluate_monitor(settings_of(args, args.opts), out, page_path(args.report, out))

    return guarded(run, args.debug)


@dataclass(frozen=True)
class Found:
    """All detections of the run, on crowd regions or not, with the image and condition of each."""

    pairs: list[tuple[Instances, GroundTruth]]
    photographs: list[str]
    conditions: list[str]


def evaluate_monitor(settings: Settings, out: Path, report: Path | None = None) -> int:
    """Write `out/evaluation.json`, `reliability.png`, `risk_coverage.png` and, for several, `conditions.png`.

    Args:
        settings: Detector, monitor and data.
        out: Directory.
        report: Where an HTML page of it all goes.

    Returns:
        0, or 1 where some images could not be read.
    """
    settings = expanded(settings)
    if settings.monitor.path is None:
        raise ValueError("which monitor? give --monitor DIR, or fit one with `reliability-hooks calibrate`")
    console, monitor = terminal(), Monitor.load(settings.monitor.path)
    with attach(open_detector(settings), monitor, strict=True) as handle:
        dataset = labelled_images(handle, settings, console)
        collector = Collector(handle, settings, None)
        rows = list(collector.collect(jobs_of(dataset, settings), console))
        names = handle.host.class_names()
    found = Found([(i, t) for _, i, t in rows], [str(r.id) for (r, _), _, _ in rows], [c for (_, c), _, _ in rows])
    results = {"detector's score": measure(found, None), "reliability": measure(found, "reliability")}
    table = by_condition(found, monitor)
    verdicts = precision_of_verdicts(found, monitor)
    out.mkdir(parents=True, exist_ok=True)
    judged = judgements(found, monitor)
    drawings = draw(judged, results, table)
    for name, drawing in drawings.items():
        drawing.savefig(out / f"{name}.png", dpi=150)
    write_json(out / "evaluation.json", {
        "version": __version__, "settings": asdict(settings), "failed": collector.failed, "verdicts": verdicts,
        "metrics": {row: {name: asdict(e) for name, e in line.items()} for row, line in results.items()},
        "conditions": {c: {row: asdict(e) for row, e in line.items()} for c, line in table.items()},
    })
    if report is not None:
        write_page(report, evaluation_page(Gathered(monitor, names), settings, rows, judged.diagrams, drawings,
                                           results, SHOWN, verdicts, table, collector.failed))  # fmt: skip
        console.print(f"written: {report}", highlight=False)
    _print(console, results, verdicts, out)
    for failure in collector.failed:
        console.print(f"failed: {failure}", style="red")
    return 1 if collector.failed else 0


def measure(found: Found, column: str | None) -> dict[str, Estimate]:
    """Every metric of the score (None) or of a column. Rows whose reliability is unknown are left out."""
    kept = []
    for instances, truth in found.pairs:
        known = instances.columns["reliability"].isfinite()
        kept.append((instances[known], truth))
    rows, image = _stacked(kept)
    return evaluate(
        rows.boxes, rows.scores, rows.labels, image, *truth_of(kept),
        reliability=None if column is None else rows.columns[column], all_images=np.arange(len(kept)), draws=200,
        drawn_with=found.photographs,
    )


def by_condition(found: Found, monitor: Monitor) -> dict[str, dict[str, Estimate]]:
    """Condition -> D-ECE of the score and of the reliability."""
    out = {}
    for condition in dict.fromkeys(found.conditions):
        chosen = [i for i, c in enumerate(found.conditions) if c == condition]
        rows, correct, _, image = labelled([found.pairs[i] for i in chosen], monitor.terms.iou_threshold)
        photographs = np.array([found.photographs[i] for i in chosen])
        known = rows.reliability.isfinite()
        out[condition] = {
            name: image_bootstrap(
                {"d_ece": CALIBRATION_METRICS["d_ece"]}, photographs[image[known].numpy()], p[known].double().numpy(),
                correct[known].numpy(), draws=200, all_images=photographs,
            )["d_ece"]
            for name, p in (("score", rows.scores), ("reliability", rows.reliability))
        }
    return out


def precision_of_verdicts(found: Found, monitor: Monitor) -> list[dict[str, Any]]:
    """For each verdict: how many detections got it, and the share of them that is right."""
    rows, correct, _, _ = labelled(found.pairs, monitor.terms.iou_threshold)
    verdict = rows.columns["verdict"]
    return [
        {"verdict": name, "detections": int((verdict == code).sum()), "share": float((verdict == code).float().mean()),
         "precision": float(correct[verdict == code].float().mean())}
        for name, code in (("accept", 1), ("unknown", 0), ("reject", -1))
    ]


@dataclass(frozen=True)
class Judged:
    """What the diagrams show: reliability diagram and risk-coverage curve of score and reliability."""

    diagrams: dict[str, ReliabilityDiagram]
    curves: dict[str, RiskCoverage]


def judgements(found: Found, monitor: Monitor) -> Judged:
    """Of the detections whose reliability is known."""
    rows, correct, _, image = labelled(found.pairs, monitor.terms.iou_threshold)
    known = rows.reliability.isfinite()
    y, photograph = correct[known].numpy(), np.array(found.photographs)[image[known].numpy()]
    judged = {"detector's score": rows.scores[known].double().numpy(),
              "reliability": rows.reliability[known].double().numpy()}  # fmt: skip
    return Judged(
        {name: reliability_diagram(p, y, image_ids=photograph) for name, p in judged.items()},
        {name: risk_coverage(p, y) for name, p in judged.items()},
    )


def draw(
    judged: Judged, results: Mapping[str, Mapping[str, Estimate]], table: Mapping[str, Mapping[str, Estimate]]
) -> dict[str, Figure]:
    """The diagrams by the name of their file; that of the conditions where there are several."""
    from matplotlib.figure import Figure

    from ..report.plots import plot_conditions, plot_reliability, plot_risk_coverage

    drawings = {"reliability": (figure := Figure(figsize=(8.4, 4.4), layout="constrained"))}
    for ax, (name, diagram) in zip(figure.subplots(1, 2), judged.diagrams.items(), strict=True):
        plot_reliability(ax, diagram, results[name]["d_ece"], name)

    drawings["risk_coverage"] = figure = Figure(figsize=(4.8, 4.0), layout="constrained")
    plot_risk_coverage(figure.subplots(), judged.curves)

    if len(table) > 1:
        drawings["conditions"] = figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        plot_conditions(figure.subplots(), table, "D-ECE", better="lower")
    return drawings


def _stacked(pairs: Sequence[tuple[Instances, GroundTruth]]) -> tuple[Instances, np.ndarray]:
    rows = Instances.cat([instances for instances, _ in pairs])
    lengths = torch.tensor([len(instances) for instances, _ in pairs])
    return rows, torch.repeat_interleave(torch.arange(len(pairs)), lengths).numpy()


def _print(
    console: Console, results: Mapping[str, Mapping[str, Estimate]], verdicts: Sequence[Mapping[str, Any]], out: Path
) -> None:
    table = Table(title="on labelled images, 95 % intervals over images")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for metric in SHOWN:
        table.add_row(metric.replace("_", "-").upper(), *(str(line[metric]) for line in results.values()))
    console.print(table)
    for row in verdicts:
        right = f", {row['precision']:.3f} of them right" if row["detections"] else ""
        console.print(f"{row['verdict']}: {row['detections']} detections ({row['share']:.1%}){right}", highlight=False)
    console.print(f"written: {out}/ (evaluation.json, reliability.png, risk_coverage.png)", highlight=False)
