"""Which score tells unknown objects from known ones on a detector: ours against the classic ones, per set.

Known: right detections on COCO val2017. Unknown: detections on raccoons (near), on blood smears (far) and, with
`--cutouts`, on cut-outs pasted on photographs (`tools/make_cutout_set.py`). Scores that learn are shown COCO train2017,
which COCO-trained weights have seen; no score has seen anything unknown. `reliability-hooks evaluate-ood` gives the
same with every metric; `temporal.py` has the figures for tracks.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import SHARED, arguments, finish, show
from rich.console import Console

from reliability_hooks import Monitor, attach
from reliability_hooks.cli.evaluate_ood import table
from reliability_hooks.cli.ood_rows import collect
from reliability_hooks.config import OodSet, Settings
from reliability_hooks.hosts.base import load

OURS = ("ood/box_gen/score", "ood/box_energy/score")
QUICK = ("ood/logits", "ood/gen_top", "ood/box_gen", "ood/box_energy")
METRICS = ("ood_auroc", "ood_aupr_out", "fpr95_id_positive", "fpr95_ood_positive", "ap_u", "aose", "aose_rejected")


def sets(cutouts: Path | None, limit: int | None) -> dict[str, OodSet]:
    """The unknown objects."""
    raccoon, bccd = SHARED / "data/ood/raccoon", SHARED / "data/ood/bccd/BCCD"
    found = {
        "raccoon": OodSet(str(raccoon / "images"), str(raccoon / "annotations"), "near", limit=limit),
        "bccd": OodSet(str(bccd / "JPEGImages"), str(bccd / "Annotations"), "far", exhaustive=True, limit=limit),
    }
    if cutouts is not None:
        found["cutouts"] = OodSet(str(cutouts / "images"), str(cutouts / "instances.json"), "pasted", limit=limit)
    return found


def main() -> None:
    args = arguments(
        __doc__,
        detector={"nargs": "+", "default": [str(SHARED / "weights" / w) for w in ("yolo11n-seg.pt", "yolov8n.pt")]},
        signals={"nargs": "+", "default": ["ood"], "help": "signals or presets whose scores are compared"},
        cutouts={"type": Path, "help": "directory that tools/make_cutout_set.py wrote"},
        draws={"type": int, "default": 200, "help": "bootstrap draws"},
        cache={"type": Path, "default": Path(tempfile.gettempdir()) / "reliability_hooks_bench"},
    )
    detectors, signals, limit, draws = args.detector, args.signals, None, args.draws
    if args.quick:
        detectors, signals, limit, draws = detectors[:1], list(QUICK), 30, 20
    coco = SHARED / "data/coco"
    settings = Settings()
    settings = replace(
        settings,
        detector=replace(settings.detector, predict={"conf": 0.25}),
        data=replace(
            settings.data, images=str(coco / "val2017"), annotations=str(coco / "instances_val2017.json"), limit=limit,
            bank=str(coco / "train2017"), bank_annotations=str(coco / "instances_train2017.json"),
        ),
        ood=replace(settings.ood, sets=sets(args.cutouts, limit), draws=draws),
    )
    rows, counts = [], []
    for detector in detectors:
        with attach(load(detector), Monitor(signals), strict=True) as handle:
            known, unknown, failed = collect(handle, settings, args.cache, Console(stderr=True))
        if failed:
            raise SystemExit("\n".join(failed))
        counts.append({"known": int(known.right().sum()), **{n: int(u.on_unknown().sum()) for n, u in unknown.items()}})
        for name, seen in unknown.items():
            for score, row in table(known, seen, known.score_names(), settings).items():
                rows.append({"detector": Path(detector).name, "set": name, "score": score,
                             **{m: row[m].value for m in METRICS},
                             "auroc_low": row["ood_auroc"].low, "auroc_high": row["ood_auroc"].high})  # fmt: skip

    scores = list(dict.fromkeys(r["score"] for r in rows))
    of = {s: {n: float(np.mean([r["ood_auroc"] for r in rows if (r["score"], r["set"]) == (s, n)]))
              for n in settings.ood.sets} for s in scores}
    mean = {s: float(np.mean(list(v.values()))) for s, v in of.items()}
    order = sorted(scores, key=lambda s: -mean[s])
    show("AUROC, means over detectors", ["score", *settings.ood.sets, "mean"],
         [[s, *of[s].values(), mean[s]] for s in order])
    figures = {f"auroc_{n}_{s}": v for s in order for n, v in of[s].items()}
    figures["best_classic_mean_auroc"] = max(v for s, v in mean.items() if s not in OURS)
    figures["best_ours_mean_auroc"] = max(v for s, v in mean.items() if s in OURS)
    protocol = {
        "detectors": [Path(d).name for d in detectors], "predict": settings.detector.predict, "detections": counts,
        "known": "right detections (same class, IoU >= .5)", "bank": str(coco / "train2017"), "signals": signals,
        "unknown": "detections on an unknown object (IoU >= .5); bccd: all", "ours": OURS, "bootstrap_draws": draws,
    }
    finish(args, protocol, rows, figures)


if __name__ == "__main__":
    main()
