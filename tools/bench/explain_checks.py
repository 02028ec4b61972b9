"""Do the error bars of `bayes` hold, does it repeat with another seed, and does it depend on the model?

Photographs of val2017, the joint target of some instances each. Error bars: the share of places where the map from
1,024 masks of another seed, with its own error, lies within the 90 % interval of the default budget; of all places, and
of those where either map is above `HIGH` of its maximum, as elsewhere both are often 0. Seeds: mean rank correlation of
two runs. Parameters: rank correlation with the maps of the detector whose last quarter of layers has weights drawn anew
(Adebayo et al. 2018), at the same raw rows. D-RISE with as many masks and the gradient beside it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, arguments, finish, machine, show
from explain import BUDGET, METHODS, OURS
from explain_frames import frames
from rich.progress import track
from torch import Tensor
from ultralytics import YOLO

from reliability_hooks import Monitor, attach
from reliability_hooks.evaluation.sanity import coverage, randomisation, seed_stability
from reliability_hooks.explain.bayes import MOST, BayesRISE
from reliability_hooks.explain.explainer import explain_frame
from reliability_hooks.explain.targets import TARGETS
from reliability_hooks.frame import Frame

LEVEL = 0.9
HIGH = 0.3
MASKED = f"D-RISE {BUDGET}"


def maps(frame: Frame, rows: Tensor, name: str, budget: int, **more: Any) -> Tensor:
    method, _, settings = METHODS[name]
    return explain_frame(frame, rows, method=method, budget=budget, longest=160, **settings, **more).maps["joint"]


def randomise(module: torch.nn.Module, share: float, seed: int) -> None:
    """The last `share` of the weights (by number of layers) drawn anew with their own mean and deviation."""
    g = torch.Generator().manual_seed(seed)
    layers = [m for m in module.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    with torch.no_grad():
        for layer in layers[len(layers) - round(share * len(layers)) :]:
            w = layer.weight
            w.copy_(torch.randn(w.shape, generator=g) * w.std() + w.mean())


def main() -> None:
    args = arguments(
        __doc__, detector={"default": str(SHARED / "weights/yolo11n-seg.pt")},
        images={"type": Path, "default": SHARED / "data/coco/val2017"},
        photographs={"type": int, "default": 8}, each={"type": int, "default": 3},
        imgsz={"type": int, "default": 320}, conf={"type": float, "default": 0.4},
    )
    budget, most = (64, 128) if args.quick else (METHODS[OURS][1], MOST)
    photographs = 2 if args.quick else args.photographs
    model, short = YOLO(args.detector), Path(args.detector).stem.replace("-", "_")
    options = {"imgsz": args.imgsz, "conf": args.conf}
    order = np.random.default_rng(1).permutation(len(found := sorted(args.images.glob("*.jpg"))))
    images, target = [found[k] for k in order[:photographs]], [TARGETS["joint"]]
    held: list[Tensor] = []
    width: list[Tensor] = []
    high: list[Tensor] = []
    stable: dict[str, list[Tensor]] = {OURS: [], MASKED: []}
    moved: dict[str, list[Tensor]] = {name: [] for name in (OURS, MASKED, "joint gradient")}
    with attach(model, Monitor([]), strict=True) as handle:
        for _, frame in track(frames(handle, images, options), total=len(images), description="checks"):
            if not (n := len(frame.instances)):
                continue
            rows, weights = torch.arange(min(n, args.each)), model.predictor.model.model  # what runs: a fused copy
            few, _ = BayesRISE().read(frame, rows, target, budget)
            many, _ = BayesRISE(seed=1).read(frame, rows, target, most)
            held.append(coverage(few.mean, few.error, many.mean, LEVEL, many.error))
            width.append(few.error.flatten(1).mean(1) / few.mean.flatten(1).amax(1))
            told = torch.where(torch.maximum(few.mean, many.mean) > HIGH, many.mean, torch.nan)
            high.append(coverage(few.mean, few.error, told, LEVEL, many.error))
            for name in stable:
                stable[name].append(seed_stability([maps(frame, rows, name, budget, seed=s) for s in (0, 1)]))
            own = {name: maps(frame, rows, name, budget) for name in moved}
            kept = copy.deepcopy(weights.state_dict())
            randomise(weights, 0.25, 0)
            for name, before in own.items():
                moved[name].append(randomisation(before, maps(frame, rows, name, budget)))
            weights.load_state_dict(kept)
    figures = {"coverage_90": mean(held), "coverage_90_high": mean(high), "mean_error_over_peak": mean(width)}
    rows_ = [
        {"method": name, "seeds": mean(stable[name]) if name in stable else float("nan"), "parameters": mean(values)}
        for name, values in moved.items()
    ]
    title = f"{short}: budget {budget}, {len(torch.cat(held))} instances"
    show(title, list(rows_[0]), [list(r.values()) for r in rows_])
    for row in rows_:
        key = str(row["method"]).replace(" ", "_").replace("-", "_")
        figures |= {f"seed_stability_{key}": row["seeds"], f"randomised_correlation_{key}": row["parameters"]}
    protocol = {"photographs": photographs, "each": args.each, "budget": budget, "reference": most, **machine()}
    finish(args, protocol, rows_, {k: v for k, v in figures.items() if np.isfinite(v)})


def mean(values: list[Tensor]) -> float:
    return float(torch.cat(values).nanmean()) if values else float("nan")


if __name__ == "__main__":
    main()
