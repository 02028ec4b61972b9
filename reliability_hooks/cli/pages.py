"""What the page of each command says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Settings
from ..evaluation.bootstrap import Estimate
from ..evaluation.datasets import GroundTruth
from ..evaluation.diagram import ReliabilityDiagram
from ..evaluation.matching import match
from ..images import read_image
from ..instances import Instances
from ..reliability.drift import DriftState
from ..report.figures import (
    as_figure,
    class_table,
    condition_table,
    drift_figure,
    spread_figure,
    strangeness_figure,
)
from ..report.page import DatasetFigures, Figure, Page, Table, rank
from ..report.strange import against_calibration
from .collect import Job, degrade
from .html_report import Gathered, facts_of
from .ood_report import COLUMNS, SHORT, Tables, spearman, title
from .ood_rows import Seen, by_mean_auroc

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

HISTOGRAMS = 3
"""Of the best out-of-distribution scores."""
METRICS_NOTE = "95 % intervals over images. AUROC and AUPR: higher is better; all others: lower is better."


def predict_page(
    gathered: Gathered, settings: Settings, source: str, detections: int, drift: DriftState | None,
    evidence: Sequence[float], failed: Sequence[str],
) -> Page:
    """Of `predict`.

    Args:
        gathered: The images.
        settings: Of the run.
        source: What was looked at.
        detections: How many there are.
        drift: After the last image; None where it was not watched.
        evidence: Of drift, after each image.
        failed: A line for each image that could not be read or detected on.
    """
    images, judge = gathered.images(), gathered.monitor.judge
    figures = [spread_figure(gathered.reliability), against_calibration(judge, gathered.scores),
               drift and drift_figure(evidence, drift.threshold, str(drift))]  # fmt: skip
    tables = [condition_table(images), class_table(images)] if judge else []
    data = DatasetFigures([f for f in figures if f], [t for t in tables if t])
    remarks = ([f"The images differ from the calibration images: {drift}."] if drift and drift.alarm else [])
    facts = facts_of(settings, source, gathered.seen, detections)
    return gathered.page("Detections and how far to trust them", facts, data, [*remarks, *_failures(failed)])


def evaluation_page(
    gathered: Gathered, settings: Settings, rows: Sequence[tuple[Job, Instances, GroundTruth]],
    diagrams: Mapping[str, ReliabilityDiagram], drawings: Mapping[str, Drawing],
    results: Mapping[str, Mapping[str, Estimate]], shown: Sequence[str], verdicts: Sequence[Mapping[str, Any]],
    table: Mapping[str, Mapping[str, Estimate]], failed: Sequence[str],
) -> Page:
    """Of `evaluate`: pictures as the detector saw them, and which detections are right.

    Args:
        gathered: Without images yet.
        settings: Of the run.
        rows: What was found on each image under each condition, and what is there.
        diagrams: Of each row of the results.
        drawings: The further ones, by file name.
        results: Row -> metric -> estimate.
        shown: Metrics of the table.
        verdicts: As `precision_of_verdicts` gives them.
        table: Condition -> row -> D-ECE.
        failed: A line for each image that could not be read.
    """
    least = [min(map(rank, instances.reliability.tolist()), default=2.0) for _, instances, _ in rows]
    for k in sorted(np.argsort(least, kind="stable")[: gathered.most].tolist()):
        (record, condition), instances, truth = rows[k]
        pixels = degrade(read_image(record.path), condition, settings.data.severity, record.id)
        gathered.add(Path(record.path).name, pixels, instances, seen_under=condition.replace("_", " "),
                     correct=_correct(instances, truth, gathered.monitor.terms.iou_threshold))  # fmt: skip
    gathered.seen = len(rows)
    names = list(results)
    risk = ", ".join(f"{n} {results[n]['excess_augrc']}" for n in names)
    said = {
        "risk_coverage": ("What is gained by keeping the most trusted", f"Excess AUGRC, 0 is best: {risk}.",
                          "Share of errors among what is kept, against the share that is kept; lower is better."),
        "conditions": ("Under each condition", "D-ECE of score and reliability; a table has the figures.", ""),
    }  # fmt: skip
    figures = [_promise(name, diagram, results[name]["d_ece"]) for name, diagram in diagrams.items()]
    figures += [as_figure(drawings[name], *words) for name, words in said.items() if name in drawings]
    lines = [[m.replace("_", "-").upper(), *(str(results[n][m]) for n in names)] for m in shown]
    tables = [
        Table("Metrics", ["metric", *names], lines, METRICS_NOTE),
        Table("Verdicts", ["verdict", "detections", "share of all", "share right"],
              [[v["verdict"], f"{v['detections']:,}", f"{100 * v['share']:.1f} %",
                f"{100 * v['precision']:.1f} %" if v["detections"] else "-"] for v in verdicts]),
        Table("D-ECE under each condition", ["condition", *next(iter(table.values()), {})],
              [[c.replace("_", " "), *map(str, row.values())] for c, row in table.items()], "95 % intervals."),
    ]  # fmt: skip
    facts = facts_of(settings, settings.data.images, len(rows), sum(len(i) for _, i, _ in rows))
    data = DatasetFigures(figures, tables)
    return gathered.page("Evaluation on labelled images", facts, data, _failures(failed), data_first=True)


def ood_page(
    settings: Settings, known: Seen, unknown: Mapping[str, Seen], tables: Tables, follows: Any, said: str,
    failed: Sequence[str],
) -> Page:
    """Of `evaluate-ood`: which score tells unknown objects.

    Args:
        settings: Of the run.
        known: Detections on known objects.
        unknown: Set -> detections on unknown ones.
        tables: See `ood_report`, as is `follows`.
        follows: See `tables`.
        said: The protocol, in a sentence.
        failed: A line for each image that could not be read.
    """
    order = by_mean_auroc(tables)
    figures: list[Figure] = [_aurocs(tables, order)]
    for score in order[:HISTOGRAMS]:
        groups = {"known, right": (known.columns[score][known.right()], None)} | {
            title(name, settings): (seen.columns[score][seen.on_unknown()], None) for name, seen in unknown.items()
        }
        auroc = ", ".join(f"{title(n, settings)} {t[score]['ood_auroc']}" for n, t in tables.items())
        drawn = strangeness_figure(groups, score, f"Scores of {score}", f"AUROC: {auroc}.")
        figures += [drawn] if drawn else []
    headings = ["score", *({**COLUMNS, "aose_rejected": "AOSE, rejected"}[m] for m in SHORT)]
    shown = [
        Table(title(name, settings), headings,
              [[s, *(f"{t[s][m]:.0f}" if m.startswith("aose") else f"{t[s][m]:.3f}" for m in SHORT)] for s in order],
              "95 % intervals over images. AUROC, AUPR and AP_U: higher is better; FPR95 and AOSE: lower.")
        for name, t in tables.items()
    ]  # fmt: skip
    if any(follows.get(s) for s in order):
        rows = [[s, "-" if np.isnan(v := spearman(follows, s)) else f"{v:.2f}"] for s in order]
        shown.append(Table("Does the score rise as known objects get harder to see?", ["score", "Spearman"], rows,
                           "Correlation with the severity of synthetic conditions, mean over them."))  # fmt: skip
    facts = [
        ("Detector", str(settings.detector.weights)), ("Known images", f"{known.images:,}"),
        *((f"Unknown: {title(name, settings)}", f"{seen.images:,} images") for name, seen in unknown.items()),
    ]  # fmt: skip
    protocol = f"{said[:1].upper()}{said[1:]}."
    return Page("Which score tells unknown objects", facts, data=DatasetFigures(figures, shown),
                remarks=_failures(failed), protocol=protocol)  # fmt: skip


def _promise(name: str, diagram: ReliabilityDiagram, d_ece: Estimate) -> Figure:
    from matplotlib.figure import Figure as Drawing

    from ..report.plots import plot_reliability

    drawing = Drawing(figsize=(4.8, 4.4), layout="constrained")
    plot_reliability(drawing.subplots(), diagram, d_ece)
    return as_figure(drawing, f"Does the {name} keep its promise?",
                     f"D-ECE, the mean gap between what is promised and what comes true: {d_ece}.",
                     "Bars: share that is right. Lines across: what was promised.")  # fmt: skip


def _aurocs(tables: Tables, order: Sequence[str], most: int = 24) -> Figure:
    from matplotlib.figure import Figure as Drawing

    from ..report.plots import plot_scores

    some = list(order[:most])
    drawing = Drawing(figsize=(6.4, 1.2 + 0.26 * len(some)), layout="constrained")
    aurocs = {score: {name: t[score]["ood_auroc"] for name, t in tables.items()} for score in some}
    plot_scores(drawing.subplots(), aurocs, "AUROC, known against unknown objects")
    best = {n: max((t[s]["ood_auroc"].value, s) for s in order)[1] for n, t in tables.items()}
    said = ", ".join(f"{score} on {name}" for name, score in best.items())
    return as_figure(drawing, "How well each score tells unknown objects", f"The best: {said}.",
                     "1 is perfect, 0.5 is chance; bars are 95 % intervals.")  # fmt: skip


def _correct(instances: Instances, truth: GroundTruth, iou_threshold: float) -> list[bool | None]:
    where = np.zeros(len(instances), np.int64), np.zeros(len(truth), np.int64)
    found = match(instances.boxes, instances.scores, instances.labels, where[0], truth.boxes, truth.labels, where[1],
                  truth.crowd, iou_threshold=iou_threshold)  # fmt: skip
    return [None if ignored else right for ignored, right in zip(found.ignore.tolist(), found.tp.tolist(), strict=True)]


def _failures(failed: Sequence[str]) -> list[str]:
    return [f"{len(failed)} failed, such as {failed[0]}"] if failed else []
