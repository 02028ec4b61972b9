"""What `evaluate-ood` found, as tables and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..config import Settings
from ..evaluation.bootstrap import Estimate
from ..evaluation.severity import SeverityCorrelation
from ..signals.base import FAMILIES, create
from ..signals.ood.base import Info
from .ood_rows import by_mean_auroc

Tables = Mapping[str, Mapping[str, Mapping[str, Estimate]]]
"""Set -> score -> metric -> estimate."""
Follows = Mapping[str, Mapping[str, SeverityCorrelation]]
"""Score -> condition -> how the score follows its severity."""
COLUMNS = {
    "ood_auroc": "AUROC", "ood_aupr_out": "AUPR out", "ood_aupr_in": "AUPR in", "fpr95_id_positive": "FPR95 (ID pos.)",
    "fpr95_ood_positive": "FPR95 (OOD pos.)", "ap_u": "AP_U", "r_u": "R_U", "aose": "AOSE", "aose_rejected": "rejected",
    "nose_rejected": "nOSE rejected", "wilderness_impact_rejected": "WI rejected", "e_bk_rejected": "E_BK rejected",
}  # fmt: skip
"""Metrics of the Markdown table; the CSV has all."""
SHORT = ("ood_auroc", "ood_aupr_out", "fpr95_id_positive", "fpr95_ood_positive", "ap_u", "aose_rejected")
"""Metrics on the terminal."""


def write_tables(out: Path, tables: Tables, follows: Follows, seconds: Mapping[str, float], settings: Settings) -> None:
    """`ood.csv`, a row for each set, score and metric, and `ood.md`, a table for each set."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["set", "score", "metric", "value", "low", "high", "n", "images"])
    for name, table in tables.items():
        for score, row in table.items():
            for metric, e in row.items():
                writer.writerow([name, score, metric, e.value, e.low, e.high, e.n, e.n_images])
    for score, row_of in follows.items():
        writer.writerows(["intensity", score, c, v.of_means, "", "", v.items, ""] for c, v in row_of.items())
    (out / "ood.csv").write_text(text.getvalue(), encoding="utf-8")

    order = by_mean_auroc(tables)
    parts = ["# Out-of-distribution scores\n"]
    for name, table in tables.items():
        parts += [f"## {title(name, settings)}\n", _line("score", *COLUMNS.values())]
        parts.append(_line(*["---"] * (1 + len(COLUMNS))))
        parts += [_line(s, *(_cell(table[s], m) for m in COLUMNS)) for s in order]
        parts.append("")
    headings = ("score", "ms for an image", "Spearman with the severity, mean of conditions")
    parts += ["## Cost and intensity\n", _line(*headings), _line("---", "---", "---")]
    parts += [_line(s, _ms(s, seconds), f"{spearman(follows, s):.2f}") for s in order]
    (out / "ood.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def print_tables(
    console: Console, tables: Tables, follows: Follows, seconds: Mapping[str, float], settings: Settings
) -> None:
    """The best scores first."""
    order = by_mean_auroc(tables)
    for name, table in tables.items():
        any_row = next(iter(table.values()))
        said = any_row["ood_auroc"].protocol
        shown = Table(title=f"{title(name, settings)}: {said['n_ood']} unknown, {said['n_id']} known detections")
        shown.add_column("score", no_wrap=True)
        for metric in SHORT:
            shown.add_column(COLUMNS[metric] if metric != "aose_rejected" else "AOSE rejected", justify="right")
        for score in order:
            row = table[score]
            aose = f"{row['aose'].value:.0f} -> {row['aose_rejected'].value:.0f}"
            shown.add_row(score, *(f"{row[m]:.3f}" for m in SHORT[:-1]), aose)
        console.print(shown)
    shown = Table(title="over all sets")
    for heading in ("score", "mean AUROC", "Spearman with severity", "ms for an image"):
        shown.add_column(heading, justify="left" if heading == "score" else "right")
    for score in order:
        mean = float(np.mean([t[score]["ood_auroc"].value for t in tables.values()]))
        shown.add_row(score, f"{mean:.3f}", f"{spearman(follows, score):.2f}", _ms(score, seconds))
    console.print(shown)


def print_scores(console: Console) -> None:
    """Every registered score with the record that it carries."""
    shown = Table(title="out-of-distribution scores")
    for heading in ("name", "method", "paper", "needs", "learns", "sign"):
        shown.add_column(heading, no_wrap=heading == "name")
    for signal in create(name for name in FAMILIES if name.startswith("ood/")):
        info: Info | None = getattr(signal, "info", None)
        if info is not None:
            learns = "yes" if signal.learns else ""
            shown.add_row(signal.name, info.title, info.paper, info.needs, learns, info.sign)
    console.print(shown)


def draw(path: Path, tables: Tables, most: int = 24) -> None:
    """AUROC of the best scores with their intervals, a column of dots for each set."""
    from matplotlib.figure import Figure

    from ..report.plots import plot_scores

    order = by_mean_auroc(tables)[:most]
    figure = Figure(figsize=(7.6, 1.2 + 0.26 * len(order)), layout="constrained")
    aurocs = {score: {name: t[score]["ood_auroc"] for name, t in tables.items()} for score in order}
    plot_scores(figure.subplots(), aurocs, "AUROC, known against unknown objects")
    figure.savefig(path, dpi=150)


def title(name: str, settings: Settings) -> str:
    """The set with how far it is."""
    distance = settings.ood.sets[name].distance
    return f"{name} ({distance})" if distance else name


def spearman(follows: Follows, score: str) -> float:
    """Mean over the conditions under which objects were found at every severity; NaN without such."""
    values = [v.of_rows for v in follows.get(score, {}).values() if np.isfinite(v.of_rows)]
    return float(np.mean(values)) if values else float("nan")


def _ms(score: str, seconds: Mapping[str, float]) -> str:
    owner = next((name for name in sorted(seconds, key=len, reverse=True) if score.startswith(name)), None)
    return "" if owner is None else f"{1000 * seconds[owner]:.1f}"


def _cell(row: Mapping[str, Estimate], metric: str) -> str:
    e = row[metric]
    return f"{e:.0f}" if metric.startswith(("aose", "e_bk")) else f"{e:.3f}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

