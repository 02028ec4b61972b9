"""What `explain.py` and `explain_checks.py` look at: a detector by its name, and what it finds in photographs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reliability_hooks.explain.explainer import EVIDENCE
from reliability_hooks.frame import Frame, Glance
from reliability_hooks.hook import Handle
from reliability_hooks.hosts.base import load
from reliability_hooks.images import read_image


def detector(spec: str, imgsz: int, conf: float) -> tuple[Any, dict[str, Any]]:
    """A detector of ultralytics or torchvision, and the options of its calls; the longer side is `imgsz` pixels."""
    model = load(spec)
    if hasattr(model, "transform"):  # torchvision's: size and score are the model's own
        model.transform.min_size, model.transform.max_size = (imgsz,), imgsz
        model.roi_heads.score_thresh = conf
        return model.to(memory_format=torch.channels_last), {}  # quicker; ultralytics does the same
    return model, {"imgsz": imgsz, "conf": conf}


def frames(
    handle: Handle, images: list[Path], options: dict[str, Any], bfloat16: bool = False
) -> Iterator[tuple[Path, Frame]]:
    """Each photograph's frame, while it can be asked."""
    for path in images:
        with handle.frames(*EVIDENCE) as seen:
            handle.predict([read_image(path)], **options)
            yield path, rounded(seen[0]) if bfloat16 else seen[0]


def rounded(frame: Frame) -> Frame:
    """The frame of the detector in bfloat16, where no gradient is asked for."""
    look = frame.look
    if look is None:
        return frame

    def seen(pixels: Tensor, parts: Collection[str] = (), rows: Tensor | None = None) -> Glance:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=not pixels.requires_grad):
            glance = look(pixels, parts, rows)
        found = {name: value.float() for name in ("logits", "boxes", "masks")
                 if (value := getattr(glance, name)) is not None}  # fmt: skip
        return replace(glance, **found)

    return replace(frame, look=seen)
