"""`evaluate`: a detector with its monitor against labelled images it was not fitted on; table, JSON, diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import __version__
from ..config import Settings
from ..evaluation.bootstrap import Estimate, image_bootstrap
from ..evaluation.datasets import GroundTruth, read_coco
from ..evaluation.diagram import reliability_diagram
from ..evaluation.labels import labelled
from ..evaluation.selective import risk_coverage
from ..evaluation.summary import CALIBRATION_METRICS, evaluate
from ..export.coco import write_json
from ..hook import attach
from ..instances import Instances
from ..monitor import Monitor
from .collect import Collector, expanded, label_names
from .common import guarded, open_detector, parser, settings_of, terminal

SHOWN = ("d_ece", "brier", "auroc", "augrc", "excess_augrc", "fpr95_error", "la_ece_0", "lrp_optimal", "oce")


def main(argv: Sequence[str], prog: str = "reliability-hooks evaluate") -> int:
    """Parse and run."""
    p = parser(prog, "How good is the reliability on labelled images that the monitor was not fitted on?",
               ["detector", "host", "device", "conf", "batch", "monitor"])
    p.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of settings")
    p.add_argument("--images", metavar="DIR", help="directory of the images")
    p.add_argument("--annotations", metavar="JSON", help="COCO instances.json")
    p.add_argument("--conditions", metavar="NAMES", help="`all`, or comma-separated: clean,blur,noise,low_light,...")
    p.add_argument("--out", metavar="DIR", default="runs/evaluate", help="directory of the results")
    args = p.parse_intermixed_args(list(argv))

    def run() -> int:
        flags = {"data.images": args.images, "data.annotations": args.annotations,
                 "data.conditions": f"[{args.conditions}]" if args.conditions else None}
        pairs = [x for key, value in flags.items() if value is not None for x in (key, value)]
        return evaluate_monitor(settings_of(args, [*pairs, *args.opts]), Path(args.out))

    return guarded(run, args.debug)


@dataclass(frozen=True)
class Found:
    """All detections of the run, on crowd regions or not, with the image and condition of each."""

    pairs: list[tuple[Instances, GroundTruth]]
    photographs: list[str]
    conditions: list[str]


def evaluate_monitor(settings: Settings, out: Path) -> int:
    """Write `out/evaluation.json`, `reliability.png`, `risk_coverage.png` and, for several, `conditions.png`.

    Returns:
        0, or 1 where some images could not be read.
    """
    settings = expanded(settings)
    data = settings.data
    if data.images is None or data.annotations is None:
        raise ValueError("which labelled images? give --images DIR and --annotations instances.json")
    if settings.monitor.path is None:
        raise ValueError("which monitor? give --monitor DIR, or fit one with `reliability-hooks calibrate`")
    console, monitor = terminal(), Monitor.load(settings.monitor.path)
    with attach(open_detector(settings), monitor, strict=True) as handle:
        names = label_names(handle.host.class_names())
        dataset = read_coco(data.annotations, data.images, names)
        dataset = dataset.subset(range(min(data.limit, len(dataset)))) if data.limit else dataset
        collector = Collector(handle, settings, None)
        jobs = [(record, condition) for condition in data.conditions for record in dataset]
        rows = list(collector.collect(jobs, console))
    found = Found([(i, t) for _, i, t in rows], [str(r.id) for (r, _), _, _ in rows], [c for (_, c), _, _ in rows])
    results = {"detector's score": measure(found, None), "reliability": measure(found, "reliability")}
    table = by_condition(found, monitor)
    verdicts = precision_of_verdicts(found, monitor)
    out.mkdir(parents=True, exist_ok=True)
    draw(found, monitor, results, table, out)
    write_json(out / "evaluation.json", {
        "version": __version__, "settings": asdict(settings), "failed": collector.failed, "verdicts": verdicts,
        "metrics": {row: {name: asdict(e) for name, e in line.items()} for row, line in results.items()},
        "conditions": {c: {row: asdict(e) for row, e in line.items()} for c, line in table.items()},
    })
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
    truths = [truth for _, truth in kept]
    # each version of a photograph is matched, and drawn, by itself: with several conditions, whose versions depend on
    # each other, these intervals are too narrow; those of `by_condition` are not
    groups = np.array(found.photographs)
    ids = np.array([f"{p}\n{c}" for p, c in zip(found.photographs, found.conditions, strict=True)])
    single = len(set(found.photographs)) == len(found.photographs)
    use = groups if single else ids
    return evaluate(
        rows.boxes, rows.scores, rows.labels, use[image],
        np.concatenate([t.boxes for t in truths]), np.concatenate([t.labels for t in truths]),
        np.repeat(use, [len(t) for t in truths]), np.concatenate([t.crowd for t in truths]),
        reliability=None if column is None else rows.columns[column], all_images=np.unique(use), draws=200,
    )


def by_condition(found: Found, monitor: Monitor) -> dict[str, dict[str, Estimate]]:
    """Condition -> D-ECE of the score and of the reliability."""
    out = {}
    for condition in dict.fromkeys(found.conditions):
        chosen = [i for i, c in enumerate(found.conditions) if c == condition]
        rows, correct, _, image = labelled([found.pairs[i] for i in chosen], monitor.settings["iou_threshold"])
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
    rows, correct, _, _ = labelled(found.pairs, monitor.settings["iou_threshold"])
    verdict = rows.columns["verdict"]
    return [
        {"verdict": name, "detections": int((verdict == code).sum()), "share": float((verdict == code).float().mean()),
         "precision": float(correct[verdict == code].float().mean())}
        for name, code in (("accept", 1), ("unknown", 0), ("reject", -1))
    ]


def draw(
    found: Found, monitor: Monitor, results: Mapping[str, Mapping[str, Estimate]],
    table: Mapping[str, Mapping[str, Estimate]], out: Path,
) -> None:
    """The diagrams as PNG."""
    from matplotlib.figure import Figure

    from ..report.plots import plot_conditions, plot_reliability, plot_risk_coverage

    rows, correct, _, image = labelled(found.pairs, monitor.settings["iou_threshold"])
    known = rows.reliability.isfinite()
    y, photograph = correct[known].numpy(), np.array(found.photographs)[image[known].numpy()]
    judged: dict[str, Tensor] = {"detector's score": rows.scores[known], "reliability": rows.reliability[known]}

    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    for ax, (name, p) in zip(figure.subplots(1, 2), judged.items(), strict=True):
        diagram = reliability_diagram(p.double().numpy(), y, image_ids=photograph)
        plot_reliability(ax, diagram, results[name]["d_ece"], name)
    figure.savefig(out / "reliability.png", dpi=150)

    figure = Figure(figsize=(4.8, 4.0), layout="constrained")
    curves = {name: risk_coverage(p.double().numpy(), y) for name, p in judged.items()}
    plot_risk_coverage(figure.subplots(), curves)
    figure.savefig(out / "risk_coverage.png", dpi=150)

    if len(table) > 1:
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        plot_conditions(figure.subplots(), table, "D-ECE", better="lower")
        figure.savefig(out / "conditions.png", dpi=150)


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
