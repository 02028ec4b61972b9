"""Feature maps inside boxes."""

from __future__ import annotations

from math import nan

from torch import Tensor

from ..frame import View


def roi_maps(level: Tensor, view: View, boxes: Tensor, size: int) -> Tensor:
    """(N, C, size, size) float32: a feature map inside each box by RoIAlign (He et al. 2017).

    Args:
        level: (C, h, w), covering the whole view.
        view: The pixels.
        boxes: (N, 4) xyxy in original pixels; one that is not finite gives NaN.
        size: Cells of the grid on either side, each the mean of 9 samples at size 1 and of 4 else.
    """
    from torchvision.ops import roi_align

    inside = view.to_view(boxes.float())
    broken = ~inside.isfinite().all(1)
    height, width = view.pixels.shape[1:]
    scale = inside.new_tensor([level.shape[2] / width, level.shape[1] / height] * 2)
    samples = 3 if size == 1 else 2
    rois = roi_align(level[None].float(), [inside.nan_to_num() * scale], size, sampling_ratio=samples, aligned=True)
    filled: Tensor = rois.masked_fill(broken[:, None, None, None], nan)
    return filled
