"""Seconds of each method for `explain.py`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reliability_hooks.explain.explainer import explain_frame
from reliability_hooks.explain.gradient import JointGradient
from reliability_hooks.explain.targets import TARGETS
from reliability_hooks.frame import Frame


def timed(
    frames: Iterable[tuple[Path, Frame]], methods: Mapping[str, tuple[str, int, dict[str, Any]]], each: int
) -> dict[str, float]:
    """Method -> seconds for a photograph, mean over the same ones, the methods in turn."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    for _, frame in frames:
        rows = torch.arange(min(len(frame.instances), each))
        for name, (method, budget, settings) in methods.items() if len(rows) else ():
            found[name].append(explain_frame(frame, rows, method=method, budget=budget, **settings).seconds)
    return {name: float(np.mean(values)) for name, values in found.items()}


def gradient_cost(frames: Iterable[tuple[Path, Frame]]) -> float:
    """Time of the joint gradient of all instances over one forward and backward pass; median over photographs."""
    ratios = []
    for _, frame in frames:
        n = len(frame.instances)
        if n == 0 or frame.look is None or frame.view is None:
            continue
        rows, method = torch.arange(n), JointGradient(exact=False)

        def plain(frame: Frame = frame, rows: torch.Tensor = rows) -> None:
            assert frame.look is not None
            assert frame.view is not None
            pixels = frame.view.pixels.clone().float()[None].requires_grad_()
            glance = frame.look(pixels, ("boxes", "masks", "layers"), rows)
            layer = next(iter((glance.layers or {}).values())).values
            total = glance.logits.sum() + (0 if glance.masks is None else glance.masks.mean())
            torch.autograd.grad(total, [layer], allow_unused=True)

        times: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(5):
            for which in (0, 1):
                start = time.perf_counter()
                if which:
                    method.heats(frame, rows, [TARGETS["joint"]], 1)
                else:
                    plain()
                times[which].append(time.perf_counter() - start)
        ratios.append(float(np.median(times[1]) / np.median(times[0])))
    return float(np.median(ratios)) if ratios else float("nan")
