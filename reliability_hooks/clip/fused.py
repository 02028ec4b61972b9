"""The embedded trunk rewritten for inference: the same function in fewer passes over memory."""

from __future__ import annotations

from itertools import pairwise

from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .trunk import ConditionTrunk


class Pointwise(nn.Module):
    """A convolution of 1 x 1 as one matrix product over all pixels; (N, C, h, w) in channels-last order."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        bias = convolution.bias
        self.weight = nn.Parameter(convolution.weight.detach()[:, :, 0, 0].t().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.permute(0, 2, 3, 1).reshape(-1, c) @ self.weight
        if self.bias is not None:  # addmm would copy it to every pixel first
            y.add_(self.bias)
        return y.view(n, h, w, -1).permute(0, 3, 1, 2)


class HalvingConvolution(nn.Conv2d):
    """A TensorFlow "same" convolution of stride 2 on maps of even sides, without a padded copy of the map.

    That padding has one row more at the end than at the beginning. The kernel with a row and a column of zeros before
    it, padded alike on both sides, sees the same.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        kernel = nn.functional.pad(convolution.weight.detach(), (1, 0, 1, 0))
        side = kernel.shape[-1]
        super().__init__(
            convolution.in_channels, convolution.out_channels, side, stride=2, padding=side // 2 - 1,
            groups=convolution.groups, bias=convolution.bias is not None, device="meta",
        )  # fmt: skip
        self.weight = nn.Parameter(kernel, requires_grad=False)
        self.bias = None if convolution.bias is None else nn.Parameter(convolution.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ValueError(f"this convolution takes maps of even sides, not {tuple(x.shape[-2:])}")
        return super().forward(x)


def fuse(trunk: nn.Module, side: int) -> None:
    """Rewrite a `ConditionTrunk` in place, in evaluation mode; others stay. It remains differentiable in its input.

    Each batch norm goes into the convolution before it.

    Args:
        trunk: Of an open_clip vision tower.
        side: Of the square pictures that it will see, in pixels.
    """
    if not isinstance(trunk, ConditionTrunk):
        return
    for parent in list(trunk.body.modules()):
        children = list(parent.named_children())
        for (name, layer), (after, norm) in pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                fused = fuse_conv_bn_eval(layer, norm)
                if isinstance(fused, Conv2dSame) and side % 32 == 0:  # all its maps have even sides then
                    fused = HalvingConvolution(fused)
                setattr(parent, name, Pointwise(fused) if fused.kernel_size == (1, 1) else fused)
                setattr(parent, after, norm.act)
