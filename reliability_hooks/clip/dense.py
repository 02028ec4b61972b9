"""One embedding for each cell of the last feature map, where a tower can be read that way."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def cells(tower: Any, pixels: Tensor) -> Tensor | None:
    """(N, D, h, w), not normalised; None where the tower has no such cells.

    ViT of open_clip: the patch tokens through the last norm and the projection of the class token. timm ConvNets: each
    cell through the head as if it were a whole map of one cell.

    Args:
        tower: The `visual` of an open_clip model.
        pixels: (N, 3, s, s), normalised, in the tower's dtype.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(tower, VisionTransformer) and tower.attn_pool is None and tower.proj is not None:
        found = tower.forward_intermediates(pixels, indices=1, normalize_intermediates=True, intermediates_only=True)
        tokens: Tensor = found["image_intermediates"][-1]
        projection: Tensor = tower.proj
        return (tokens.movedim(1, -1) @ projection).movedim(-1, 1)
    if isinstance(tower, TimmModel) and hasattr(tower.trunk, "forward_head") and not hasattr(tower.head, "pool"):
        features: Tensor = tower.trunk.forward_features(pixels)
        if features.ndim != 4 or getattr(tower.trunk, "output_fmt", "NCHW") != "NCHW":
            return None
        n, c, h, w = features.shape
        each: Tensor = tower.head(tower.trunk.forward_head(features.movedim(1, -1).reshape(-1, c, 1, 1)))
        return each.reshape(n, h, w, each.shape[-1]).movedim(-1, 1)
    return None
