"""Does the embedded CLIP (or `--model`) see what is wrong with a crop, and what the crop shows?

Ground-truth boxes of COCO val2017, nothing of which it was trained on. Whole photographs are degraded by code that
training did not use (`degradations.py`), at levels 1, 3 and 5; occlusion is a piece of another photograph over the
object's mask. Compared with the best classical statistic of `image` for each condition (picked on these very crops,
which flatters it) and with the same architecture untrained.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
from common import SHARED, arguments, finish, machine, show
from degradations import CAMERA, degrade, occlude
from rich.progress import track
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from reliability_hooks.clip.embed import Embed
from reliability_hooks.clip.encoder import Encoder, load
from reliability_hooks.clip.models import ASSETS, EMBEDDED
from reliability_hooks.evaluation.bootstrap import image_bootstrap
from reliability_hooks.evaluation.datasets import read_coco
from reliability_hooks.evaluation.masks import decode_masks
from reliability_hooks.frame import Frame, View
from reliability_hooks.images import read_image
from reliability_hooks.instances import Instances
from reliability_hooks.signals.agreement import Agreement
from reliability_hooks.signals.condition import Condition
from reliability_hooks.signals.image import ImageStatistics

LEVELS = (1, 3, 5)
MIDDLE = 3
HIDDEN = (0.55, 0.7, 0.85)
SMALLEST = 24
EACH = 4
"""Objects of one photograph."""
Table = dict[tuple[str, int], dict[str, np.ndarray]]


def columns(pixels: np.ndarray, found: Instances, encoder: Encoder, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """The columns of `condition`, `agreement` and `image` for given boxes."""
    view = View(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255)
    frame = Frame(found, view, names=names, embed=Embed(encoder, view, found))
    x, answers = frame.embed, {}
    assert x is not None
    for signal in (CONDITION, AGREEMENT, IMAGE):
        answers.update(signal(frame))
    vocabulary = AGREEMENT.vocabulary
    likeliest = vocabulary.similarities(encoder, x(), names).topk(5, dim=1).indices
    hit = likeliest == vocabulary.columns(found.labels)[:, None]
    return {**answers, "top1": hit[:, 0].float(), "top5": hit.any(1).float()}


CONDITION, AGREEMENT, IMAGE = Condition(), Agreement(), ImageStatistics()


def collect(data: Path, encoder: Encoder, photographs: int | None) -> Table:
    """(condition, level) -> each column and `image`, `item`; level 0 is the photograph as it is."""
    dataset = read_coco(data / "instances_val2017.json", data / "val2017")
    names = dict(enumerate(dataset.names))
    records = list(dataset)[:photographs]
    parts: dict[tuple[str, int], list[dict[str, np.ndarray]]] = defaultdict(list)
    with torch.inference_mode():
        for number, record in enumerate(track(records, f"{encoder.name}")):
            truth = record.truth
            sides = (truth.boxes[:, 2:] - truth.boxes[:, :2]).min(1) if len(truth) else np.zeros(0)
            rows = np.flatnonzero((sides >= SMALLEST) & ~truth.crowd)
            rng = np.random.default_rng([number, 7])
            few = np.sort(rng.permutation(rows)[:EACH])
            pixels = read_image(record.path)

            def add(key: tuple[str, int], shown: np.ndarray, which: np.ndarray, number: int = number,
                    truth: Any = truth) -> None:
                if len(which) == 0:
                    return
                found = Instances(torch.from_numpy(truth.boxes[which]), torch.ones(len(which)),
                                  torch.from_numpy(truth.labels[which]), image_size=shown.shape[:2])
                got = {k: v.double().numpy() for k, v in columns(shown, found, encoder, names).items()}
                parts[key].append({**got, "image": np.full(len(which), number), "item": number * 1000 + which})

            add(("every", 0), pixels, rows)
            add(("clean", 0), pixels, few)
            for name in CAMERA:
                for level in LEVELS:
                    add((name, level), degrade(pixels, name, level, number), few)
            masks = decode_masks(truth, *pixels.shape[:2])
            other = read_image(records[(number + 1) % len(records)].path)
            for k in few[[masks[j].sum() > 200 for j in few]] if len(few) else []:
                for level, aim in zip(LEVELS, HIDDEN, strict=True):
                    shown, visible = occlude(pixels, masks[k], other, aim, rng)
                    if visible <= 0.5:
                        add(("occlusion", level), shown, np.array([k]))
    return {key: {k: np.concatenate([p[k] for p in some]) for k in some[0]} for key, some in parts.items()}


def untrained() -> Encoder:
    """The embedded model's architecture with random weights."""
    config = json.loads((ASSETS / EMBEDDED / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "condition-clip-untrained.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)
    return load("random:condition-clip-untrained")


def auroc(worse: np.ndarray, *, y: np.ndarray, weight: np.ndarray | None = None) -> float:
    return float(roc_auc_score(y, worse, sample_weight=weight))


def against_clean(table: Table, name: str, column: str, level: int = MIDDLE) -> tuple[np.ndarray, ...]:
    """Values, 1 where degraded, photograph: the degraded crops and the same crops clean."""
    bad, good = table[name, level], table["clean", 0]
    use = np.isin(good["item"], bad["item"])
    values = np.concatenate([bad[column], good[column][use]])
    y = np.concatenate([np.ones(len(bad[column])), np.zeros(use.sum())])
    return values, y, np.concatenate([bad["image"], good["image"][use]])


def strength(table: Table, name: str, column: str) -> float:
    """Mean Spearman correlation of the column with the level, over the objects seen at every level."""
    levels = [("clean", 0), *((name, k) for k in LEVELS)]
    common = set.intersection(*(set(table[key]["item"].tolist()) for key in levels))
    rows = np.stack([
        [v for i, v in sorted(zip(table[k]["item"], table[k][column], strict=True)) if i in common] for k in levels
    ], 1)  # fmt: skip
    ranks = rankdata(rows, axis=1)
    centred = ranks - ranks.mean(1, keepdims=True)
    steps = np.arange(len(levels)) - (len(levels) - 1) / 2
    spread = np.sqrt((centred**2).sum(1) * (steps**2).sum())
    return float(np.mean(np.divide(centred @ steps, spread, out=np.zeros(len(rows)), where=spread > 0)))


def best_statistic(table: Table, name: str) -> tuple[float, str]:
    """AUROC of the `image` column that tells this condition best, in either direction."""
    scores = []
    for column in IMAGE.columns:
        values, y, _ = against_clean(table, name, column)
        ok = np.isfinite(values)
        value = auroc(values[ok], y=y[ok])
        scores.append((max(value, 1 - value), column))
    return max(scores)


def first(table: Table, names: list[str]) -> dict[str, dict[str, float]]:
    """Applied condition -> share of its crops on which each named one is the greatest.

    Truncation and clutter, which the photographs show by themselves, are not among the named.
    """
    found = {}
    for name in names:
        values = np.stack([table[name, MIDDLE][f"condition/{n}"] for n in names], 1)
        top = np.bincount(values.argmax(1), minlength=len(names)) / len(values)
        found[name] = dict(zip(names, top.tolist(), strict=True))
    return found


def main() -> None:
    args = arguments(
        __doc__, model={"default": "condition-clip", "help": "any name that clip.encoder.load takes"},
        data={"type": Path, "default": SHARED / "data/coco", "help": "val2017/ and instances_val2017.json"},
    )
    encoder = load(args.model)
    table = collect(args.data, encoder, 12 if args.quick else None)
    names = [*CAMERA, "occlusion"]
    plain = None if args.quick else collect(args.data, untrained(), 12)
    ranks = first(table, names)
    rows: list[dict[str, Any]] = []
    for name in names:
        values, y, image = against_clean(table, name, f"condition/{name}")
        made = image_bootstrap({"auroc": lambda v, t, weight=None: auroc(v, y=t, weight=weight)}, image, values, y)
        classic, statistic = best_statistic(table, name)
        bad, good = table[name, MIDDLE], table["clean", 0]
        pairs = dict(zip(good["item"].tolist(), good[f"condition/{name}"].tolist(), strict=True))
        after = zip(bad["item"].tolist(), bad[f"condition/{name}"].tolist(), strict=True)
        rose = np.mean([value > pairs[item] for item, value in after])
        bare = None if plain is None else against_clean(plain, name, f"condition/{name}")
        rows.append({
            "condition": name, "auroc": str(made["auroc"]), "value": made["auroc"].value, "rose": float(rose),
            "spearman": strength(table, name, f"condition/{name}") if name in CAMERA else float("nan"),
            "first": ranks[name][name], "top1": float(bad["top1"].mean()), "n": len(bad["item"]),
            "image": classic, "statistic": statistic.removeprefix("image/"),
            "untrained": float("nan") if bare is None else auroc(bare[0], y=bare[1]),
        })  # fmt: skip
    show(f"{encoder.name}: level {MIDDLE} against the same crops as they are", list(rows[0]),
         [list(r.values()) for r in rows])
    show("condition applied (rows) and the share of crops on which each named one is the highest", ["applied", *names],
         [[n, *(round(v, 2) for v in ranks[n].values())] for n in names])
    every = table["every", 0]
    agreed = image_bootstrap({k: partial(_mean, which=j) for j, k in enumerate(("top1", "top5"))}, every["image"],
                             every["top1"], every["top5"])
    print(f"agreement on {len(every['top1'])} ground-truth crops: top-1 {agreed['top1']}, top-5 {agreed['top5']}")
    camera = [r for r in rows if r["condition"] in CAMERA]
    figures = {
        "mean_auroc": float(np.mean([r["value"] for r in camera if r["condition"] != "motion_blur"])),
        "lowest_auroc": min(r["value"] for r in camera if r["condition"] != "motion_blur"),
        "occlusion_auroc": rows[-1]["value"],
        "right_condition_first": float(np.average([r["first"] for r in rows], weights=[r["n"] for r in rows])),
        "agreement_top1": agreed["top1"].value, "agreement_top5": agreed["top5"].value,
        **{f"auroc_{r['condition']}": r["value"] for r in rows},
    }  # fmt: skip
    protocol = {
        "crops": f"ground truth of COCO val2017, shorter side >= {SMALLEST} px; at most {EACH} of each degraded",
        "auroc": f"level {MIDDLE} of {LEVELS}, all degraded crops against the same crops clean, pooled",
        "mean_auroc": "over blur, noise, low light, over-exposure, fog, low resolution, compression",
        "occlusion": "visible fraction of the mask <= .5", "rose": "share of crops whose value the condition raises",
        "right_condition_first": f"among {names}, single degradations at level {MIDDLE}",
        "intervals": "bootstrap over photographs", **machine(),
    }  # fmt: skip
    finish(args, protocol, rows, figures)


def _mean(*arrays: np.ndarray, which: int, weight: np.ndarray | None = None) -> float:
    return float(np.average(arrays[which], weights=weight))


if __name__ == "__main__":
    main()
