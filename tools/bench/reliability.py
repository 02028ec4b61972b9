"""How much better than a calibrated confidence? Raw score, Platt, isotonic and ours, on photographs under conditions.

Each image set is split in half by image several times; all methods are fitted on one half and tested on the other, in
three settings: `seen` (fitted and tested under all conditions), `unseen conditions` (fitted under five, tested under
the two left out), `unseen OOD` (fitted under all, tested on clean images with raccoons and blood cells among them,
which are wrong by definition and in no fit). Ratios are ours / the best of raw, Platt and isotonic, means over splits
and detectors; intervals are 95 % paired bootstrap over photographs.
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
from rows import SCORE_CUT, Rows, collect, collect_ood

from reliability_hooks import Instances
from reliability_hooks.evaluation.corruptions import CONDITIONS
from reliability_hooks.evaluation.summary import CALIBRATION_METRICS
from reliability_hooks.reliability.calibrators import Isotonic, Platt
from reliability_hooks.reliability.caution import Caution
from reliability_hooks.reliability.judge import FACTORS, NOVELTY
from reliability_hooks.reliability.model import ReliabilityModel
from reliability_hooks.reliability.selection import CANDIDATES
from reliability_hooks.signals.base import create

METHODS = ("raw", "platt", "isotonic", "ours")
METRICS = ("d_ece", "brier", "auroc", "augrc", "excess_augrc")
HELD_OUT = (("blur", "low_resolution"), ("noise", "jpeg"), ("low_light", "fog"))


@dataclass(frozen=True)
class Tested:
    """Predictions of every method for the rows of one held-out half."""

    predictions: dict[str, np.ndarray]
    correct: np.ndarray
    image: np.ndarray
    condition: np.ndarray
    chosen: str
    prior: float


def predict(train: Rows, held: Rows, names: Sequence[str], candidates: Sequence[str], seed: int,
            fewer: Sequence[str] = ()) -> Tested:  # fmt: skip
    """Fit every method on `train`, predict `held`; `fewer` are the columns of the method `without`, if it is asked."""
    a, b = train.instances, held.instances
    predictions = {
        "raw": b.scores,
        "platt": Platt.fit(a.scores, train.correct).predict(b.scores),
        "isotonic": Isotonic.fit(a.scores, train.correct).predict(b.scores),
    }
    predictions["ours"], chosen, prior = ours(train, held, names, candidates, seed)
    if fewer:
        predictions["without"], _, _ = ours(train, held, fewer, candidates, seed)
    arrays = {name: value.double().clamp(0, 1).numpy() for name, value in predictions.items()}
    return Tested(arrays, held.correct.numpy(), held.image, held.condition, chosen, prior)


def ours(
    train: Rows, held: Rows, names: Sequence[str], candidates: Sequence[str], seed: int
) -> tuple[torch.Tensor, str, float]:
    """Reliability of the held rows, the model that was chosen, the share of unknown objects reckoned with."""
    a, b = train.instances, held.instances
    columns = {name: a.columns[name] for name in names}
    model = ReliabilityModel.fit(columns, a.scores, a.labels, train.correct, train.iou, train.image, seed, candidates)
    reliability, prior = model.predict(b.columns, b.scores, b.labels)["reliability"], 0.0
    novelty = next((name for name in NOVELTY if name in names), None)
    if novelty is not None:  # as reliability.judge does it
        caution = Caution.fit(a.columns[novelty], cells(a), model.cross_fitted, train.correct,
                              torch.from_numpy(train.image), seed=seed)
        reliability, prior = caution(reliability, b.columns[novelty], cells(b))["reliability"], caution.prior
    return reliability, model.report["chosen"], prior


def cells(instances: Instances) -> dict[str, torch.Tensor]:
    """What p-values of unknown objects are conditioned on."""
    return {name: FACTORS[name](instances) for name in ("class", "size")}


def split(rows: Rows, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the rows of either half of the photographs."""
    order = np.random.default_rng(seed).permutation(rows.images)
    fit = np.isin(rows.image, order[: rows.images // 2])
    return fit, ~fit


def joined(rows: Rows, ood: Rows) -> Rows:
    """The rows of both; out-of-distribution images are numbered after the others."""
    return Rows(
        Instances.cat([rows.instances.replace(image_size=None), ood.instances.replace(image_size=None)]),
        torch.cat([rows.correct, ood.correct]), torch.cat([rows.iou, ood.iou]),
        np.concatenate([rows.image, ood.image + rows.images]), np.concatenate([rows.condition, ood.condition]),
        rows.images + ood.images,
    )


def settings(rows: Rows, ood: Rows | None, seeds: Sequence[int], names: Sequence[str], candidates: Sequence[str],
             label: str, fewer: Sequence[str] = ()) -> dict[str, list[Tested]]:  # fmt: skip
    """Every setting -> what was tested, one entry for each split (and pair of held-out conditions)."""
    out: dict[str, list[Tested]] = {"seen": [], "unseen conditions": [], "unseen ood": []}
    for seed in track(seeds, f"fitting {label}"):
        fit, test = split(rows, seed)
        out["seen"].append(predict(rows[fit], rows[test], names, candidates, seed, fewer))
        for pair in HELD_OUT:
            held = np.isin(rows.condition, pair)
            if held.any():
                out["unseen conditions"].append(
                    predict(rows[fit & ~held], rows[test & held], names, candidates, seed, fewer)
                )
        if ood is not None:
            mix = joined(rows[test & (rows.condition == "clean")], ood)
            out["unseen ood"].append(predict(rows[fit], mix, names, candidates, seed, fewer))
    return out


def measure(tested: Sequence[Tested], condition: str | None = None, weight: np.ndarray | None = None) -> np.ndarray:
    """(methods, metrics), means over the splits; `weight` holds multiplicities of photographs."""
    methods = tested[0].predictions
    out = np.full((len(tested), len(methods), len(METRICS)), np.nan)
    for s, t in enumerate(tested):
        keep = slice(None) if condition is None else t.condition == condition
        w = None if weight is None else weight[t.image[keep]]
        for m, method in enumerate(methods):
            for k, metric in enumerate(METRICS):
                out[s, m, k] = CALIBRATION_METRICS[metric](t.predictions[method][keep], t.correct[keep], weight=w)
    return np.nanmean(out, 0)


def against_best(values: np.ndarray) -> dict[str, float]:
    """Ours / the best confidence-only for costs, ours - the best for AUROC."""
    cell = {name: values[:, METRICS.index(name)] for name in METRICS}
    ratios = {name: float(cell[name][3] / np.nanmin(cell[name][:3])) for name in ("brier", "excess_augrc")}
    return {**ratios, "auroc_gain": float(cell["auroc"][3] - np.nanmax(cell["auroc"][:3]))}


def against_without(values: np.ndarray) -> dict[str, float]:
    """Ours with all the signals / ours with the fewer ones of `--against`, for costs; the difference for AUROC."""
    if len(values) <= len(METHODS):
        return {}
    cell = {name: values[:, METRICS.index(name)] for name in METRICS}
    ratios = {f"{name}_to_without": float(cell[name][3] / cell[name][4]) for name in ("brier", "excess_augrc")}
    return {**ratios, "auroc_gain_to_without": float(cell["auroc"][3] - cell["auroc"][4])}


def mean(runs: Sequence[dict[str, list[Tested]]], setting: str, condition: str | None = None,
         weights: Sequence[np.ndarray | None] | None = None) -> np.ndarray:
    """(methods, metrics) of a setting, means over detectors."""
    each = [None] * len(runs) if weights is None else weights
    return np.mean([measure(run[setting], condition, w) for run, w in zip(runs, each, strict=True)], 0)


def compared(values: np.ndarray) -> dict[str, float]:
    """Every comparison."""
    return {**against_best(values), **against_without(values)}


FIGURES = {  # name -> (setting, condition, quantity)
    "brier_ratio_all": ("seen", None, "brier"),
    "excess_augrc_ratio_all": ("seen", None, "excess_augrc"),
    "brier_ratio_clean": ("seen", "clean", "brier"),
    "brier_ratio_unseen_conditions": ("unseen conditions", None, "brier"),
    "brier_ratio_unseen_ood": ("unseen ood", None, "brier"),
    "auroc_gain_unseen_ood": ("unseen ood", None, "auroc_gain"),
}


def main() -> None:
    args = arguments(
        __doc__,
        detector={"nargs": "+", "default": [str(SHARED / "weights" / w) for w in ("yolo11n-seg.pt", "yolov8n.pt")]},
        data={"type": Path, "default": SHARED / "data/coco/val2017", "help": "directory of images"},
        annotations={"type": Path, "default": SHARED / "data/coco/instances_val2017.json"},
        bank={"type": Path, "default": SHARED / "data/coco/train2017", "help": "images that signals learn from"},
        signals={"nargs": "+", "default": ["full"], "help": "signals or presets"},
        ood_limit={"type": int, "default": None, "help": "images of each OOD set"},
        splits={"type": int, "default": 5},
        draws={"type": int, "default": 100, "help": "bootstrap draws"},
        against={"nargs": "+", "default": [], "help": "fewer signals or presets: what do the others add?"},
        leave_out={"nargs": "+", "default": [], "help": "signals that are read, and not used"},
        ablation={"action": "store_true", "help": "each signal alone and each left out (logistic model, 2 splits)"},
        cache={"type": Path, "default": Path(tempfile.gettempdir()) / "reliability_hooks_bench"},
    )
    conditions = ["clean", *CONDITIONS]
    detectors, seeds, draws, limit, signals = args.detector, range(args.splits), args.draws, None, args.signals
    if args.quick:
        detectors, seeds, draws, limit, signals = detectors[:1], range(1), 20, 30, ["cheap"]
        conditions = ["clean", "low_light", "fog"]
    families = create(signals)
    bank = args.bank if any(f.learns for f in families) else None
    names = [name for family in families if family.name not in args.leave_out for name in family.columns]
    fewer = [name for family in create(args.against) for name in family.columns]
    if not set(fewer) <= set(names):
        raise SystemExit("--against takes some of --signals")
    further = {f"{name}_to_without": (*of[:2], f"{of[2]}_to_without") for name, of in FIGURES.items()}
    asked = {**FIGURES, **(further if fewer else {})}
    data, runs = [], []
    for detector in detectors:
        rows = collect(detector, args.data, args.annotations, conditions, limit, args.cache, signals, bank)
        ood = collect_ood(detector, args.cache, signals, bank, limit or args.ood_limit)
        data.append((rows, ood))
        runs.append(settings(rows, ood, seeds, names, CANDIDATES, Path(detector).name, fewer))

    table = []
    for setting in runs[0]:
        found = sorted({str(c) for t in runs[0][setting] for c in t.condition})
        for condition in [None, *found]:
            values = mean(runs, setting, condition)
            table += [
                {"setting": setting, "condition": condition or "all", "method": method,
                 **{metric: float(values[m, k]) for k, metric in enumerate(METRICS)}}
                for m, method in enumerate(runs[0][setting][0].predictions)
            ]
    show("means over splits and detectors", list(table[0]), [list(row.values()) for row in table])
    for detector, run, (rows, ood) in zip(detectors, runs, data, strict=True):
        print(f"{Path(detector).name}: {len(rows.image)} detections, {rows.correct.float().mean():.3f} right, "
              f"{len(ood.image)} on OOD images, models {[t.chosen for t in run['seen']]}, "
              f"share of unknown objects reckoned with {[t.prior for t in run['seen']]}")

    figures: dict[str, float] = {}
    rng = np.random.default_rng(0)
    total = [rows.images + ood.images for rows, ood in data]
    drawn: dict[str, list[float]] = {name: [] for name in asked}
    for _ in track(range(draws), "bootstrap"):
        weights = [rng.multinomial(n, np.full(n, 1 / n)) for n in total]
        for name, (setting, condition, quantity) in asked.items():
            drawn[name].append(compared(mean(runs, setting, condition, weights))[quantity])
    for name, (setting, condition, quantity) in asked.items():
        low, high = np.nanpercentile(drawn[name], [2.5, 97.5])
        point = compared(mean(runs, setting, condition))[quantity]
        figures |= {name: point, f"{name}_low": float(low), f"{name}_high": float(high)}
    figures["dece_all"] = float(mean(runs, "seen")[3, METRICS.index("d_ece")])
    protocol = {
        "detectors": [Path(d).name for d in detectors], "images": [r.images for r, _ in data],
        "detections": [len(r.image) for r, _ in data], "ood_detections": [len(o.image) for _, o in data],
        "conditions": conditions, "severity": 0.5, "held_out": HELD_OUT, "score_cut": SCORE_CUT, "signals": signals,
        "against": args.against, "left_out": args.leave_out,
        "bank": str(bank), "matching": "COCO greedy, same class, IoU >= 0.5, crowd ignored", "bins": 10,
        "splits": len(seeds), "split": "half of the photographs fit, half test", "bootstrap_draws": draws,
        "models": [[t.chosen for t in run["seen"]] for run in runs],
        "priors": [[t.prior for t in run["seen"]] for run in runs], "data": str(args.data),
    }
    if args.ablation:
        table += ablation(data, families)
    finish(args, protocol, table, figures)


def ablation(data: Sequence[tuple[Rows, Rows]], families: Sequence) -> list[dict]:
    """Each signal alone beside the score, and all but it."""
    everything = [name for f in families for name in f.columns]
    variants = {"all": everything}
    for f in families:
        variants[f"only {f.name}"] = list(f.columns)
        variants[f"without {f.name}"] = [name for name in everything if name not in f.columns]
    table = []
    for variant, names in variants.items():
        runs = [settings(rows, ood, range(2), names, ("logistic",), variant) for rows, ood in data]
        line = {"variant": variant}
        for label, setting, condition in (("clean", "seen", "clean"), ("seen", "seen", None),
                                          ("unseen", "unseen conditions", None), ("ood", "unseen ood", None)):
            got = against_best(mean(runs, setting, condition))
            line |= {f"{label} brier": got["brier"], f"{label} excess_augrc": got["excess_augrc"]}
        table.append(line)
    show("ablation: ratios to the best confidence-only (logistic model, 2 splits)", list(table[0]),
         [list(row.values()) for row in table])
    return table


if __name__ == "__main__":
    main()
