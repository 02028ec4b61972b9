"""The embedded demonstration detector: a small, weak Mask R-CNN of torchvision's own parts.

`assets/demo-detector/CARD.md` says what it was trained on and how far it can be believed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchvision.models.detection import MaskRCNN

FOLDER = Path(__file__).parents[1] / "assets" / "demo-detector"
MONITOR = FOLDER / "monitor"
"""A monitor of it, calibrated on detections from a score of `SCORE_THRESH`."""
SCORE_THRESH = 0.2
CONFIG, WEIGHTS = "config.json", "model.safetensors"
STAGES = ((1, 3, 1, 1, 16), (6, 3, 2, 2, 24), (6, 5, 2, 2, 40), (6, 3, 2, 3, 80), (6, 5, 1, 3, 112), (6, 5, 2, 4, 192),
          (6, 3, 1, 1, 320))  # fmt: skip
"""Expansion, kernel, stride, blocks and channels of each stage of EfficientNet-Lite0."""
LEVELS = {"stage2": 40, "stage4": 112, "end": 1280}
"""What the pyramid is built on, of strides 8, 16 and 32, and its channels."""


def load_demo_detector(folder: str | Path | None = None, score_thresh: float = 0.05) -> MaskRCNN:
    """The detector in eval mode, its class names in `.names` and `.class_names` (the first is `__background__`).

    It takes and gives what every detector of torchvision does: a list of (3, H, W) float RGB in [0, 1]; for each a
    dict of `boxes` (N, 4) xyxy pixels, `labels` (N,), `scores` (N,) and `masks` (N, 1, H, W) in [0, 1].

    Args:
        folder: With `config.json` and `model.safetensors`; None for the one in the package.
        score_thresh: Lowest score of a detection, in [0, 1]; that of torchvision without it.

    Raises:
        FileNotFoundError: One of the two files is not there.
        ValueError: One of them is damaged, or they do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = FOLDER if folder is None else Path(folder)
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    for file in (config_file, weights_file):
        if not file.is_file():
            raise FileNotFoundError(f"no {file}; python tools/train_demo_detector.py --out {folder} writes it")
    try:
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten: nobody's random numbers change
            model = build(**json.loads(config_file.read_text(encoding="utf-8")))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{config_file} is damaged: {error}") from error
    try:
        model.load_state_dict({name: value.float() for name, value in load_file(weights_file).items()})
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{weights_file} is damaged or does not fit {config_file}: {error}") from error
    if not 0 <= score_thresh <= 1:
        raise ValueError(f"score_thresh must lie in [0, 1], not {score_thresh}")
    model.roi_heads.score_thresh = score_thresh
    return model.eval()


def build(
    names: Sequence[str],
    min_size: int,
    max_size: int,
    channels: int,
    box_features: int,
    dropout: float,
    anchors: Sequence[Sequence[int]],
) -> MaskRCNN:
    """The untrained detector, in training mode.

    Args:
        names: Of the classes, the background's first.
        min_size: Of the shorter side of an image that is looked at, in pixels.
        max_size: Of the longer side.
        channels: Of the pyramid.
        box_features: Length of a box's feature vector.
        dropout: Of these features, in [0, 1).
        anchors: Sides in pixels for each level of strides 8, 16, 32 and 64; as many for each.

    Raises:
        ValueError: `names` repeats itself or does not start with the background.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    if list(names[:1]) != ["__background__"] or len(set(names)) < len(names):
        raise ValueError("names must differ from one another, and the first must be '__background__'")
    backbone = BackboneWithFPN(
        trunk(), {name: str(k) for k, name in enumerate(LEVELS)}, list(LEVELS.values()), channels,
        norm_layer=lambda width: nn.GroupNorm(8, width),
    )  # fmt: skip
    levels = [str(k) for k in range(len(LEVELS))]
    # boxes of 112 pixels go to stride 16: images are half as large as those that torchvision's 224 was made for
    box_pool = MultiScaleRoIAlign(levels, 7, 1, canonical_scale=112)
    mask_pool = MultiScaleRoIAlign(levels, 14, 1, canonical_scale=112)
    box_head = nn.Sequential(TwoMLPHead(channels * 49, box_features), nn.Dropout(dropout))
    model = MaskRCNN(
        backbone, min_size=min_size, max_size=max_size, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, anchors)), ((0.5, 1.0, 2.0),) * len(anchors)),
        rpn_pre_nms_top_n_train=500, rpn_post_nms_top_n_train=300, rpn_batch_size_per_image=128,
        rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=200,
        box_roi_pool=box_pool, box_head=box_head, box_predictor=FastRCNNPredictor(box_features, len(names)),
        box_batch_size_per_image=64, box_detections_per_img=50, mask_roi_pool=mask_pool,
        mask_head=MaskRCNNHeads(channels, (64, 64), 1), mask_predictor=MaskRCNNPredictor(64, 64, len(names)),
    )  # fmt: skip
    model.names = model.class_names = list(names)  # the second is what the hooks read
    return model


class InvertedResidual(nn.Module):
    """Wider by `expansion`, filtered channel by channel, narrow again (Sandler et al. 2018)."""

    def __init__(self, width: int, to: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = width * expansion
        widen = [_convolution(width, wide, 1)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen, _convolution(wide, wide, kernel, stride, groups=wide), _convolution(wide, to, 1, active=False)
        )
        self.residual = stride == 1 and width == to

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return x + found if self.residual else found


def trunk() -> nn.Sequential:
    """EfficientNet-Lite0 (Liu et al. 2020; Tan & Le 2019) without classifier, normalisations folded into convolutions.

    In: (N, 3, H, W) with sides that 32 divides, normalised by mean .5 and deviation .5. Out: (N, 1280, H/32, W/32).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_convolution(3, 32, 3, 2))
    width = 32
    for k, (expansion, kernel, stride, blocks, to) in enumerate(STAGES):
        layers[f"stage{k}"] = nn.Sequential(*(
            InvertedResidual(to if b else width, to, kernel, 1 if b else stride, expansion) for b in range(blocks)
        ))  # fmt: skip
        width = to
    layers["end"] = _convolution(width, LEVELS["end"], 1)
    return nn.Sequential(layers)


def _convolution(
    width: int, to: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    before = (kernel - stride) // 2  # TensorFlow's "same": of an even side, the odd pixel of padding comes last
    after = kernel - stride - before
    parts: list[nn.Module] = [nn.ZeroPad2d((before, after, before, after))] if before != after else []
    parts.append(nn.Conv2d(width, to, kernel, stride, 0 if parts else before, groups=groups))
    return nn.Sequential(*parts, *([nn.ReLU6(inplace=True)] if active else []))
