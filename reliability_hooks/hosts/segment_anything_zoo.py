"""Segment Anything models from what a user types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..export.optional import require


def load(package: str, spec: str, *, kind: str = "generator", device: str | None = None, **options: Any) -> Any:
    """A mask generator or a predictor.

    Args:
        package: `segment_anything` or `sam2`.
        spec: `ARCHITECTURE:WEIGHTS`: `vit_b:sam_vit_b_01ec64.pth`, or for sam2 the name of its config,
            `configs/sam2.1/sam2.1_hiera_t.yaml:sam2.1_hiera_tiny.pt`.
        kind: `generator`, which needs no prompts, or `predictor`, for `calibrate` with prompts of annotated objects.
        device: Where to; a GPU where there is one, without it.
        **options: Of the generator, such as `points_per_side`.

    Raises:
        ValueError: The specification or `kind` is not understood.
        FileNotFoundError: The weights are not there.
        ImportError: The package is not installed.
    """
    import torch

    architecture, colon, weights = spec.rpartition(":")
    if not colon or not architecture:
        example = "vit_b:weights.pth" if package == "segment_anything" else "configs/sam2.1/sam2.1_hiera_t.yaml:w.pt"
        raise ValueError(f"{spec!r} names no architecture; write {package}:ARCHITECTURE:WEIGHTS, such as {example}")
    if kind not in ("generator", "predictor"):
        raise ValueError(f"kind must be 'generator' or 'predictor', not {kind!r}")
    if kind == "predictor" and options:
        raise ValueError(f"unknown option {sorted(options)[0]!r}; a predictor takes none")
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no weights file {weights!r}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sam = require(package, "segment-anything")
    if package == "segment_anything":
        if architecture not in sam.sam_model_registry:
            raise ValueError(f"unknown architecture {architecture!r}; there are: {', '.join(sam.sam_model_registry)}")
        model = sam.sam_model_registry[architecture](checkpoint=weights).to(device)
        made = sam.SamPredictor if kind == "predictor" else sam.SamAutomaticMaskGenerator
    else:
        build = require("sam2.build_sam", "segment-anything").build_sam2
        model = build(architecture, weights, device=device)
        image = require("sam2.sam2_image_predictor", "segment-anything").SAM2ImagePredictor
        every = require("sam2.automatic_mask_generator", "segment-anything").SAM2AutomaticMaskGenerator
        made = image if kind == "predictor" else every
    return made(model, **options)
