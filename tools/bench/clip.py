"""How fast are CLIP embeddings of all objects of an image, and the texts that they are compared with?

Ours: the crops cut, resized and encoded together, 24 prompts from the cache. The alternative is what users of CLIP-IQA
libraries write: each object cut with PIL, through open_clip's own transform (its resize mode), encoded on its own, and
the prompts encoded again in a call. How often that is depends on the user: once for an image in the figures, which is
the milder reading; once for a crop, and not at all, in the columns beside. Both get the same photograph, boxes
and weights, and run in turn.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from common import SHARED, arguments, finish, machine, show
from matching import _memory_mb, _reset_peak_mb, apart
from PIL import Image

from reliability_hooks.clip.embed import Embed
from reliability_hooks.clip.encoder import Encoder, load
from reliability_hooks.clip.models import ASSETS, EMBEDDED, create
from reliability_hooks.frame import View
from reliability_hooks.images import read_image
from reliability_hooks.instances import Instances

CONDITIONS = ["blurry", "noisy", "dark", "overexposed", "foggy", "pixelated", "compressed", "hidden", "cut off",
              "cluttered", "shaken", "flat"]
PROMPTS = [text for word in CONDITIONS for text in (f"a {word} photo of an object", f"no {word} photo of an object")]


def scene(n: int) -> tuple[np.ndarray, Instances]:
    """A photograph of val2017 and n boxes on it, 32 to 200 pixels wide and high, at random."""
    path = min((SHARED / "data" / "coco" / "val2017").glob("*.jpg"))
    image = read_image(path)
    rng = np.random.default_rng(0)
    height, width = image.shape[:2]
    sides = rng.integers(32, 201, (n, 2))
    corner = (rng.random((n, 2)) * (np.array([width, height]) - sides)).astype(int)
    boxes = torch.from_numpy(np.hstack([corner, corner + sides])).float()
    return image, Instances(boxes, torch.ones(n), torch.zeros(n, dtype=torch.int64), image_size=(height, width))


def ours(encoder: Encoder, image: np.ndarray, found: Instances) -> torch.Tensor:
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    return Embed(encoder, View(pixels), found)() @ encoder.texts(PROMPTS).T


class Loop:
    """The alternative, with the same weights in open_clip's model as it comes."""

    def __init__(self, name: str) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.model, self.tokenizer, _ = create(name)
        self.transform = image_transform_v2(PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False)

    def texts(self) -> torch.Tensor:
        return self.model.encode_text(self.tokenizer(PROMPTS), normalize=True)

    def images(self, image: np.ndarray, found: Instances) -> torch.Tensor:
        whole = Image.fromarray(image)
        crops = (whole.crop(tuple(int(v) for v in box)) for box in found.boxes.tolist())
        return torch.cat([self.model.encode_image(self.transform(crop)[None], normalize=True) for crop in crops])


def clock(call: Any, *inputs: Any) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        call(*inputs)
    return time.perf_counter() - start


def contest(name: str, counts: list[int], rounds: int, most: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each number of instances; how many texts ours encoded after the first image, and its memory at 300.

    The loop sees at most `most` crops of an image, its time being scaled to all of them.
    """
    encoder = load(name)
    loop, table = Loop(name), []
    clock(ours, encoder, *scene(1))
    first = encoder.encoded
    image, found = scene(300)
    before = _reset_peak_mb()
    clock(ours, encoder, image, found)
    peak = _memory_mb("VmHWM") - before
    texts = statistics.median(clock(loop.texts) for _ in range(rounds))
    for n in counts:
        image, found = scene(n)
        some = found[:most]
        runs = [(clock(ours, encoder, image, found), clock(loop.images, image, some)) for _ in range(rounds)]
        seconds, others = (statistics.median(column) for column in zip(*runs, strict=True))
        others *= n / len(some)
        table.append({"model": name, "instances": n, "seconds": seconds, "loop_seconds": others,
                      "texts_seconds": texts, "speedup": (others + texts) / seconds,
                      "speedup_texts_per_crop": (others + n * texts) / seconds,
                      "speedup_without_texts": others / seconds})
    return table, {"text_encodes_after_first": float(encoder.encoded - first), "peak_mb_300": peak}


def main() -> None:
    args = arguments(__doc__, rounds={"type": int, "default": 3, "help": "timed runs of each"})
    models, skipped = ["random:ViT-B-32"], {}
    if (ASSETS / EMBEDDED / "open_clip_model.safetensors").is_file():
        models.append(EMBEDDED)
    else:
        skipped[EMBEDDED] = f"its weights are not in {ASSETS / EMBEDDED}"
    rounds = 1 if args.quick else args.rounds
    table, figures = [], {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RELIABILITY_HOOKS_CACHE"] = cache  # nothing from before
        for name in models:
            rows, measured = apart(contest, name, [1, 20, 100], rounds, 20 if args.quick else 100)
            table += rows
            end = "" if name == models[0] else "_embedded"
            figures |= {f"speedup_{row['instances']}{end}": row["speedup"] for row in rows}
            figures |= {f"{key}{end}": value for key, value in measured.items()}
    show("CLIP embeddings of an image's objects", list(table[0]), [list(row.values()) for row in table])
    for name, why in skipped.items():
        print(f"{name} skipped: {why}")
    protocol = {
        "prompts": len(PROMPTS), "instances": "random boxes of 32 to 200 pixels on a photograph of COCO val2017",
        "rounds": rounds, "skipped": skipped, **machine(),
        "seconds": "median, the two in turn: an image's objects cut, encoded and compared with the prompts",
        "loop_seconds": "crops alone; with --quick those of the first 20, scaled to all",
        "speedup": "loop that encodes the prompts once for an image / ours",
        "speedup_texts_per_crop": "the same, the prompts encoded for each crop; their time measured once, multiplied",
        "speedup_without_texts": "the loop's crops alone / ours",
        "peak_mb_300": "most memory of ours at 300 instances, less that before; weights not counted",
    }
    finish(args, protocol, table, figures)


if __name__ == "__main__":
    main()
