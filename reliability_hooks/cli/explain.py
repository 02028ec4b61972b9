"""`explain`: what do box, mask and reliability of each object rest on? A panel and arrays for each."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from ..config import Settings
from ..explain.base import METHODS, Explanations
from ..explain.cause import Cause, causes
from ..explain.counterfactual import REMEDIES, Counterfactual, counterfactuals, helpful
from ..explain.doubt import Doubt, doubt
from ..explain.explainer import EVIDENCE, explain_frame, rows_of
from ..explain.hooked import bound
from ..explain.region import established
from ..explain.targets import HOOKED, TARGETS
from ..explain.views import VIEWS
from ..export.coco import write_json
from ..hook import attach
from ..images import ImageError, find_images, read_image
from ..instances import Instances
from ..monitor import Monitor
from ..reasons import Reason
from ..report.html import write_page
from ..report.page import DatasetFigures
from ..report.panel import Signed, draw_panel
from ..signals.condition import words_of
from .common import guarded, new_monitor, open_detector, parser, settings_of, terminal, unique_stem
from .html_report import Gathered, add_flag, facts_of, page_path
from .layers import layers_of, remarks_of

CHOICES = ("all", "least-reliable:N", "most-reliable:N", "0,3,7")
OF_MASKS = ("mask", "boundary")
LONGEST = 640
"""Of the maps, in pixels."""


def main(argv: Sequence[str], prog: str = "reliability-hooks explain") -> int:
    """Parse and run."""
    p = parser(prog, "What box, mask and reliability of each object rest on.",
               ["detector", "host", "device", "conf", "monitor"])
    p.add_argument("source", help="image, folder or glob pattern")
    p.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of settings")
    p.add_argument("--method", default="auto", help=f"auto, {', '.join(METHODS)} (default: %(default)s)")
    p.add_argument("--target", default="class,box,mask",
                   help=f"of {', '.join([*TARGETS, *HOOKED])}, comma-separated (default: %(default)s; mask where there "
                        "are masks, the last two with a monitor)")
    p.add_argument("--budget", type=int,
                   help="pictures shown to the detector (default: 256, 64 for reliability and ood)")
    p.add_argument("--doubt", type=int, default=0, metavar="N",
                   help="pictures for the map of where the doubt lies, such as 64; needs a monitor, and takes N "
                        "detections with their signals (default: none)")
    p.add_argument("--instances", default="least-reliable:5", metavar="WHICH",
                   help=f"{', '.join(CHOICES)} of each image (default: %(default)s)")
    p.add_argument("--out", default="runs/explain", help="directory of the results (default: %(default)s)")
    add_flag(p)
    args = p.parse_intermixed_args(list(argv))

    def run() -> int:
        which(Instances.empty(), args.instances)  # a typo is said before anything runs
        out = Path(args.out)
        return explain_images(settings_of(args, args.opts), args.source, out, args.method, args.target.split(","),
                              args.budget, args.instances, args.doubt, page_path(args.report, out))  # fmt: skip

    return guarded(run, args.debug)


def explain_images(
    settings: Settings, source: str, out: Path, method: str, targets: Sequence[str], budget: int | None, chosen: str,
    doubts: int = 0, report: Path | None = None,
) -> int:
    """Write `out/STEM_K.png` and `out/STEM.npz` for each image, `out/explanations.json` and, where asked, `report`.

    Returns:
        0, or 1 where some images could not be read; the others are explained all the same.
    """
    console, m, files = terminal(), settings.monitor, find_images(source)
    if doubts and not m.path:
        raise ValueError("--doubt needs a fitted monitor: add --monitor DIRECTORY")
    monitor = Monitor.load(m.path) if m.path else new_monitor(settings)
    phrases = words_of(monitor.signals)
    seconds = 0.0
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    taken: set[str] = set()
    with attach(open_detector(settings), monitor, strict=True) as handle, Progress(console=console) as progress:
        names = handle.host.class_names()
        gathered = None if report is None else Gathered(monitor, names)
        for path in progress.track(files, description="explaining"):
            stem = unique_stem(path, taken)
            try:
                image = read_image(path)
            except ImageError as e:
                failed.append(str(e))
                continue
            with handle.frames(*EVIDENCE) as frames:
                found = handle.predict([image], **settings.detector.predict)[0]
                some = which(found, chosen)
                asked = bound(possible(targets, found), handle, found, settings.detector.predict)
                made = explain_frame(
                    frames[0], rows_of(found[some], frames[0].instances), targets=asked, method=method, budget=budget,
                    longest=LONGEST, instances=found[some],
                )  # fmt: skip
            remedies = REMEDIES if monitor.judge else {}
            start = time.perf_counter()
            tried = counterfactuals(handle, image, made.instances, remedies, settings.detector.predict)
            confirmed = {c.remedy for row in tried for c in row if c.again}
            shown = len(remedies) + len(VIEWS) * (len(confirmed) + bool(confirmed))
            seconds = (time.perf_counter() - start) / max(shown, 1)
            places = doubt(handle, image, made.instances, tried=tried, budget=doubts,
                           options=settings.detector.predict) if doubts else None  # fmt: skip
            reasons, named = monitor.shares(made.instances), causes(monitor.judge, phrases, found)
            _save_arrays(out / f"{stem}.npz", made, some, places)
            for k, index in enumerate(some.tolist()):
                rows.append(_draw(out / f"{stem}_{index}.png", image, made, k, names, reasons[k], tried[k], path.name,
                                  named[index], places))  # fmt: skip
            if gathered is not None:
                at, size = list(enumerate(some.tolist())), (image.shape[0], image.shape[1])
                maps = {i: layers_of(made, k, size, _signed(places, k)) for k, i in at}
                said = {i: remarks_of(tried[k], named[i], places.words[k] if places else "") for k, i in at}
                gathered.add(path.name, image, found, maps=maps, remarks=said)
    write_json(out / "explanations.json", rows)
    if report is not None and gathered is not None:
        facts = facts_of(settings, source, gathered.seen, len(gathered.reliability))
        write_page(report, gathered.page("What the detections rest on", facts, DatasetFigures(), failed))
        console.print(f"written: {report}", highlight=False)
    console.print(f"written: {out}/ ({len(rows)} panels, arrays as .npz, explanations.json)", highlight=False)
    if rows and monitor.judge and not doubts:
        console.print("--doubt 64 would show where the doubt lies, in about "
                      f"{64 * seconds:.0f} s for each image", highlight=False)
    for line in failed:
        console.print(f"failed: {line}", style="red", markup=False)
    return 1 if failed else 0


def which(instances: Instances, chosen: str) -> Tensor:
    """(n,) rows that a choice of `CHOICES` names.

    Raises:
        ValueError: It is none of them.
    """
    n = len(instances)
    if chosen == "all":
        return torch.arange(n)
    kind, _, count = chosen.partition(":")
    if kind in ("least-reliable", "most-reliable") and count.isdecimal():
        value = instances.columns.get("reliability", torch.full((n,), torch.nan)).cpu()
        value = torch.where(value.isnan(), instances.scores.cpu() - 1, value)  # unknown counts as least reliable
        return value.argsort(descending=kind == "most-reliable", stable=True)[: int(count)]
    if all(part.isdecimal() for part in chosen.split(",")):
        rows = torch.tensor([int(part) for part in chosen.split(",")])
        return rows[rows < n]
    raise ValueError(f"--instances {chosen!r} is none of {', '.join(CHOICES)}")


def possible(targets: Sequence[str], found: Instances) -> list[str]:
    """Those that these instances can have: without masks there is no explanation of one.

    Raises:
        ValueError: None is left.
    """
    kept = [t for t in targets if found.masks is not None or t not in OF_MASKS]
    if not kept:
        raise ValueError(f"this detector gives no masks to explain {', '.join(targets)} of; ask for class or box")
    return kept


def _draw(
    path: Path, image: np.ndarray, made: Explanations, k: int, names: Any, reasons: Sequence[Reason],
    tried: Sequence[Counterfactual], file_name: str, named: Sequence[Cause], places: Doubt | None,
) -> dict[str, Any]:
    found = made.instances[[k]].cpu()
    name = names.get(int(found.labels[0]), str(int(found.labels[0])))
    value, score = float(found.reliability[0]), float(found.scores[0])
    said = "reliability unknown: no monitor" if value != value else f"reliability {value:.2f}"
    mask = None if found.masks is None else found.masks_at((image.shape[0], image.shape[1]))[0].numpy()
    maps = {name: values[k].cpu().numpy() for name, values in made.maps.items()}
    shares = [(r.phrase, r.change) for r in reasons if abs(r.change) >= 0.01]
    wrong = "".join(f"; {c.phrase}" for c in named[:1])
    better = "".join(f"; {c.remedy}: {c.after:.2f}" for c in helpful(tried)[:1])
    title = f"{name} {score:.2f}, {said}{wrong}{better}  [{made.method}]"
    draw_panel(path, image, found.boxes[0].tolist(), mask, maps,
               title if places is None else f"{title}\n{places.words[k]}", shares, _signed(places, k))  # fmt: skip
    return {
        "file_name": file_name, "panel": path.name, "category_name": name, "bbox_xyxy": found.boxes[0].tolist(),
        "score": score, "reliability": value, "method": made.method, "passes": made.passes, "seconds": made.seconds,
        "notes": list(made.notes), "shares": {r.column: [r.phrase, r.change] for r in reasons},
        "conditions": {c.name: [c.phrase, c.excess] for c in named},
        "counterfactuals": [{"remedy": c.remedy, "found": c.found, "reliability": c.after, "helps": c.helps()}
                            for c in tried],
        **({} if places is None else {"doubt": places.words[k], "claims": [
            {"kind": c.kind, "how": c.how, "where": c.where, "before": c.before, "after": c.after, "holds": c.holds}
            for c in places.claims[k]]}),
    }  # fmt: skip


def _signed(places: Doubt | None, k: int) -> dict[str, Signed]:
    if places is None:
        return {}
    said = {"restored": f"doubt: {places.remedies[k]} there", "removed": "doubt: hidden there"}
    return {
        said[kind]: Signed(values[k].numpy(), established(values[k], places.errors[kind][k]).numpy(),
                           places.windows[k].tolist())
        for kind, values in places.maps.items()
    }  # fmt: skip


def _save_arrays(path: Path, made: Explanations, rows: Tensor, places: Doubt | None) -> None:
    """`map/TARGET` and `error/TARGET` (n, h, w) float16, `rows` (n,), `boxes` (n, 4), and what they cost as JSON.

    With doubt: `doubt/KIND` and `doubt_error/KIND` (n, L, L) on `doubt/windows` (n, 4) xyxy.
    """
    arrays: dict[str, Any] = {f"map/{t}": v.half().cpu().numpy() for t, v in made.maps.items()}
    arrays |= {f"error/{t}": v.half().cpu().numpy() for t, v in made.errors.items()}
    if places is not None:
        arrays |= {f"doubt/{kind}": v.numpy() for kind, v in places.maps.items()}
        arrays |= {f"doubt_error/{kind}": v.numpy() for kind, v in places.errors.items()}
        arrays["doubt/windows"] = places.windows.numpy()
    told = json.dumps({"method": made.method, "passes": made.passes, "seconds": made.seconds, "notes": made.notes})
    np.savez_compressed(path, rows=rows.numpy(), boxes=made.instances.boxes.cpu().numpy(), info=told, **arrays)
