"""The vision trunk of the embedded CLIP: EfficientNet-Lite0 read at several depths.

A pooled end tells the class and has forgotten how the picture was taken; the first layers know noise, blur and light
(linear probes: `design/clip.md`). The trunk hands over both. Importing this module registers it with timm, so that
open_clip builds it from its name.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

EARLY = (16, 24, 40)
"""Channels of the first three stages; the stem before them has 32."""
GRID = 3
MIDDLE = 112
END = 1280


class ConditionTrunk(nn.Module):
    """EfficientNet-Lite0 (Liu et al. 2020; Tan & Le 2019) -> one standardised vector of what its depths see.

    In: (N, 3, H, W), normalised by mean .5 and deviation .5. Out: (N, `num_features`): mean and deviation of each
    channel of the stem and of the first three stages, the fifth stage pooled to 3 x 3 (where in the crop), the pooled
    end (what it is).
    """

    num_features = 2 * (32 + sum(EARLY)) + MIDDLE * GRID**2 + END
    default_cfg: dict[str, Any] = {"pool_size": (7, 7), "input_size": (3, 192, 192), "mean": (0.5,) * 3,  # noqa: RUF012
                                   "std": (0.5,) * 3}

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        self.standard = nn.BatchNorm1d(self.num_features, affine=False)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """What open_clip asks of every timm model; there is no classifier here."""
        if num_classes:
            raise ValueError("this trunk has no classifier: give it a projection")

    def raw(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_features), not standardised."""
        x = self.body.bn1(self.body.conv_stem(pixels))
        seen = [*_statistics(x)]
        for k, stage in enumerate(self.body.blocks):
            x = stage(x)
            if k < len(EARLY):
                seen += _statistics(x)
            elif k == 4:
                seen.append(nn.functional.adaptive_avg_pool2d(x.float(), GRID).flatten(1))
        end = self.body.bn2(self.body.conv_head(x))
        return torch.cat([*seen, end.float().mean((2, 3))], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        standard: Tensor = self.standard(self.raw(pixels).to(pixels.dtype)).clamp(-8, 8)
        return standard


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, h, w) -> (N, C) mean and (N, C) deviation of each channel."""
    x = x.float()
    mean = x.mean((2, 3))
    square = torch.linalg.vector_norm(x, dim=(2, 3)).square() / x[0, 0].numel()  # without a copy of x as x.square()
    return mean, (square - mean.square()).clamp(min=0).sqrt()


@register_model  # type: ignore[untyped-decorator]
def reliability_hooks_condition_trunk(pretrained: bool = False, **kwargs: Any) -> ConditionTrunk:
    """Called by timm.create_model; the weights come with the CLIP's own checkpoint."""
    return ConditionTrunk()
