"""How much better than a calibrated confidence? Raw score, Platt, isotonic and ours, on photographs under conditions.

Each image set is split in half by image several times; all methods are fitted on one half (all conditions) and tested
on the other. Ratios are ours / the best of raw, Platt and isotonic, means over splits and detectors; intervals are 95 %
paired bootstrap over photographs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import SHARED, arguments, finish, show
from rich.console import Console
from rich.progress import track

from reliability_hooks import Monitor, attach
from reliability_hooks.cli.collect import Collector, label_names
from reliability_hooks.config import Settings
from reliability_hooks.evaluation.corruptions import CONDITIONS
from reliability_hooks.evaluation.datasets import read_coco
from reliability_hooks.evaluation.summary import CALIBRATION_METRICS
from reliability_hooks.hosts.base import load
from reliability_hooks.instances import Instances
from reliability_hooks.monitor import labelled
from reliability_hooks.reliability.calibrators import Isotonic, Platt
from reliability_hooks.reliability.model import ReliabilityModel

METHODS = ("raw", "platt", "isotonic", "ours")
METRICS = ("d_ece", "brier", "auroc", "augrc", "excess_augrc")
SCORE_CUT = 0.1


class Rows:
    """All labelled detections of one detector."""

    def __init__(self, found: Sequence[tuple[tuple[object, str], Instances, object]]) -> None:
        pairs = [(instances, truth) for _, instances, truth in found]
        self.instances, self.correct, self.iou, index = labelled(pairs)
        photographs = {name: i for i, name in enumerate(dict.fromkeys(str(job[0].id) for job, _, _ in found))}
        self.image = np.array([photographs[str(job[0].id)] for job, _, _ in found])[index.numpy()]
        self.condition = np.array([job[1] for job, _, _ in found])[index.numpy()]
        self.images = len(photographs)


def collect(
    detector: str, images: Path, annotations: Path, conditions: Sequence[str], limit: int | None, cache: Path
) -> Rows:
    """Run the detector over every image under every condition; kept in `cache`."""
    settings = Settings()
    settings = replace(
        settings,
        detector=replace(settings.detector, predict={"conf": SCORE_CUT}),
        data=replace(settings.data, conditions=list(conditions)),
    )
    model = load(detector)
    with attach(model, Monitor(settings.monitor.signals), strict=True) as handle:
        dataset = read_coco(annotations, images, label_names(handle.host.class_names()))
        dataset = dataset.subset(range(limit)) if limit else dataset
        collector = Collector(handle, settings, cache)
        jobs = [(record, condition) for condition in conditions for record in dataset]
        found = list(collector.collect(jobs, Console(stderr=True)))
    if collector.failed:
        raise SystemExit("\n".join(collector.failed))
    return Rows(found)


def split_predictions(rows: Rows, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    """Fit everything on one half of the images; (rows of the other half, method -> their probabilities, model)."""
    order = np.random.default_rng(seed).permutation(rows.images)
    fit = torch.from_numpy(np.isin(rows.image, order[: rows.images // 2]))
    test = ~fit
    train, held = rows.instances[fit], rows.instances[test]
    ours = ReliabilityModel.fit(
        train.columns, train.scores, train.labels, rows.correct[fit], rows.iou[fit],
        torch.from_numpy(rows.image)[fit], seed=seed,
    )
    predictions = {
        "raw": held.scores,
        "platt": Platt.fit(train.scores, rows.correct[fit]).predict(held.scores),
        "isotonic": Isotonic.fit(train.scores, rows.correct[fit]).predict(held.scores),
        "ours": ours.predict(held.columns, held.scores, held.labels)["reliability"],
    }
    chosen = ours.report["chosen"]
    return test.numpy().nonzero()[0], {k: v.double().clamp(0, 1).numpy() for k, v in predictions.items()}, chosen


def measure(rows: Rows, splits: list, condition: str | None, weight: np.ndarray | None = None) -> np.ndarray:
    """(methods, metrics), means over the splits; `weight` holds multiplicities of photographs."""
    out = np.full((len(splits), len(METHODS), len(METRICS)), np.nan)
    for s, (index, predictions, _) in enumerate(splits):
        keep = slice(None) if condition is None else rows.condition[index] == condition
        y = rows.correct.numpy()[index][keep]
        w = None if weight is None else weight[rows.image[index][keep]]
        for m, method in enumerate(METHODS):
            for k, metric in enumerate(METRICS):
                out[s, m, k] = CALIBRATION_METRICS[metric](predictions[method][keep], y, weight=w)
    return np.nanmean(out, 0)


def ratios(values: np.ndarray) -> dict[str, float]:
    """Ours / the best confidence-only, for the metrics that are costs."""
    best = np.nanmin(values[:3], 0)
    return {name: values[3, METRICS.index(name)] / best[METRICS.index(name)] for name in ("brier", "excess_augrc")}


def main() -> None:
    args = arguments(
        __doc__,
        detector={"nargs": "+", "default": [str(SHARED / "weights" / w) for w in ("yolo11n-seg.pt", "yolov8n.pt")]},
        data={"type": Path, "default": SHARED / "data/coco/val2017", "help": "directory of images"},
        annotations={"type": Path, "default": SHARED / "data/coco/instances_val2017.json"},
        splits={"type": int, "default": 5},
        draws={"type": int, "default": 100, "help": "bootstrap draws"},
        cache={"type": Path, "default": Path(tempfile.gettempdir()) / "reliability_hooks_bench"},
    )
    conditions = ["clean", *CONDITIONS]
    detectors, n_splits, draws, limit = args.detector, args.splits, args.draws, None
    if args.quick:
        detectors, n_splits, draws, limit = detectors[:1], 2, 20, 50
        conditions = ["clean", "blur", "low_light"]
    runs = []
    for detector in detectors:
        rows = collect(detector, args.data, args.annotations, conditions, limit, args.cache)
        splits = [split_predictions(rows, seed) for seed in track(range(n_splits), f"fitting {Path(detector).name}")]
        runs.append((detector, rows, splits))

    table = []
    for condition in [None, *conditions]:
        values = np.mean([measure(rows, splits, condition) for _, rows, splits in runs], 0)
        for m, method in enumerate(METHODS):
            table.append({"condition": condition or "all", "method": method,
                          **{metric: float(values[m, k]) for k, metric in enumerate(METRICS)}})
    show("means over splits and detectors", ["condition", "method", *METRICS],
         [list(row.values()) for row in table])
    for detector, rows, splits in runs:
        line = ", ".join(f"{k} ratio {v:.3f}" for k, v in ratios(measure(rows, splits, None)).items())
        rate = rows.correct.float().mean()
        print(f"{Path(detector).name}: {len(rows.image)} detections, base rate {rate:.3f}, {line}, "
              f"models {[s[2] for s in splits]}")

    figures: dict[str, float] = {}
    rng = np.random.default_rng(0)
    weights = [
        [rng.multinomial(rows.images, np.full(rows.images, 1 / rows.images)) for _, rows, _ in runs]
        for _ in track(range(draws), "bootstrap")
    ]
    for name, condition in (("all", None), ("clean", "clean")):
        def overall(ws: Sequence[np.ndarray | None], condition: str | None = condition) -> dict[str, float]:
            each = [measure(rows, splits, condition, w) for (_, rows, splits), w in zip(runs, ws, strict=True)]
            return ratios(np.mean(each, 0))

        point, drawn = overall([None] * len(runs)), [overall(ws) for ws in weights]
        for metric in point if name == "all" else ("brier",):
            key = f"{metric}_ratio_{name}"
            low, high = np.percentile([d[metric] for d in drawn], [2.5, 97.5])
            figures |= {key: float(point[metric]), f"{key}_low": float(low), f"{key}_high": float(high)}
    figures["dece_all"] = next(r["d_ece"] for r in table if r["condition"] == "all" and r["method"] == "ours")
    protocol = {
        "detectors": [Path(d).name for d in detectors], "images": [rows.images for _, rows, _ in runs],
        "detections": [len(rows.image) for _, rows, _ in runs], "conditions": conditions, "severity": 0.5,
        "score_cut": SCORE_CUT, "matching": "COCO greedy, same class, IoU >= 0.5, crowd ignored", "bins": 10,
        "splits": n_splits, "split": "half of the photographs fit, half test", "bootstrap_draws": draws,
        "models": [[s[2] for s in splits] for _, _, splits in runs], "data": str(args.data),
    }
    finish(args, protocol, table, figures)


if __name__ == "__main__":
    main()
