"""Seeded torchvision detectors, small and untrained, whose rows are as distinct as those of a trained one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from .case import SIZES, Case, photographs
from .spread import spread

OWN = {"boxes", "scores", "labels", "masks", "keypoints", "keypoints_scores"}

def stock(folder: Path | None, name: str, **options: Any) -> nn.Module:
    """A model of torchvision's own builders."""
    pytest.importorskip("torchvision")
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=5, **options)
    return spread(model.eval(), tensors_of(photographs(folder, SIZES[:1])))


def custom(folder: Path | None, name: str, **options: Any) -> nn.Module:
    """A detector class of torchvision around a narrow backbone, as users assemble their own."""
    detection = pytest.importorskip("torchvision.models.detection")
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    levels = range(1 if name.endswith("RCNN") else 2, 5)
    layers, channels = {f"layer{k}": str(i) for i, k in enumerate(levels)}, [2 ** (5 + k) for k in levels]
    body = resnet18(weights=None)
    if name == "SSD":
        backbone = IntermediateLayerGetter(body, layers)
        backbone.out_channels = channels
        model = detection.ssd.SSD(backbone, DefaultBoxGenerator([[2], [2, 3], [2]]), (160, 128), 5, **options)
    else:
        extra = None if name.endswith("RCNN") else LastLevelP6P7(64, 64)
        backbone = BackboneWithFPN(body, layers, channels, 64, extra)
        model = getattr(detection, name)(backbone, 5, **options)
    return spread(model.eval(), tensors_of(photographs(folder, SIZES[:1])))


def tensors_of(images: list[np.ndarray], like: Tensor | None = None) -> list[Tensor]:
    dtype = torch.float32 if like is None else like.dtype
    return [(torch.from_numpy(i).permute(2, 0, 1).float() / 255).to(dtype) for i in images]


def run(model: Any, images: list[np.ndarray], nothing: bool = False) -> list[Any]:
    holder = model.roi_heads if hasattr(model, "roi_heads") else model
    usual = holder.score_thresh
    holder.score_thresh = 2.0 if nothing else usual
    try:
        outputs: list[Any] = model(tensors_of(images, next(model.parameters())))
    finally:
        holder.score_thresh = usual
    return outputs


def case(name: str, build: Callable[..., nn.Module], score_is_probability: bool = True, **options: Any) -> Case:
    return Case(
        name=f"torchvision/{name}",
        build=partial(build, name=name, **options),
        run=run,
        tensors=lambda output: {k: v for k, v in output.items() if k in OWN},
        instances=lambda output: output.get("instances"),
        score_is_probability=score_is_probability,
        cast=lambda model, dtype: model.to(dtype),
        sizes=SIZES if build is custom else SIZES[:1],
    )


SMALL = {"min_size": 128, "max_size": 192}
RCNN = {**SMALL, "box_score_thresh": 0.05, "box_detections_per_img": 6, "rpn_post_nms_top_n_test": 200}
DENSE = {**SMALL, "score_thresh": 0.05, "detections_per_img": 20}
SSD = {"score_thresh": 0.05, "detections_per_img": 20}

CASES = [
    case("FasterRCNN", custom, **RCNN),
    case("MaskRCNN", custom, **RCNN),
    case("KeypointRCNN", custom, **RCNN),
    case("RetinaNet", custom, **DENSE),
    case("FCOS", custom, score_is_probability=False, **DENSE),
    case("SSD", custom, **SSD),
]
STOCK = [  # slower: the checks of `test_torchvision.py` only
    case("fasterrcnn_mobilenet_v3_large_320_fpn", stock, **RCNN),
    case("maskrcnn_resnet50_fpn_v2", stock, **RCNN),
    case("retinanet_resnet50_fpn", stock, **DENSE),
    case("fcos_resnet50_fpn", stock, score_is_probability=False, **DENSE),
    case("ssd300_vgg16", stock, **SSD),
    case("ssdlite320_mobilenet_v3_large", stock, **SSD),
]
