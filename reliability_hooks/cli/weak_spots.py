"""`weak-spots`: what to mend next: failures and explanations of a whole data set, ranked, with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from .. import __version__
from ..config import Settings
from ..evaluation.causes import CAUSES
from ..evaluation.checks import Floats
from ..evaluation.object_frame import to_image
from ..evaluation.shortcuts import Suspect, company, suspects
from ..evaluation.weak_spot_groups import (
    Names,
    condition_groups,
    context_groups,
    failure_groups,
    outline_groups,
    shortcut_groups,
    size_bins,
    total_groups,
)
from ..evaluation.weak_spots import SURE, Judged, Spot, ranked
from ..explain.base import METHODS
from ..explain.base import create as create_method
from ..explain.explainer import Watched
from ..hook import attach
from ..images import read_image
from ..monitor import Monitor
from ..signals.condition import words_of
from .collect import labelled_images
from .common import guarded, new_monitor, open_detector, parser, settings_of, terminal
from .weak_spot_cache import Evidence, Kept, joined, monitor_digest
from .weak_spot_report import draw_sheets, show, write
from .weak_spot_rows import FLOOR, LONGEST, TARGETS, checked

FILLS = ("inpaint", "grey")
CHECKED = 24
"""Images on which the place of a suspect is filled."""


def main(argv: Sequence[str], prog: str = "reliability-hooks weak-spots") -> int:
    """Parse and run."""
    p = parser(prog, "What goes wrong over a labelled data set, and why: a ranked table with pictures.",
               ["detector", "host", "device", "conf", "monitor", "images", "annotations"])
    p.add_argument("--model", dest="detector", metavar="DETECTOR", help="the same as --detector")
    p.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of settings")
    p.add_argument("--method", default="auto",
                   help=f"auto, {', '.join(METHODS)}; none for failures and outlines alone (default: %(default)s)")
    p.add_argument("--budget", type=int, default=256,
                   help="pictures shown to the detector by a perturbation method, of each image (default: 256)")
    p.add_argument("--limit", type=int, help="use this many images only")
    p.add_argument("--top", type=int, default=12,
                   help="spots that get a sheet of examples, beside the shortcuts that were checked (default: 12)")
    p.add_argument("--out", metavar="DIR", default="runs/weak_spots", help="directory of the results, and of a cache "
                   "with which an interrupted run goes on (default: %(default)s)")
    args = p.parse_intermixed_args(list(argv))

    def run() -> int:
        if args.method not in ("auto", "none"):
            create_method(args.method)  # a typo is said before anything runs
        for name, least in (("budget", 1), ("limit", 1), ("top", 0)):
            if getattr(args, name) is not None and getattr(args, name) < least:
                raise ValueError(f"--{name} must be at least {least}, not {getattr(args, name)}")
        more = [] if args.limit is None else ["data.limit", str(args.limit)]
        return weak_spots(settings_of(args, [*args.opts, *more]), Path(args.out), args.method, args.budget, args.top)

    return guarded(run, args.debug)


def weak_spots(settings: Settings, out: Path, method: str, budget: int, top: int) -> int:
    """Write `weak_spots.json`, `weak_spots.csv` and `spot_01.png`... to `out`.

    Returns:
        0, or 1 where some images could not be read; the others are judged all the same.
    """
    console, m = terminal(), settings.monitor
    monitor = Monitor.load(m.path) if m.path else new_monitor(settings)
    options = settings.detector.predict
    with attach(open_detector(settings), monitor, strict=True) as handle:
        dataset, names = labelled_images(handle, settings, console), handle.host.class_names()
        phrases = {column: high for column, (_, high) in words_of(monitor.signals).items()}
        same = {
            "version": __version__, "detector": handle.host.fingerprint(), "predict": options, "method": method,
            "budget": budget, "monitor": monitor_digest(m.path), "signals": [s.name for s in monitor.signals],
            "iou_threshold": m.iou_threshold, "targets": TARGETS, "longest": LONGEST, "floor": FLOOR,
        }  # fmt: skip
        evidence = Evidence(handle, out / "cache", same, {
            "method": method, "budget": budget, "iou_threshold": m.iou_threshold, "phrases": phrases,
            "options": options,
        })  # fmt: skip
        kept = list(evidence.of(dataset.images, console))
        spots, judged, notes = analyse(handle, kept, names, options, console)
    said = {
        "version": __version__, "settings": asdict(settings), "method": method, "fills": FILLS, "images": len(kept),
        "detections": int(judged.kept.sum()), "right": int(judged.caused("right").sum()),
        "confident": int((judged.kept & (judged.scores >= SURE)).sum()), "notes": notes, "failed": evidence.failed,
        "causes": {c: int(judged.caused(c).sum()) for c in CAUSES},
    }  # fmt: skip
    shown = [k for k, s in enumerate(spots) if k < top or s.told.get("checked")]
    sheets = draw_sheets({k: spots[k] for k in shown}, kept, judged, names, out)
    totals = ranked(total_groups(judged), judged)
    write(out, said, spots, totals, sheets, kept, judged, names)
    show(console, spots, totals, said, out)
    return 1 if evidence.failed else 0


def analyse(
    handle: Watched, kept: Kept, names: Names, options: Mapping[str, Any], console: Console
) -> tuple[list[Spot], Judged, list[str]]:
    """All spots, the best established first; and what an engineer must know about the figures."""
    judged, frames = joined(kept)
    bins, some = size_bins(judged), judged.kept
    found = suspects(frames["frame"][some], frames["cover"][some], judged.labels[some], judged.image[some], bins[some])
    checks = check(handle, [s for s in found if s.p <= 0.05], kept, judged, options, console)
    groups = [
        *failure_groups(judged, names), *outline_groups(judged, names), *condition_groups(judged, names),
        *(context_groups(judged, names) if np.isfinite(judged.outside["class"]).any() else []),
        *shortcut_groups(found, checks, FILLS, {s.label: around(s, judged) for s in found}, judged, names),
    ]  # fmt: skip
    return ranked(groups, judged), judged, remarks(kept, judged, frames["frame"], names)


def remarks(kept: Kept, judged: Judged, frames: Floats, names: Names) -> list[str]:
    """What the figures do not say of themselves."""
    notes = []
    if bare := sum(not len(r.truth) for r, _ in kept):
        notes.append(f"{bare} of {len(kept)} images have no annotated object: every detection there counts as wrong")
    if not len(judged.scores):
        notes.append("nothing was detected: lower --conf")
    elif not np.isfinite(judged.outside["class"]).any():
        notes.append("no explanations: neither context nor shortcuts were looked for")
    elif float(np.nanmax(beyond_boxes(frames))) < 0.01:
        notes.append("no saliency beyond any box: gradients at RoI features cannot show context, --method drise can")
    untraced = int((np.isnan(judged.outside["class"]) & judged.kept).sum())
    if 0 < untraced < judged.kept.sum():
        notes.append(f"{untraced} of {int(judged.kept.sum())} detections have no explanation")
    if not np.isfinite(judged.boundary_iou).any():
        notes.append("no masks on both sides: boxes in place of outlines")
    if crowds := int(judged.caused("ignored").sum()):
        notes.append(f"{crowds} detections on crowd regions are left out")
    absent = set(names) - set(judged.gt_labels.tolist())
    if absent:
        notes.append(f"{len(absent)} of {len(names)} classes are not annotated in these images")
    return notes


def beyond_boxes(frame: Floats) -> Floats:
    """(N,) saliency in the cells of (N, c, c) frames that lie outside of the box, the middle third."""
    third, outer = frame.shape[1] // 3, frame.copy()
    outer[:, third:-third, third:-third] = 0
    out: Floats = outer.sum((1, 2))
    return out


def check(
    handle: Watched, found: Sequence[Suspect], kept: Kept, judged: Judged, options: Mapping[str, Any], console: Console
) -> dict[int, dict[int, Floats]]:
    """Label -> row -> `shortcuts.drops`: the place of each suspect filled on up to `CHECKED` images, chosen by lot."""
    from rich.progress import track

    rng, todo = np.random.default_rng(0), dict[int, list[tuple[Suspect, np.ndarray, int]]]()
    for s in found:
        rows = rng.permutation(np.flatnonzero(judged.kept & (judged.labels == s.label)))
        _, first = np.unique(judged.image[rows], return_index=True)
        for row in rows[np.sort(first)[:CHECKED]].tolist():
            todo.setdefault(int(judged.image[row]), []).append((s, judged.boxes[row], row))
    out: dict[int, dict[int, Floats]] = {s.label: {} for s in found}
    for image, wanted in track(sorted(todo.items()), "filling the places of suspects", console=console,
                               disable=not todo):  # fmt: skip
        values = checked(handle, read_image(kept[image][0].path), wanted, FILLS, options)
        for s, _, row in wanted:
            if row in values:
                out[s.label][row] = values[row]
    return out


def around(s: Suspect, judged: Judged) -> dict[str, Mapping[int, float]]:
    """What is annotated in a suspect's place, and in its mirror image through the middle of the box."""
    import torch

    rows = np.flatnonzero(judged.kept & (judged.labels == s.label))
    x1, y1, x2, y2 = s.rect
    places = {"there": s.rect, "mirrored": (1 - x2, 1 - y2, 1 - x1, 1 - y1)}
    return {
        side: company(to_image(rect, torch.from_numpy(judged.boxes[rows])).numpy(), judged.image[rows],
                      judged.partner[rows], judged.gt_boxes, judged.gt_labels, judged.gt_image)
        for side, rect in places.items()
    }  # fmt: skip
