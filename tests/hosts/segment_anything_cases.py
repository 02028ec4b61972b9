"""Seeded Segment Anything models of a few layers, by the frameworks' own classes, with masks that differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from .case import Case, photographs
from .spread import spread

SIDE, WIDTH = 128, 32
"""Of the models' square input, and of their embeddings."""
GRID = {"points_per_side": 3, "pred_iou_thresh": 0.05, "stability_score_thresh": 0.05, "box_nms_thresh": 1.1}
"""Settings of a generator under which an untrained model makes a few masks."""


class Once(nn.Module):
    """A pass through all parts of a model, for `spread`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> None:
        points = torch.tensor([[[40.0, 40.0]], [[80.0, 60.0]]]), torch.ones(2, 1, dtype=torch.int)
        two = hasattr(self.model, "sam_mask_decoder")
        prompt, decoder = (getattr(self.model, ("sam_" if two else "") + n) for n in ("prompt_encoder", "mask_decoder"))
        sparse, dense = prompt(points=points, boxes=None, masks=None)
        more: dict[str, Any] = {}
        if two:
            levels = self.model.forward_image(pixels)["backbone_fpn"]
            more = {"repeat_image": True, "high_res_features": levels[:-1]}
        embedding = levels[-1] if two else self.model.image_encoder(pixels)
        decoder(image_embeddings=embedding, image_pe=prompt.get_dense_pe(), sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense, multimask_output=True, **more)


def distinct(model: Any, folder: Path | None, gain: float = 1.0) -> Any:
    """With logits (`gain` times more) and predicted IoU that spread as those of a trained one."""
    image = torch.from_numpy(photographs(folder, ((SIDE, SIDE),))[0]).permute(2, 0, 1)[None] / 127.5 - 1
    last = [name for name, _ in model.named_modules() if ".iou_prediction_head.layers." in f".{name}"][-1]
    masks = tuple(f"output_hypernetworks_mlps.{k}.layers.2" for k in range(4))
    spread(Once(model.eval()), image, classes=masks, boxes=(last,))
    with torch.no_grad():
        for name in masks:
            [module] = [m for k, m in model.named_modules() if k.endswith(name)]
            module.weight.mul_(gain)
            module.bias.mul_(gain)
        model.get_submodule(last).weight.mul_(0.4)
        model.get_submodule(last).bias.add_(0.5)
    return model


def sam(folder: Path | None) -> Any:
    modeling = pytest.importorskip("segment_anything.modeling", reason="segment_anything is not installed")
    torch.manual_seed(0)
    encoder = modeling.ImageEncoderViT(
        depth=2, embed_dim=64, img_size=SIDE, num_heads=2, patch_size=16, use_rel_pos=True, global_attn_indexes=[1],
        window_size=4, out_chans=WIDTH, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    cells = (SIDE // 16, SIDE // 16)
    prompts = modeling.PromptEncoder(WIDTH, image_embedding_size=cells, input_image_size=(SIDE, SIDE), mask_in_chans=4)
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=2)
    decoder = modeling.MaskDecoder(transformer_dim=WIDTH, transformer=transformer, iou_head_depth=2,
                                   iou_head_hidden_dim=32)  # fmt: skip
    model = distinct(modeling.Sam(encoder, prompts, decoder), folder, 10.0)
    model.mask_threshold = 1.0  # another than that of SAM 2's predictor
    return model


def sam2(folder: Path | None) -> Any:
    base = pytest.importorskip("sam2.modeling.sam2_base", reason="sam2 is not installed")
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    torch.manual_seed(0)
    trunk = Hiera(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,),
                  window_pos_embed_bkg_spatial_size=(4, 4))  # fmt: skip
    neck = FpnNeck(PositionEmbeddingSine(WIDTH), WIDTH, [128, 64, 32, 16], fpn_top_down_levels=[2, 3])
    model = base.SAM2Base(
        ImageEncoder(trunk, neck, scalp=1), nn.Identity(), nn.Identity(), image_size=SIDE, num_maskmem=0,
        use_high_res_features_in_sam=True, iou_prediction_use_sigmoid=False, directly_add_no_mem_embed=True,
    )  # fmt: skip
    return distinct(model, folder)


def scaled(predictor: Any) -> Any:
    """With the sizes of feature maps, which SAM 2 has written down for 1024 pixels alone."""
    predictor._bb_feat_sizes = [(SIDE // s, SIDE // s) for s in (4, 8, 16)]
    return predictor


def sam_predictor(folder: Path | None) -> Any:
    model = sam(folder)
    from segment_anything import SamPredictor

    return SamPredictor(model)


def sam_generator(folder: Path | None, **options: Any) -> Any:
    model = sam(folder)
    from segment_anything import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(model, **{**GRID, **options})


def sam2_predictor(folder: Path | None) -> Any:
    model = sam2(folder)
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    return scaled(SAM2ImagePredictor(model))


def sam2_generator(folder: Path | None, **options: Any) -> Any:
    model = sam2(folder)
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    generator = SAM2AutomaticMaskGenerator(model, **{**GRID, **options})
    scaled(generator.predictor)
    return generator


def box_of(image: np.ndarray) -> np.ndarray:
    h, w = image.shape[:2]
    return np.array([0.2 * w, 0.3 * h, 0.7 * w, 0.8 * h])


def predict(predictor: Any, images: list[np.ndarray], nothing: bool = False) -> list[Any]:
    """One box for each image, and three answers to it."""
    assert not nothing
    found = []
    for image in images:
        predictor.set_image(image)
        output = predictor.predict(box=box_of(image))
        found.append({"output": output, "instances": getattr(predictor, "instances", None)})
    return found


def generate(generator: Any, images: list[np.ndarray], nothing: bool = False) -> list[Any]:
    floor, generator.pred_iou_thresh = generator.pred_iou_thresh, 1e9 if nothing else generator.pred_iou_thresh
    try:
        found = [{"output": generator.generate(image), "instances": getattr(generator, "instances", None)}
                 for image in images]  # fmt: skip
    finally:
        generator.pred_iou_thresh = floor
    return found


def tensors(found: dict[str, Any]) -> dict[str, Tensor]:
    output = found["output"]
    if isinstance(output, tuple):
        assert type(output) is tuple
        return {name: torch.as_tensor(part) for name, part in zip(("masks", "ious", "low"), output, strict=True)}
    own = ("segmentation", "bbox", "area", "predicted_iou", "point_coords", "stability_score", "crop_box")
    return {name: torch.as_tensor(np.array([record[name] for record in output])) for name in own}


def prompts(images: list[np.ndarray], nothing: bool = False) -> dict[str, Any]:
    """A box for each image, and three answers to it; `nothing` asks for no object."""
    return {"boxes": [np.zeros((0, 4)) if nothing else box_of(image) for image in images], "multimask": True}


def case(name: str, build: Callable[[Path | None], Any], run: Any, **options: Any) -> Case:
    return Case(name, build, run, tensors, lambda found: found["instances"], **options)


CASES = [
    case("segment_anything/predictor", sam_predictor, predict, prompts=prompts),
    case("segment_anything/generator", sam_generator, generate),
    case("sam2/predictor", sam2_predictor, predict, prompts=prompts),
]
MORE = [case("sam2/generator", sam2_generator, generate)]  # the checks of `test_segment_anything.py` only
