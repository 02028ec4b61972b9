"""Masks of a promptable segmenter: does the reliability tell right from wrong better than the IoU that it predicts?

No weights of Segment Anything are at hand, so that a small one of the same classes (`segment_anything.modeling`, 256
pixels, a ViT of 6 layers) is trained here for some minutes on COCO train2017 with boxes and clicks; its masks are far
worse than those of the published models, and the figures hold for it alone. val2017 is split by image: one half fits,
the other half tests, in five splits. Prompts are annotated boxes with moved sides, or clicks (`--prompt point`).
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, mse_loss

from reliability_hooks import Monitor, attach
from reliability_hooks.evaluation.datasets import DetectionDataset, read_coco
from reliability_hooks.evaluation.labels import labelled
from reliability_hooks.evaluation.masks import decode_masks
from reliability_hooks.images import read_image
from reliability_hooks.reliability.calibrators import Platt

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIDE, WIDTH, DEPTH, EMBEDDING = 256, 192, 6, 128
BATCH, OBJECTS = 4, 8


def build() -> Any:
    """A small Sam, untrained."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(depth=DEPTH, embed_dim=WIDTH, img_size=SIDE, num_heads=4, patch_size=16, qkv_bias=True,
                              use_rel_pos=True, global_attn_indexes=[2, 5], window_size=8, out_chans=EMBEDDING,
                              norm_layer=partial(nn.LayerNorm, eps=1e-6))  # fmt: skip
    cells = (SIDE // 16, SIDE // 16)
    prompts = PromptEncoder(EMBEDDING, image_embedding_size=cells, input_image_size=(SIDE, SIDE), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=EMBEDDING, mlp_dim=256, num_heads=4)
    return Sam(encoder, prompts, MaskDecoder(transformer_dim=EMBEDDING, transformer=transformer))


def dataset(name: str) -> DetectionDataset:
    return read_coco(SHARED / f"data/coco/instances_{name}.json", SHARED / f"data/coco/{name}")


def scenes(data: DetectionDataset) -> list[tuple[Tensor, Tensor]]:
    """Images (3, 256, 256) uint8, shrunk or stretched to the square, and masks (G, 256, 256) bool of their objects."""
    found = []
    for record in data:
        if record.truth.crowd.all():
            continue
        image = read_image(record.path)
        masks = decode_masks(record.truth, *image.shape[:2])[~record.truth.crowd]
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        small = interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)[0].byte()
        shapes = interpolate(torch.from_numpy(masks)[None].byte(), (SIDE, SIDE), mode="nearest")[0].bool()
        shapes = shapes[shapes.flatten(1).sum(1) >= 30]
        if len(shapes):
            found.append((small, shapes))
    return found


def drawn(scene: tuple[Tensor, Tensor], random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random square of the scene (at least half of it), mirrored or not, and up to `OBJECTS` masks in it."""
    image, masks = scene
    side = int(random.integers(SIDE // 2, SIDE + 1))
    x, y = (int(random.integers(0, SIDE - side + 1)) for _ in range(2))
    image = interpolate(image[None, :, y : y + side, x : x + side].float(), (SIDE, SIDE), mode="bilinear")[0]
    masks = interpolate(masks[None, :, y : y + side, x : x + side].byte(), (SIDE, SIDE), mode="nearest")[0].bool()
    masks = masks[masks.flatten(1).sum(1) >= 60]
    masks = masks[random.permutation(len(masks))[:OBJECTS]]
    return (image.flip(2), masks.flip(2)) if random.random() < 0.5 else (image, masks)


def asked(model: Any, masks: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Embeddings of boxes around masks with moved sides, or of clicks."""
    y, x = (torch.where(masks.any(axis), torch.arange(SIDE), SIDE).amin(1) for axis in (2, 1))
    bottom, right = (torch.where(masks.any(axis), torch.arange(SIDE) + 1, 0).amax(1) for axis in (2, 1))
    boxes = torch.stack([x, y, right, bottom], 1).float()
    if random.random() < 0.6:
        extent = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = boxes + torch.from_numpy(random.uniform(-0.1, 0.1, boxes.shape)).float() * extent
        return model.prompt_encoder(points=None, boxes=moved, masks=None)
    at = torch.multinomial(masks.flatten(1).float(), 1)[:, 0]
    points = torch.stack([at % SIDE, at // SIDE], 1).float()[:, None] + 0.5
    return model.prompt_encoder(points=(points, torch.ones(len(points), 1, dtype=torch.int)), boxes=None, masks=None)


def losses(logits: Tensor, ious: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy and dice of the single answer and of the best of the other three; squared error of all IoU."""
    truth = interpolate(masks[:, None].float(), logits.shape[2:], mode="area").expand_as(logits)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * truth).sum((2, 3)) + 1) / (p.sum((2, 3)) + truth.sum((2, 3)) + 1)
    each = binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((2, 3)) * 5 + dice
    inside, real = logits.detach() > 0, truth > 0.5
    overlap = (inside & real).sum((2, 3)) / (inside | real).sum((2, 3)).clamp(min=1)
    return each[:, 0].mean() + each[:, 1:].amin(1).mean() + mse_loss(ious, overlap)


def train(minutes: float, path: Path) -> Any:
    """The small Sam, trained for so long; from `path` where it has been."""
    torch.manual_seed(0)
    model, random = build(), np.random.default_rng(0)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    data, start, step = scenes(dataset("train2017")), time.time(), 0
    best = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.01)
    while (done := (time.time() - start) / 60 / minutes) < 1:
        for group in best.param_groups:
            group["lr"] = 6e-4 * min(1.0, step / 50, 4 * (1 - done))
        some = [drawn(data[int(i)], random) for i in random.integers(0, len(data), BATCH)]
        some = [(image, masks) for image, masks in some if len(masks)]
        if not some:
            continue
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = model.image_encoder(torch.stack([model.preprocess(image) for image, _ in some]))
            loss = torch.zeros(())
            for embedding, (_, masks) in zip(embeddings, some, strict=True):
                sparse, dense = asked(model, masks, random)
                logits, ious = model.mask_decoder.predict_masks(
                    image_embeddings=embedding[None], image_pe=model.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense,
                )  # fmt: skip
                loss = loss + losses(logits.float(), ious.float(), masks) / len(some)
        best.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        best.step()
        step += 1
        if step % 20 == 0:
            print(f"step {step}, {done:.0%}: loss {float(loss):.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def rows(model: Any, prompt: str, limit: int | None) -> list[Any]:
    """(instances, ground truth) of each image of val2017, or of the first `limit`."""
    from segment_anything import SamPredictor

    found = []
    with attach(SamPredictor(model), Monitor(["sam"]), strict=True) as handle:
        for record in dataset("val2017").images[:limit]:
            if record.truth.masks is None or record.truth.crowd.all():
                continue
            options = {"prompt": prompt}
            (instances,) = handle.host.predict_labelled([read_image(record.path)], [record.truth], **options)
            found.append((instances.replace(masks=None), record.truth))
    return found


def compare(pairs: list[Any], splits: int = 5) -> dict[str, dict[str, list[float]]]:
    """Brier score and AUROC of the predicted IoU, of Platt's map of it, and of the reliability, for each split."""
    result: dict[str, dict[str, list[float]]] = {}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(pairs))
        fit, test = ([pairs[i] for i in half] for half in np.array_split(order, 2))
        monitor = Monitor(["sam"], seed=split)
        monitor.fit(fit)
        assert monitor.judge is not None
        known, right, *_ = labelled(fit)
        shown, truth, *_ = labelled(test)
        answers = {
            "predicted IoU": shown.scores.double(),
            "Platt on it": Platt.fit(known.scores, right).predict(shown.scores),
            "reliability": monitor.judge(shown)["reliability"].double(),
        }
        for name, p in answers.items():
            row = result.setdefault(name, {"brier": [], "auroc": []})
            row["brier"].append(brier_score_loss(truth.numpy(), p.numpy()))
            row["auroc"].append(roc_auc_score(truth.numpy(), p.numpy()))
    return result


def main() -> None:
    """Train, or load what was trained, and compare."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=8.0, help="of training (default: %(default)s)")
    p.add_argument("--prompt", choices=("box", "point"), default="box")
    p.add_argument("--limit", type=int, help="images of val2017 (default: all)")
    p.add_argument("--out", type=Path, default=Path("runs/bench/promptable"))
    args = p.parse_args()
    pairs = rows(train(args.minutes, args.out / "sam_tiny.pth"), args.prompt, args.limit)
    known, right, overlap, _ = labelled(pairs)
    result = compare(pairs)
    print(f"{len(pairs)} images, {len(known)} masks, right {float(right.float().mean()):.2f}, "
          f"mean IoU {float(overlap.mean()):.2f}")  # fmt: skip
    for name, row in result.items():
        shown = (f"{k} {np.mean(v):.3f} (splits {min(v):.3f}-{max(v):.3f})" for k, v in row.items())
        print(f"{name:15}", "  ".join(shown))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.prompt}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
