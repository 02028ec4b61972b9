"""Make an untrained detector answer as distinctly as a trained one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

CLASS_LAYERS = ("cls_score", "cls_logits", "classification_head.module_list")
BOX_LAYERS = ("bbox_pred", "bbox_reg", "regression_head.module_list")


def spread(
    model: nn.Module, images: Any, classes: tuple[str, ...] = CLASS_LAYERS, boxes: tuple[str, ...] = BOX_LAYERS
) -> nn.Module:
    """Scale each layer to outputs of deviation 1 (LSUV, Mishkin & Matas 2016, eq. in algorithm 1), heads further.

    Untrained detectors answer with near-constant scores, and nothing could be told from rows that are all alike.
    """
    handles: dict[str, Any] = {}

    @torch.no_grad()
    def first_call(module: Any, args: tuple[Tensor], output: Tensor, name: str) -> Tensor:
        handles.pop(name).remove()
        gain = 2.5 if any(n in name for n in classes) else 0.5 if any(n in name for n in boxes) else 1.0
        deviation = float(output.std()) if output.numel() > 1 else 0.0
        module.weight.mul_(gain / deviation if deviation > 1e-6 else 1.0)
        if module.bias is not None:
            module.bias.normal_(std=0.1)
        adjusted: Tensor = module.forward(*args)
        return adjusted

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles[name] = module.register_forward_hook(partial(first_call, name=name))
    with torch.no_grad():
        model(images)
    for handle in handles.values():  # layers that this input does not reach
        handle.remove()
    return model
