"""From a trained detector to the files of the package: classes that are good enough, half precision, no pickle."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from reliability_hooks.evaluation.datasets import DetectionDataset
from reliability_hooks.hosts.torchvision_demo import CONFIG, WEIGHTS

from .precision import Precision, detections, precision

SHAPE: dict[str, Any] = {
    "min_size": 368, "max_size": 480, "channels": 96, "box_features": 384, "dropout": 0.2,
    "anchors": [[16, 24], [40, 64], [96, 144], [208, 300]],
}  # fmt: skip
"""Of the detector, beside its names: see `torchvision_demo.build`."""


def good(found: Precision, names: Sequence[str], enough: tuple[float, int]) -> list[str]:
    """The classes that are kept, the background's first.

    Raises:
        ValueError: There is none.
    """
    least, objects = enough
    keep = (found.objects >= objects) & (np.nan_to_num(found.box50) >= least)
    if not keep.any():
        raise ValueError(f"no class has {objects} objects and an AP50 of {least}: train longer, or ask for less")
    return [names[0], *(name for name, good in zip(names[1:], keep, strict=True) if good)]


def cut(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of the detector whose heads know only these of its classes, in eval mode."""
    model = copy.deepcopy(model).eval()
    rows = torch.tensor([model.names.index(name) for name in names])
    heads = model.roi_heads
    boxes, masks = heads.box_predictor, heads.mask_predictor
    for layer, taken in (
        (boxes.cls_score, rows), (boxes.bbox_pred, (4 * rows[:, None] + torch.arange(4)).flatten()),
        (masks.mask_fcn_logits, rows),
    ):  # fmt: skip
        layer.weight = nn.Parameter(layer.weight.detach()[taken])
        layer.bias = nn.Parameter(layer.bias.detach()[taken])
    boxes.cls_score.out_features, boxes.bbox_pred.out_features = len(rows), 4 * len(rows)
    masks.mask_fcn_logits.out_channels = len(rows)
    model.names = model.class_names = list(names)
    return model


def narrowed(model: nn.Module, dataset: DetectionDataset, enough: tuple[float, int]) -> tuple[nn.Module, Precision]:
    """The detector without the classes that are not good enough, and how good that then is.

    The worst class goes first, for each that goes lets others be seen that it was taken for.

    Raises:
        ValueError: None is left.
    """
    while True:
        figures = precision(detections(model, dataset), dataset, model.names)
        if len(good(figures, model.names, enough)) == len(model.names):
            return model, figures
        worst = int(np.where(figures.objects < enough[1], -1, np.nan_to_num(figures.box50)).argmin()) + 1
        print(f"without {model.names[worst]}: AP50 {figures.box50[worst - 1]:.3f}")
        model = cut(model, [name for k, name in enumerate(model.names) if k != worst])


def write(model: nn.Module, folder: Path) -> dict[str, Any]:
    """`config.json` and `model.safetensors`.

    Returns:
        Size in bytes and sha256 of the second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / WEIGHTS
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, file)
    (folder / CONFIG).write_text(json.dumps({"names": model.names, **SHAPE}, indent=2) + "\n", encoding="utf-8")
    return {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def chosen_and_other(
    found: list[dict[str, Any]], dataset: DetectionDataset, names: Sequence[str], enough: tuple[float, int],
    seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """How far the choice of classes flatters: mean AP50 on the half of the images where they were chosen, and beside.

    Each half chooses once, of all `names`, by half as many objects; classes without an object on the other half are
    left out of both means. NaN where nothing is left.
    """
    halves = [precision(found, dataset, names, {r.id for r in half}) for half in dataset.split(0.5, seed)]
    means = []
    for here, there in (halves, halves[::-1]):
        use = (here.objects >= enough[1] / 2) & (np.nan_to_num(here.box50) >= enough[0]) & (there.objects > 0)
        means.append((here.box50[use], there.box50[use]))
    first, second = (np.concatenate(parts) for parts in zip(*means, strict=True))
    return (float(first.mean()), float(second.mean())) if len(first) else (float("nan"), float("nan"))
