"""The frozen trunk's view of many random samples, kept in shards: made once, resumed where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from reliability_hooks.clip.trunk import ConditionTrunk

from .photographs import Item, Photographs
from .samples import draw

SHARD = 512
WHOLE = 0.25
"""Share of the samples that come from ImageNet photographs."""
HELD_OUT = 10
"""One photograph in so many is never trained on."""
BATCH = 64


def make(photographs: Photographs, trunk: ConditionTrunk, shards: int, folder: Path) -> None:
    """Write `folder/NNNN.safetensors` for those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [k for k in range(shards) if not (folder / f"{k:04}.safetensors").exists()]
    loader = DataLoader(_Shards(photographs, missing), batch_size=None, num_workers=1, prefetch_factor=4)
    parts: list[dict[str, Tensor]] = []
    for part in track(loader, "samples", total=len(missing) * SHARD // BATCH):
        parts.append({"features": features(trunk, part.pop("pixels")).half(), **part})
        if len(parts) * BATCH == SHARD:
            number = int(parts[0]["shard"])
            table = {k: torch.cat([p[k] for p in parts]) for k in parts[0] if k != "shard"}
            part_file = folder / f"{number:04}.part"
            save_file(table, part_file)
            part_file.rename(folder / f"{number:04}.safetensors")
            parts = []


def read(folder: Path, shards: int) -> dict[str, Tensor]:
    """`features` (N, D), `label` (N,) index into the names, `target` and `weight` (N, C), `held_out` (N,) bool."""
    tables = [load_file(folder / f"{k:04}.safetensors") for k in range(shards)]
    return {k: torch.cat([t[k] for t in tables]) for k in tables[0]}


@torch.inference_mode()
def features(trunk: ConditionTrunk, pixels: Tensor) -> Tensor:
    """(B, 3, SIZE, SIZE) uint8 -> (B, D) float32."""
    device = next(trunk.parameters()).device
    x = (pixels.to(device).float() / 127.5 - 1).to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        return trunk.raw(x).float().cpu()


def label_names(photographs: Photographs) -> tuple[str, ...]:
    """The COCO classes, then the ImageNet ones that are none of these."""
    whole = sorted({item.label for item in photographs.whole} - set(photographs.names))
    return (*photographs.names, *whole)


class _Shards(IterableDataset[dict[str, Tensor]]):
    """Batches of samples, all chance of a shard from its number."""

    def __init__(self, photographs: Photographs, numbers: list[int]) -> None:
        self.photographs, self.numbers = photographs, numbers

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.set_num_threads(1)
        p = self.photographs
        of = {name: k for k, name in enumerate(label_names(p))}
        held = {path for k, path in enumerate(sorted({i.path for i in (*p.objects, *p.whole)})) if k % HELD_OUT == 0}
        counts = {name: sum(i.label == name for i in p.objects) for name in p.names}
        odds = np.array([counts[i.label] ** -0.35 for i in p.objects])  # rare classes somewhat more often
        odds /= odds.sum()
        for number in self.numbers:
            rng = np.random.default_rng([number, 5])
            for _ in range(SHARD // BATCH):
                items = [self._item(rng, odds) for _ in range(BATCH)]
                samples = [draw(p, item, rng) for item in items]
                yield {
                    "shard": torch.tensor(number),
                    "pixels": torch.stack([s.pixels for s in samples]),
                    "label": torch.tensor([of[s.label] for s in samples]),
                    "target": torch.stack([s.target for s in samples]),
                    "weight": torch.stack([s.weight for s in samples]),
                    "held_out": torch.tensor([i.path in held for i in items]),
                }

    def _item(self, rng: np.random.Generator, odds: np.ndarray) -> Item:
        p = self.photographs
        return p.whole[rng.integers(len(p.whole))] if rng.random() < WHOLE else p.objects[rng.choice(len(odds), p=odds)]

