"""Seeded transformers detectors, tiny and untrained, whose rows are as distinct as those of a trained one."""

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

HIDDEN = [16, 24, 32, 40]
TINY = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_labels": 5,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2}
LEVELS = {"encoder_in_channels": HIDDEN[1:], "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3,
          "num_queries": 30, "out": ["stage2", "stage3", "stage4"]}
SIDE = 160
"""Of the square that the processors of RT-DETR and of D-FINE make."""


def rt_detr(t: Any, config: str = "RTDetr", **more: Any) -> tuple[nn.Module, Any]:
    options = {**TINY, **LEVELS, **more}
    backbone = t.RTDetrResNetConfig(embedding_size=16, hidden_sizes=HIDDEN, depths=[1] * 4, layer_type="basic",
                                    out_features=options.pop("out"))
    made = getattr(t, f"{config}Config")(backbone_config=backbone, freeze_backbone_batch_norms=False, **options)
    model = getattr(t, f"{config}ForObjectDetection")(made)
    return model, t.RTDetrImageProcessor(size={"height": SIDE, "width": SIDE})


def d_fine(t: Any) -> tuple[nn.Module, Any]:
    options = {**TINY, **LEVELS}
    backbone = t.HGNetV2Config(
        stem_channels=[3, 8, 8], hidden_sizes=HIDDEN, stage_in_channels=[8, *HIDDEN[:-1]],
        stage_mid_channels=[8] * 4, stage_out_channels=HIDDEN, stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[2] * 4, out_features=options.pop("out"),
    )
    made = t.DFineConfig(backbone_config=backbone, decoder_n_points=[2, 2, 2], freeze_backbone_batch_norms=False,
                         **options)
    return t.DFineForObjectDetection(made), t.RTDetrImageProcessor(size={"height": SIDE, "width": SIDE})


def detr(t: Any, config: str = "Detr", **more: Any) -> tuple[nn.Module, Any]:
    backbone = t.ResNetConfig(embedding_size=16, hidden_sizes=HIDDEN, depths=[1] * 4, layer_type="basic",
                              out_features=more.pop("out", ["stage4"]))
    made = getattr(t, f"{config}Config")(backbone_config=backbone, use_timm_backbone=False, encoder_layers=1,
                                         num_queries=20, **{**TINY, **more})
    processor = getattr(t, f"{config}ImageProcessor")(size={"shortest_edge": 128, "longest_edge": 192})
    return getattr(t, f"{config}ForObjectDetection")(made), processor


def swin(t: Any) -> Any:
    return t.SwinConfig(embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 2], window_size=4,
                        out_features=["stage1", "stage2", "stage3", "stage4"])


def mask2former(t: Any) -> tuple[nn.Module, Any]:
    made = t.Mask2FormerConfig(
        backbone_config=swin(t), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=2, decoder_layers=3, num_attention_heads=2, dim_feedforward=32, num_queries=20, num_labels=5,
    )
    size = {"shortest_edge": 128, "longest_edge": 192}
    return t.Mask2FormerForUniversalSegmentation(made), t.Mask2FormerImageProcessor(size=size)


def maskformer(t: Any) -> tuple[nn.Module, Any]:
    options = {**TINY, "encoder_layers": 1, "num_queries": 20}
    options.pop("num_labels")
    made = t.MaskFormerConfig(backbone_config=swin(t), fpn_feature_size=32, mask_feature_size=32,
                              decoder_config=t.DetrConfig(**options), num_labels=5)
    size = {"shortest_edge": 128, "longest_edge": 192}
    return t.MaskFormerForInstanceSegmentation(made), t.MaskFormerImageProcessor(size=size)


CLASSES = ("class_embed.1", "class_labels_classifier", "class_predictor")
BOXES = ("bbox_embed.1.layers.2", "bbox_predictor.layers.2")


def seeded(folder: Path | None, make: Callable[[Any], tuple[nn.Module, Any]]) -> Any:
    """A pipeline: the one object of transformers that holds a model and its processor."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    model, processor = make(transformers)
    pixels = processor(images=photographs(folder, SIZES[:1]), return_tensors="pt")["pixel_values"]
    for module in model.modules():
        if isinstance(module, nn.Embedding):  # queries
            nn.init.normal_(module.weight, std=2.0)
    spread(model.eval(), pixels, classes=CLASSES, boxes=BOXES)
    masks = hasattr(model, "class_predictor")
    if masks:
        model.class_predictor.weight.data *= 3  # the mask's own certainty, about .7, is multiplied with the score
    task = transformers.ImageSegmentationPipeline if masks else transformers.ObjectDetectionPipeline
    return task(model=model, image_processor=processor, device="cpu")


def run(pipe: Any, images: list[np.ndarray], nothing: bool = False, threshold: float = 0.3) -> list[Any]:
    """What users write, and not the pipeline's own call, which returns no tensors."""
    processor, model = pipe.image_processor, pipe.model
    inputs = processor(images=images, return_tensors="pt").to(model.dtype)
    outputs = model(**inputs)
    masks = "masks_queries_logits" in outputs
    post = processor.post_process_instance_segmentation if masks else processor.post_process_object_detection
    sizes = [image.shape[:2] for image in images]
    results: list[Any] = post(outputs, threshold=2.0 if nothing else threshold, target_sizes=sizes)
    return results


def tensors(result: dict[str, Any]) -> dict[str, Tensor]:
    if "boxes" in result:
        return {name: result[name] for name in ("boxes", "scores", "labels")}
    info = result["segments_info"]
    found = {name: torch.tensor([s[name] for s in info]) for name in ("id", "label_id", "score")}
    return {"segmentation": result["segmentation"], **found}


def cast(pipe: Any, dtype: torch.dtype) -> Any:
    pipe.model.to(dtype)
    return pipe


def case(name: str, make: Any, threshold: float = 0.3, **options: Any) -> Case:
    return Case(f"transformers/{name}", partial(seeded, make=make), partial(run, threshold=threshold), tensors,
                lambda result: result.get("instances"), cast=cast, **options)


CASES = [
    case("rt_detr", rt_detr),
    case("d_fine", d_fine),
    case("detr", detr, single_label=True),
    case("mask2former", mask2former, 0.1, score_is_probability=False),
]
MORE = [  # the checks of `test_transformers.py` only
    case("rt_detr_v2", partial(rt_detr, config="RTDetrV2")),
    case("conditional_detr", partial(detr, config="ConditionalDetr")),
    case("deformable_detr", partial(detr, config="DeformableDetr", out=["stage2", "stage3", "stage4"],
                                    num_feature_levels=3)),
    case("maskformer", maskformer, 0.1, score_is_probability=False),
]
