"""How fast, and in how much memory, is COCO greedy matching? Ours against pycocotools and, where installed, hotcoco.

Synthetic detections: 80 classes, 8 objects in an image, 1 % crowds, duplicates, shifted boxes and wrong classes. All do
the same work: one IoU threshold, all areas, no limit on detections. The clock covers matching only: each has its input
in its own form before it starts (arrays; for the others a COCO index, the building of which is shown beside). Each runs
in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish, machine, show

from reliability_hooks.evaluation.calibration import brier, d_ece, nll
from reliability_hooks.evaluation.classwise import class_wise_d_ece, la_ace, la_ece
from reliability_hooks.evaluation.lrp import events, lrp_optimal
from reliability_hooks.evaluation.matching import match
from reliability_hooks.evaluation.selective import augrc, aupr, aurc, auroc, fpr_at_tpr

IOU_THRESHOLD, CLASSES = 0.5, 80
Arrays = dict[str, np.ndarray]
Result = dict[str, Any]


def synthetic(detections: int, images: int, seed: int = 0) -> Arrays:
    """Detections and ground truth, as `match` takes them."""
    rng = np.random.default_rng(seed)
    g = 8 * images
    gt_image, corner = rng.integers(images, size=g), rng.random((g, 2)) * 500
    side = np.exp(rng.normal(4, 0.8, (g, 2))).clip(4, 300)
    gt_boxes, gt_labels = np.c_[corner, corner + side], rng.integers(CLASSES, size=g)
    of = rng.integers(g, size=detections)
    boxes = gt_boxes[of] + rng.normal(0, 0.15, (detections, 4)) * np.tile(side[of], 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    wrong = rng.random(detections) < 0.2
    return {
        "boxes": boxes, "scores": rng.random(detections),
        "labels": np.where(wrong, rng.integers(CLASSES, size=detections), gt_labels[of]), "image_ids": gt_image[of],
        "gt_boxes": gt_boxes, "gt_labels": gt_labels, "gt_image_ids": gt_image, "gt_crowd": rng.random(g) < 0.01,
    }


def ours(d: Arrays) -> Callable[[], tuple[Callable[[], Any], Callable[[Any], int]]]:
    """Prepare -> (what is timed, how to count its true positives)."""
    return lambda: (lambda: match(**d, iou_threshold=IOU_THRESHOLD), lambda found: int(found.tp.sum()))


def coco(d: Arrays, library: str) -> Callable[[], tuple[Callable[[], Any], Callable[[Any], int]]]:
    """The same of pycocotools, or of hotcoco, which has its interface."""
    if library == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    xywh, gt_xywh = (np.c_[b[:, :2], b[:, 2:] - b[:, :2]] for b in (d["boxes"], d["gt_boxes"]))
    columns = zip(gt_xywh.tolist(), d["gt_image_ids"].tolist(), d["gt_labels"].tolist(), d["gt_crowd"].tolist(),
                  strict=True)
    truth = {
        "images": [{"id": i, "width": 1000, "height": 1000} for i in range(int(d["gt_image_ids"].max()) + 1)],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(CLASSES)],
        "annotations": [{"id": k + 1, "image_id": i, "category_id": c + 1, "bbox": b, "area": b[2] * b[3],
                         "iscrowd": int(crowd)} for k, (b, i, c, crowd) in enumerate(columns)],
    }
    found = np.c_[d["image_ids"], xywh, d["scores"], d["labels"] + 1]

    def prepare() -> tuple[Callable[[], Any], Callable[[Any], int]]:
        gt = COCO(truth) if library == "hotcoco" else COCO()
        if library != "hotcoco":
            gt.dataset = truth
            gt.createIndex()
        run = COCOeval(gt, gt.loadRes(found), "bbox")
        run.params.iouThrs, run.params.maxDets = [IOU_THRESHOLD], [100_000]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        return run.evaluate, lambda _: sum(_true_positives(e) for e in run.evalImgs if e)

    return prepare


def _true_positives(image: dict[str, Any]) -> int:
    return int(((np.asarray(image["dtMatches"][0]) > 0) & ~np.asarray(image["dtIgnore"][0], bool)).sum())


def contest(name: str, detections: int, images: int) -> Result:
    """One run in this process: seconds of preparing and matching, megabytes that matching took at most."""
    d = synthetic(detections, images)
    with contextlib.redirect_stdout(io.StringIO()):
        prepare = ours(d) if name == "ours" else coco(d, name)
        start = time.perf_counter()
        run, count = prepare()
        prepared = time.perf_counter()
        before = _reset_peak_mb()
        began = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - began
        peak = _memory_mb("VmHWM")
    return {"library": name, "prepare_seconds": prepared - start, "seconds": seconds, "peak_mb": peak - before,
            "process_mb": peak, "true_positives": count(found)}


def metrics(detections: int, images: int) -> list[Result]:
    """Seconds of each metric on the matched detections, and megabytes that all took at most."""
    d = synthetic(detections, images)
    found = match(**d, iou_threshold=IOU_THRESHOLD)
    keep = ~found.ignore
    p, y, iou, label = d["scores"][keep], found.tp[keep], found.iou[keep], d["labels"][keep]
    e = events(found, d["scores"], *(d[k] for k in ("labels", "image_ids", "gt_labels", "gt_image_ids", "gt_crowd")))
    calls: dict[str, Callable[[], Any]] = {
        **{f.__name__: partial(f, p, y) for f in (d_ece, brier, nll, auroc, aupr, fpr_at_tpr, aurc, augrc)},
        "d_ece (equal mass)": partial(d_ece, p, y, binning="mass"),
        "class_wise_d_ece": partial(class_wise_d_ece, p, y, label),
        "la_ece": partial(la_ece, p, iou, label),
        "la_ace": partial(la_ace, p, iou, label),
        "lrp_optimal": partial(lrp_optimal, e.scores, e.iou, e.outcome, e.labels),
    }
    aurc([0.5], [1])  # imports scipy
    before, out = _reset_peak_mb(), []
    for name, call in calls.items():
        start = time.perf_counter()
        value = float(call())
        out.append({"metric": name, "seconds": time.perf_counter() - start, "value": value,
                    "peak_mb_so_far": _memory_mb("VmHWM") - before})
    return out


def _memory_mb(field: str) -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # elsewhere: the peak since the process began


def _reset_peak_mb() -> float:
    """Makes VmHWM start anew and returns what is in use now, memory that was freed given back to the system first."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory_mb("VmRSS")


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a call in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def main() -> None:
    args = arguments(
        __doc__,
        detections={"type": int, "default": 1_000_000},
        images={"type": int, "default": 5_000},
        rounds={"type": int, "default": 3, "help": "runs of ours and hotcoco; pycocotools runs once above 200,000"},
    )
    n, images = (50_000, 250) if args.quick else (args.detections, args.images)
    libraries = ["ours", "pycocotools", *(["hotcoco"] if importlib.util.find_spec("hotcoco") else [])]
    runs: dict[str, list[Result]] = {name: [] for name in libraries}
    for k in range(args.rounds):
        for name in libraries:
            if name != "pycocotools" or k == 0 or n <= 200_000:
                runs[name].append(apart(contest, name, n, images))
    table = [
        {"library": name, "runs": len(some), "true_positives": some[0]["true_positives"],
         **{key: statistics.median(r[key] for r in some) for key in
            ("prepare_seconds", "seconds", "peak_mb", "process_mb")}}
        for name, some in runs.items()
    ]
    counts = {row["true_positives"] for row in table}
    if len(counts) > 1:
        raise SystemExit(f"the libraries disagree on the true positives: {table}")
    show(f"matching {n:,} detections in {images:,} images", list(table[0]), [list(row.values()) for row in table])
    measured = apart(metrics, n, images)
    show("metrics", list(measured[0]), [list(row.values()) for row in measured])
    seconds = {row["library"]: row["seconds"] for row in table}
    figures = {f"matching_time_ratio_{name}": seconds["ours"] / seconds[name] for name in libraries[1:]}
    figures |= {
        "matching_peak_mb": max(r["peak_mb"] for r in runs["ours"]),
        "matching_seconds": seconds["ours"],
        "metrics_seconds": sum(row["seconds"] for row in measured),
    }
    protocol = {
        "detections": n, "images": images, "ground_truths": 8 * images, "classes": CLASSES,
        "iou_threshold": IOU_THRESHOLD, "areas": "all", "max_detections": "no limit", "rounds": args.rounds,
        **machine(),
        "seconds": "median of matching alone: match(); COCOeval.evaluate()",
        "peak_mb": "most memory of the process while matching, less that before it",
    }
    finish(args, protocol, [*table, *measured], figures)


if __name__ == "__main__":
    main()
