"""Seeded Detectron2 models of the zoo's configs with narrow layers, whose rows are as distinct as a trained one's."""

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

CLASSES = 5
SIDES = (128, 192)
"""Least and most pixels of the sides that the models see."""
TINY: dict[str, Any] = {
    "MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "DATASETS.TEST": (), "INPUT.MIN_SIZE_TEST": SIDES[0],
    "INPUT.MAX_SIZE_TEST": SIDES[1], "MODEL.RESNETS.STEM_OUT_CHANNELS": 16, "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8, "MODEL.FPN.OUT_CHANNELS": 32, "MODEL.ROI_HEADS.NUM_CLASSES": CLASSES,
    "MODEL.RETINANET.NUM_CLASSES": CLASSES, "MODEL.RETINANET.NUM_CONVS": 1, "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (16, 16),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 200, "MODEL.RPN.POST_NMS_TOPK_TEST": 100, "TEST.DETECTIONS_PER_IMAGE": 8,
}  # fmt: skip
POINT = {"MODEL.POINT_HEAD.NUM_CLASSES": CLASSES, "MODEL.POINT_HEAD.FC_DIM": 16, "MODEL.POINT_HEAD.NUM_FC": 1,
         "MODEL.ROI_MASK_HEAD.FC_DIM": 64, "MODEL.ROI_MASK_HEAD.CONV_DIM": 8}  # fmt: skip
SIGMOID = {"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True}


def config(path: str, **more: Any) -> Any:
    """The config of the zoo at `path`, made small."""
    zoo = pytest.importorskip("detectron2.model_zoo", reason="detectron2 is not installed")
    from detectron2.config import get_cfg

    cfg = get_cfg()
    file = zoo.get_config_file(path) if path != "PointRend" else None
    if file is None:
        point_rend = pytest.importorskip("detectron2.projects.point_rend", reason="PointRend is not installed")
        point_rend.add_pointrend_config(cfg)
        cfg.merge_from_file(zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"))
        cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "",
                             "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True, "MODEL.ROI_HEADS.NAME", "PointRendROIHeads"])
    else:
        cfg.merge_from_file(file)
    cfg.merge_from_list([item for pair in {**TINY, **more}.items() for item in pair])
    return cfg


def bare(folder: Path | None, path: str, **more: Any) -> nn.Module:
    """A model alone."""
    cfg = config(path, **more)
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    return spread(build_model(cfg).eval(), inputs_of(photographs(folder, SIZES[:1])))


def with_masks(folder: Path | None, path: str) -> nn.Module:
    """One whose masks are not empty."""
    model: Any = bare(folder, path)
    model.roi_heads.mask_head.predictor.bias.data += 1.5
    return model


def predictor(folder: Path | None, path: str, **more: Any) -> Any:
    """A `DefaultPredictor`."""
    cfg = config(path, **more)
    from detectron2.engine import DefaultPredictor

    torch.manual_seed(0)
    made = DefaultPredictor(cfg)
    spread(made.model, inputs_of(photographs(folder, SIZES[:1])))
    return made


def fcos(folder: Path | None, path: str) -> nn.Module:
    """Made of a LazyConfig: the zoo has no yaml of it."""
    zoo = pytest.importorskip("detectron2.model_zoo", reason="detectron2 is not installed")
    from detectron2.config import LazyCall, instantiate
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import ResNet

    cfg = zoo.get_config(path).model
    cfg.backbone.bottom_up.stages = LazyCall(ResNet.make_default_stages)(depth=18, norm="FrozenBN")
    cfg.backbone.out_channels = cfg.backbone.top_block.in_channels = 32
    cfg.head.input_shape, cfg.head.conv_dims = [ShapeSpec(channels=32)] * 5, [32]
    cfg.num_classes, cfg.max_detections_per_image = CLASSES, 20
    torch.manual_seed(0)
    return spread(instantiate(cfg).eval(), inputs_of(photographs(folder, SIZES[:1])))


def inputs_of(images: list[np.ndarray], dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """What a data set mapper gives: BGR, resized, with the original size."""
    from detectron2.data import transforms as T

    resize = T.ResizeShortestEdge([SIDES[0]] * 2, SIDES[1])
    made = []
    for image in images:
        seen = resize.get_transform(image).apply_image(np.ascontiguousarray(image[..., ::-1]))
        pixels = torch.from_numpy(seen.astype("float32").transpose(2, 0, 1)).to(dtype)
        made.append({"image": pixels, "height": image.shape[0], "width": image.shape[1]})
    return made


def run(model: Any, images: list[np.ndarray], nothing: bool = False) -> list[Any]:
    net = model if isinstance(model, nn.Module) else model.model
    heads = getattr(net, "roi_heads", None)
    last = net if heads is None else heads.box_predictor
    holder = last[-1] if isinstance(last, nn.ModuleList) else last
    usual = holder.test_score_thresh
    holder.test_score_thresh = 2.0 if nothing else usual
    try:
        if net is not model:
            return [model(np.ascontiguousarray(image[..., ::-1])) for image in images]
        outputs: list[Any] = model(inputs_of(images, next(model.parameters()).dtype))
        return outputs
    finally:
        holder.test_score_thresh = usual


def tensors(output: dict[str, Any]) -> dict[str, Tensor]:
    found = output["instances"].get_fields()
    own = {"boxes": found["pred_boxes"].tensor, "scores": found["scores"], "labels": found["pred_classes"]}
    return {**own, **({"masks": found["pred_masks"]} if "pred_masks" in found else {})}


def case(name: str, build: Callable[..., Any], path: str, score_is_probability: bool = True, **options: Any) -> Case:
    return Case(
        name=f"detectron2/{name}",
        build=partial(build, path=path, **options),
        run=run,
        tensors=tensors,
        instances=lambda output: output["instances"].get("evidence") if output["instances"].has("evidence") else None,
        score_is_probability=score_is_probability,
        cast=None if build is predictor else lambda model, dtype: model.to(dtype),
    )


CASES = [
    case("FasterRCNN_FPN", bare, "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"),
    case("MaskRCNN_FPN", predictor, "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"),
    case("FasterRCNN_C4", bare, "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"),
    case("CascadeMaskRCNN", bare, "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"),
    case("RetinaNet", bare, "COCO-Detection/retinanet_R_50_FPN_1x.yaml", **{"TEST.DETECTIONS_PER_IMAGE": 20}),
    case("PointRend", bare, "PointRend", **POINT),
]
MORE = [  # slower, or like the others: the checks of `test_detectron2.py` only
    case("FCOS", fcos, "COCO-Detection/fcos_R_50_FPN_1x.py", score_is_probability=False),
    case("MaskRCNN_C4", with_masks, "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"),
    case("CascadeSigmoid", bare, "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", **SIGMOID),
    case("FasterRCNN_sigmoid", bare, "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", **SIGMOID),
    case("KeypointRCNN", bare, "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"),
]
