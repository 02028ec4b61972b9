"""`evaluate-ood`: which out-of-distribution score works on this detector? One table for each set of unknown objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .. import __version__
from ..config import Settings
from ..evaluation.bootstrap import Estimate
from ..evaluation.mean_ap import mean_average_precision
from ..evaluation.ood import ood_summary
from ..evaluation.open_set import open_set_summary
from ..evaluation.open_set_rows import open_set_rows
from ..evaluation.severity import severity_correlation
from ..export.coco import write_json
from ..hook import attach
from ..monitor import Monitor
from ..report.html import write_page
from .common import guarded, new_monitor, open_detector, parser, settings_of, terminal
from .html_report import add_flag, page_path
from .ood_report import draw, print_scores, print_tables, write_tables
from .ood_rows import Seen, collect, costs, degraded, threshold_at
from .pages import ood_page


def main(argv: Sequence[str], prog: str = "reliability-hooks evaluate-ood") -> int:
    """Parse and run."""
    p = parser(prog, "Which out-of-distribution score tells unknown objects from known ones on this detector?",
               ["detector", "host", "device", "conf", "batch", "monitor", "images", "annotations"])
    p.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of settings")
    p.add_argument("--out", metavar="DIR", default="runs/ood", help="directory of the results")
    p.add_argument("--list", action="store_true", help="show which scores there are, with paper and needs, and end")
    add_flag(p)
    args = p.parse_intermixed_args(list(argv))
    if args.list:
        print_scores(terminal())
        return 0

    def run() -> int:
        out = Path(args.out)
        return evaluate_ood(settings_of(args, args.opts), out, page_path(args.report, out))

    return guarded(run, args.debug)


def evaluate_ood(settings: Settings, out: Path, report: Path | None = None) -> int:
    """Write `out/ood.json`, `ood.csv`, `ood.md` and `ood.png`; detections are kept in `out/cache` and serve again.

    Args:
        settings: Detector, scores and data.
        out: Directory.
        report: Where an HTML page of it all goes.

    Returns:
        0, or 1 where some images could not be read.
    """
    if not settings.ood.sets:
        raise ValueError("which unknown objects? give ood.sets in a config; see configs/ood/")
    console = terminal()
    fitted = settings.monitor.path
    monitor = Monitor.load(fitted) if fitted else new_monitor(settings)
    if monitor.learns and settings.data.bank is None and not fitted:
        learning = ", ".join(s.name for s in monitor.signals if s.learns)
        raise ValueError(f"{learning} learn from images without unknown objects: give data.bank, a folder of them")
    out.mkdir(parents=True, exist_ok=True)
    with attach(open_detector(settings), monitor, strict=True) as handle:
        known, unknown, failed = collect(handle, settings, out / "cache", console)
        severities = degraded(handle, settings, out / "cache", console)
        seconds = costs(handle, settings)
    scores = known.score_names()
    tables = {name: table(known, seen, scores, settings) for name, seen in unknown.items()}
    mean_ap = mean_average_precision(known.boxes, known.scores, known.labels, known.image, *known.truth)
    follows = {
        score: {name: severity_correlation(v[score], v["severity"], v["item"]) for name, v in severities.items()}
        for score in scores
    }
    write_json(out / "ood.json", {
        "version": __version__, "settings": asdict(settings), "failed": failed, "protocol": protocol(settings, known),
        "map": asdict(mean_ap), "seconds": seconds,
        "sets": {n: {s: {m: asdict(e) for m, e in row.items()} for s, row in t.items()} for n, t in tables.items()},
        "intensity": {s: {c: {"spearman_of_means": v.of_means, "spearman_of_rows": v.of_rows, "items": v.items}
                          for c, v in row.items()} for s, row in follows.items()},
    })
    write_tables(out, tables, follows, seconds, settings)
    draw(out / "ood.png", tables)
    print_tables(console, tables, follows, seconds, settings)
    console.print(protocol(settings, known), style="dim", highlight=False)
    console.print(f"known objects: mAP {mean_ap.ap:.3f}, AP50 {mean_ap.ap50:.3f}", highlight=False)
    if report is not None:
        write_page(report, ood_page(settings, known, unknown, tables, follows, protocol(settings, known), failed))
        console.print(f"written: {report}", highlight=False)
    console.print(f"written: {out}/ (ood.json, ood.csv, ood.md, ood.png)", highlight=False)
    for failure in failed:
        console.print(f"failed: {failure}", style="red")
    return 1 if failed else 0


def table(known: Seen, unknown: Seen, scores: Sequence[str], settings: Settings) -> dict[str, dict[str, Estimate]]:
    """Score -> metric -> estimate, for one set of unknown objects."""
    out = {}
    draws, seed = settings.ood.draws, settings.seed
    right, wrong = known.right(), unknown.on_unknown()
    offset = known.images  # images of the second set are numbered after those of the first
    for score in scores:
        a, b = known.columns[score], unknown.columns[score]
        both = np.concatenate([a[right], b[wrong]])
        is_ood = np.repeat([0, 1], [right.sum(), wrong.sum()])
        image = np.concatenate([known.image[right], unknown.image[wrong] + offset])
        all_images = np.arange(offset + unknown.images)
        strata = (all_images >= offset).astype(int)
        out[score] = ood_summary(both, is_ood, image, all_images=all_images, strata=strata, draws=draws, seed=seed)
        threshold = threshold_at(a[right], known.image[right], settings.ood.false_alarm)
        joined = known.joined(unknown)
        rows = open_set_rows(
            joined.boxes, joined.scores, joined.labels, joined.image,
            np.nan_to_num(joined.columns[score], nan=-np.inf), *joined.truth,
        )
        said = {"threshold": threshold, "threshold_is": f"{1 - settings.ood.false_alarm:g} quantile of known objects"}
        out[score] |= open_set_summary(rows, threshold, all_images=all_images, strata=strata, protocol=said,
                                       draws=draws, seed=seed)
    return out


def protocol(settings: Settings, known: Seen) -> str:
    """What the figures mean, in a sentence."""
    return (
        f"known: detections on {known.images} images that are right (same class, IoU >= 0.5); unknown: detections on "
        "an annotated unknown object (IoU >= 0.5), or all where a set is exhaustive; detector options "
        f"{json.dumps(settings.detector.predict)}; higher score = more out-of-distribution; 95 % intervals by "
        "bootstrap over images, known and unknown drawn apart"
    )
