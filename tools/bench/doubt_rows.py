"""Rows for `doubt.py`: what was named, claimed and mapped for each detection, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from degradations import CAMERA, degrade, occlude
from PIL import Image
from rich.progress import track

from reliability_hooks.evaluation.datasets import read_coco
from reliability_hooks.evaluation.masks import decode_masks
from reliability_hooks.explain.cause import ABOVE, CLEAR, causes
from reliability_hooks.explain.counterfactual import LEAST, REMEDIES, Counterfactual, counterfactuals, helpful
from reliability_hooks.explain.doubt import doubt
from reliability_hooks.explain.hooked import answer, partners
from reliability_hooks.hook import attach
from reliability_hooks.hosts.base import load
from reliability_hooks.images import read_image
from reliability_hooks.instances import Instances
from reliability_hooks.monitor import Monitor
from reliability_hooks.signals.condition import words_of

LEVEL = 3
FELL = 0.1
OPTIONS = {"conf": 0.1}
EACH = 5
"""Detections of a picture for which remedies are claimed: what `explain` draws."""
HALVES = ("low_light", "noise", "blur", "fog")
STRONG = 5
"""Level at which half of an object is degraded."""
SMALLEST = 48
"""Of the sides of an object half of which is degraded, in pixels."""
MASKS = 32
Rows = list[dict[str, Any]]


class Watched:
    """The hooked detector, and what its monitor says."""

    def __init__(self, weights: Path, monitor: Path) -> None:
        self.monitor = Monitor.load(monitor)
        self.handle = attach(load(str(weights)), self.monitor, strict=True)
        self.words = words_of(self.monitor.signals)

    def __call__(self, *pictures: np.ndarray) -> list[Instances]:
        return [one for p in pictures for one in self.handle.predict([p], **OPTIONS)]

    def named(self, found: Instances) -> tuple[list[list[str]], list[str]]:
        """Names of the causes of each object, the first first, and the one that `predict` names."""
        ranked, clear = (
            [[c.name for c in row] for row in causes(self.monitor.judge, self.words, found, above)]
            for above in (ABOVE, CLEAR)
        )
        return ranked, [row[0] if row else "" for row in clear]


def told(watched: Watched, applied: str, number: int, clean: Instances, bad: Instances, only: int | None) -> Rows:
    """Those whose reliability fell, and what was named."""
    ranked, plain = watched.named(bad)
    was = answer(bad, clean)
    fell = (was - bad.reliability.cpu() >= FELL).nonzero()[:, 0].tolist()
    if only is not None:
        at = int(partners(clean[[only]], bad)[0])
        fell = [k for k in fell if k == at]
    return [
        {"image": number, "applied": applied, "first": float(ranked[k][:1] == [applied]), "worst": plain[k] == applied,
         "two": float(applied in ranked[k][:2]), "named": float(bool(ranked[k])), "cause": (ranked[k] or [""])[0]}
        for k in fell
    ]  # fmt: skip


def copied(picture: np.ndarray) -> np.ndarray:
    """Shrunk to nine tenths, at the lower right on grey: other pixels everywhere."""
    height, width = picture.shape[:2]
    small = Image.fromarray(picture).resize((round(width * 0.9), round(height * 0.9)), Image.Resampling.BICUBIC)
    out = np.full_like(picture, 114)
    out[height - small.height :, width - small.width :] = np.asarray(small)
    return out


def followed(found: Instances, picture: np.ndarray) -> Instances:
    """Where these detections lie in the copy."""
    sides = torch.tensor([picture.shape[1], picture.shape[0]]).repeat(2)
    small = torch.tensor([round(picture.shape[k] * 0.9) for k in (1, 0)]).repeat(2)
    return found.replace(boxes=found.boxes.cpu() * (small / sides) + (sides - small), masks=None)


def claimed(watched: Watched, applied: str, number: int, picture: np.ndarray, found: Instances) -> Rows:
    """The claims for the least reliable, and what becomes of each in the copy; and of those of a single look."""
    found = found[found.reliability.cpu().argsort()[:EACH].to(found.device)]
    tried = counterfactuals(watched.handle, picture, found, options=OPTIONS)
    claims = [next(iter(helpful(row)), None) for row in tried]
    looks = [row[0] if row[0].gain >= LEAST else None for row in tried]
    there = followed(found, picture)
    plain = answer(there, watched(copied(picture))[0])
    names = sorted({c.remedy for c in (*claims, *looks) if c})
    after = {name: answer(there, watched(copied(REMEDIES[name](picture)))[0]).nan_to_num(0.0) for name in names}
    was = plain.nan_to_num(0.0)

    def change(claim: Counterfactual | None, k: int) -> float:
        return float("nan") if claim is None else float(after[claim.remedy][k] - was[k])

    return [
        {"image": number, "applied": applied, "claim": float(claim is not None), "look": float(look is not None),
         "remedy": claim.remedy if claim else "", "gain": claim.gain if claim else float("nan"),
         "change": change(claim, k), "look_change": change(look, k),
         "noise": abs(float(plain[k]) - float(found.reliability[k]))}
        for k, (claim, look) in enumerate(zip(claims, looks, strict=True))
    ]  # fmt: skip


def halved(watched: Watched, number: int, picture: np.ndarray, clean: Instances, most: int) -> Rows:
    """The map of doubt of objects half of which was degraded, where that lowered their reliability."""
    sides = (clean.boxes[:, 2:] - clean.boxes[:, :2]).amin(1)
    rows = ((sides >= SMALLEST) & (clean.reliability >= 0.5)).nonzero()[:most, 0]
    name, rng = HALVES[number % len(HALVES)], np.random.default_rng(number)
    bad, shown, parts = degrade(picture, name, STRONG, number), picture.copy(), []
    for box in clean.boxes[rows].round().long().clamp(min=0).tolist():
        x1, y1, x2, y2 = box
        part = ((x1, y1, (x1 + x2) // 2, y2), ((x1 + x2) // 2, y1, x2, y2), (x1, y1, x2, (y1 + y2) // 2),
                (x1, (y1 + y2) // 2, x2, y2))[int(rng.integers(4))]  # fmt: skip
        shown[part[1] : part[3], part[0] : part[2]] = bad[part[1] : part[3], part[0] : part[2]]
        parts.append(part)
    found = watched(shown)[0] if parts else clean[:0]
    at = partners(clean[rows], found)
    after = answer(clean[rows], found)
    use = [k for k in range(len(parts)) if float(clean.reliability[rows[k]] - after[k]) >= FELL]
    if not use:
        return []
    made = doubt(watched.handle, shown, found[at[use].to(found.device)], budget=MASKS, changes=("restored",),
                 seed=number, options=OPTIONS)  # fmt: skip
    out = []
    for j, k in enumerate(use):
        values, window = made.maps["restored"][j].numpy(), made.windows[j].numpy()
        x, y = (window[a] + (np.arange(len(values)) + 0.5) / len(values) * (window[a + 2] - window[a]) for a in (0, 1))
        own, half = (
            ((y >= b[1]) & (y <= b[3]))[:, None] & ((x >= b[0]) & (x <= b[2]))
            for b in (made.instances.boxes[j].tolist(), parts[k])
        )
        top = own & (values >= np.quantile(values[own], 0.9))
        region = made.claims[j][0].region.numpy() & own if made.claims[j] else np.zeros_like(own)
        out.append({
            "image": number, "applied": name, "half": float(half[top].mean()), "area": float(half[own].mean()),
            "claim": float(bool(made.claims[j])), "holds": float(any(c.holds for c in made.claims[j])),
            "claim_half": float(half[region].mean()) if region.any() else float("nan"),
            "before": made.claims[j][0].before if made.claims[j] else float("nan"),
            "after": made.claims[j][0].after if made.claims[j] else float("nan"), "words": made.words[j],
        })  # fmt: skip
    return out


def collect(watched: Watched, data: Path, skip: int, photographs: int) -> tuple[Rows, Rows, Rows]:
    """Rows of the three questions."""
    every = list(read_coco(data / "instances_val2017.json", data / "val2017"))
    records = every[skip : skip + photographs]
    named, remedied, half = Rows(), Rows(), Rows()
    for number, record in enumerate(track(records, "photographs"), start=skip):
        picture = read_image(record.path)
        clean = watched(picture)[0]
        claims = {"clean", list(CAMERA)[number % len(CAMERA)]}
        remedied += claimed(watched, "clean", number, picture, clean)
        for name in CAMERA:
            bad = degrade(picture, name, LEVEL, number)
            found = watched(bad)[0]
            named += told(watched, name, number, clean, found, None)
            if name in claims:
                remedied += claimed(watched, name, number, bad, found)
        if (k := hideable(record, clean)) is not None:
            other = read_image(every[(number + 1) % len(every)].path)
            masks = decode_masks(record.truth, *picture.shape[:2])
            shown, visible = occlude(picture, masks[k[0]], other, 0.6, np.random.default_rng(number))
            if visible <= 0.6:
                named += told(watched, "occlusion", number, clean, watched(shown)[0], k[1])
        half += halved(watched, number, picture, clean, 3)
    return named, remedied, half


def hideable(record: Any, clean: Instances) -> tuple[int, int] | None:
    """The surest large detection of a labelled object: row of the truth and of the detections."""
    truth = record.truth
    if len(clean) == 0 or len(truth) == 0:
        return None
    known = Instances(torch.from_numpy(truth.boxes).float(), torch.ones(len(truth)), torch.from_numpy(truth.labels))
    at = partners(known, clean)
    large = torch.from_numpy((truth.boxes[:, 2:] - truth.boxes[:, :2]).min(1) >= SMALLEST) & (at >= 0)
    if not bool(large.any()):
        return None
    value = torch.where(large & ~torch.from_numpy(truth.crowd), clean.reliability.cpu()[at.clamp(min=0)], -1.0)
    return (int(value.argmax()), int(at[value.argmax()])) if float(value.max()) >= 0 else None
