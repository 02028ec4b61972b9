"""Models of Detectron2 with weights. Imported only where Detectron2 is wanted."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model


def build(cfg: Any) -> Any:
    """`build_model(cfg)` in eval mode with the weights that the config names."""
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    return model.eval()


def load_weights(model: Any, weights: str) -> None:
    """Load a checkpoint (`.pth`, `.pkl`, or an address that Detectron2 knows); an empty name loads nothing."""
    DetectionCheckpointer(model).load(weights)
