"""Does a certificate keep its promise, and what does it accept? Ours against thresholds on the confidence.

Photographs under all conditions are split three ways: a third fits the reliability (and the Platt map of the
confidence, and the limits per image), the rest is halved at random again and again: one half certifies, the other
checks. The unit of the certificate is the photograph with all its versions. Four rules, on the same halves:

- `ours`: Guarantee on the reliability;
- `confidence`: the same Guarantee on the Platt-scaled confidence, which is a threshold on the raw confidence;
- `ours, plug-in` and `confidence, plug-in`: the lowest threshold whose *observed* precision on the certifying half
  reaches the target, with no certificate.

A split violates when its accepted detections on the checking half are right less often than promised. That half is
itself a sample, so the rate over-counts broken promises. Coverage: share of all detections that is accepted, 0 without
certificate. The figures are those of `--target`; the table shows further targets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import SHARED, arguments, finish, show
from rich.progress import track
from rows import Rows, collect
from torch import Tensor

from reliability_hooks.evaluation.corruptions import CONDITIONS
from reliability_hooks.reliability.calibrators import Platt
from reliability_hooks.reliability.certify import Precision
from reliability_hooks.reliability.certify import Rows as Detections
from reliability_hooks.reliability.guarantee import Guarantee
from reliability_hooks.reliability.model import ReliabilityModel

RULES = ("ours", "confidence", "ours, plug-in", "confidence, plug-in")


@dataclass(frozen=True)
class Fitted:
    """What the first third gives: photographs left, each rule's score of every row, and its limit per target."""

    left: np.ndarray
    scores: dict[str, Tensor]
    limits: dict[tuple[float, str], int]


def fit_third(rows: Rows, frame: Tensor, targets: Sequence[float], delta: float, seed: int) -> Fitted:
    """Fit on a third of the photographs; limits are learnt on out-of-fold scores of the same."""
    order = np.random.default_rng(seed).permutation(rows.images)
    chosen, left = np.split(order, [rows.images // 3])
    fit = np.isin(rows.image, chosen)
    train, every = rows[fit], rows.instances
    image = torch.from_numpy(train.image)
    model = ReliabilityModel.fit(
        train.instances.columns, train.instances.scores, train.instances.labels, train.correct, train.iou, image,
        seed=seed,
    )
    platt = Platt.fit(train.instances.scores, train.correct)
    scores = {
        "ours": model.predict(every.columns, every.scores, every.labels)["reliability"].double(),
        "confidence": platt.predict(every.scores),
    }
    assert model.cross_fitted is not None
    own = {"ours": model.cross_fitted.double(), "confidence": platt.predict(train.instances.scores)}
    photo, inner = (torch.unique(v, return_inverse=True)[1] for v in (image, frame[torch.from_numpy(fit)]))
    limits = {}
    for target in targets:
        test = Precision(target, delta, "image", None, 0.5, None)
        for name, score in own.items():
            detections = Detections(score, train.correct, photo, inner, torch.zeros_like(photo))
            limits[target, name] = test.learn_limit(detections, len(left) / 2 / len(chosen), delta)
    return Fitted(left, scores, limits)


def plug_in(score: Tensor, correct: Tensor, target: float) -> float:
    """The lowest threshold from which on the observed precision reaches the target."""
    order = score.argsort(descending=True)
    good = (correct[order].double().cumsum(0) / torch.arange(1, len(order) + 1) >= target).nonzero()[:, 0]
    return float(score[order][good[-1]]) if len(good) else float("inf")


def main() -> None:
    args = arguments(
        __doc__,
        detector={"nargs": "+", "default": [str(SHARED / "weights" / w) for w in ("yolo11n-seg.pt", "yolov8n.pt")]},
        data={"type": Path, "default": SHARED / "data/coco/val2017", "help": "directory of images"},
        annotations={"type": Path, "default": SHARED / "data/coco/instances_val2017.json"},
        splits={"type": int, "default": 200, "help": "random halves, shared among the detectors and fits"},
        fits={"type": int, "default": 2, "help": "models (thirds) per detector"},
        target={"type": float, "default": 0.7, "help": "precision promised in the figures"},
        delta={"type": float, "default": 0.1},
        cache={"type": Path, "default": Path(tempfile.gettempdir()) / "reliability_hooks_bench"},
    )
    conditions, detectors, fits, limit = ["clean", *CONDITIONS], args.detector, args.fits, None
    if args.quick:
        conditions, detectors, fits, limit = ["clean", "low_light"], detectors[:1], 1, 60
    torch.set_num_threads(1)  # thousands of small fits
    targets = sorted({args.target, 0.6, 0.7, 0.8})
    halves = max(1, (min(args.splits, 100) if args.quick else args.splits) // (len(detectors) * fits))
    found: dict[tuple[float, str], list[tuple[bool, bool, float]]] = {(t, r): [] for t in targets for r in RULES}
    sizes = []
    for detector in detectors:
        rows = collect(detector, args.data, args.annotations, conditions, limit, args.cache)
        sizes.append((rows.images, len(rows.image)))
        image, correct = torch.from_numpy(rows.image), rows.correct
        frame = image * len(conditions) + torch.from_numpy(np.unique(rows.condition, return_inverse=True)[1])
        for seed in range(fits):
            third = fit_third(rows, frame, targets, args.delta, seed)
            for half in track(range(halves), f"{Path(detector).stem}, model {seed}"):
                order = np.random.default_rng(half).permutation(third.left)
                certify, check = (
                    torch.from_numpy(np.isin(rows.image, part)) for part in np.array_split(order, 2)
                )
                for target in targets:
                    for name, score in third.scores.items():
                        fit = Guarantee.fit(
                            score[certify], correct[certify], image[certify], frame=frame[certify], target=target,
                            delta=args.delta, max_per_image=third.limits[target, name], max_reject_precision=None,
                            seed=half,
                        )
                        threshold = plug_in(score[certify], correct[certify], target)
                        for rule, accepted in (
                            (name, fit.apply(score[check], image=frame[check]) == 1),
                            (f"{name}, plug-in", score[check] >= threshold),
                        ):
                            some = bool(accepted.any())
                            below = some and float(correct[check][accepted].double().mean()) < target
                            found[target, rule].append((below, some, float(accepted.double().mean())))

    table = [
        {
            "target": target, "rule": rule, "violation_rate": float(np.mean([v for v, _, _ in values])),
            "certified_rate": float(np.mean([s for _, s, _ in values])),
            "coverage": float(np.mean([c for _, _, c in values])), "splits": len(values),
        }
        for (target, rule), values in found.items()
    ]
    show(f"delta = {args.delta}", list(table[0]), [list(row.values()) for row in table])
    row = {r["rule"]: r for r in table if r["target"] == args.target}
    figures = {
        "precision_violation_rate": row["ours"]["violation_rate"],
        "delta": args.delta,
        "coverage_gain_over_plain_threshold": row["ours"]["coverage"] - row["confidence"]["coverage"],
        "plug_in_violation_rate": row["ours, plug-in"]["violation_rate"],
    }
    protocol = {
        "detectors": [Path(d).name for d in detectors], "images": [n for n, _ in sizes],
        "detections": [n for _, n in sizes], "conditions": conditions, "severity": 0.5, "target": args.target,
        "matching": "COCO greedy, same class, IoU >= 0.5, crowd ignored", "splits": halves * len(detectors) * fits,
        "models_per_detector": fits,
        "split": "photographs: 1/3 model and limit, 1/3 certify, 1/3 check; certify and check redrawn each time",
        "test": "betting on photographs (all versions together), fixed sequence from the target down",
        "alternative": "same certificate and halves, on the Platt-scaled confidence", "data": str(args.data),
    }
    finish(args, protocol, table, figures)


if __name__ == "__main__":
    main()
