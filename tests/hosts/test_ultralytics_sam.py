"""Ultralytics `SAM`: small seeded models of its own classes, as it builds none without weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.evaluation.datasets import GroundTruth
from reliability_hooks.evaluation.labels import OBJECT_IOU
from reliability_hooks.evaluation.masks import encode
from reliability_hooks.hosts.base import find_host, load

from .case import SIZES, photographs

SIDE, WIDTH = 128, 32
IMAGES = photographs(None, SIZES)
BOXES = [[20.0, 20.0, 100.0, 90.0], [30.0, 10.0, 90.0, 60.0]]
OPTIONS = {"imgsz": SIDE, "conf": 0.0, "verbose": False}


def tiny(weights: str) -> Any:
    """SAM, or SAM 2 where the file is called so; its masks are stable, and it is sure of them."""
    from ultralytics.models.sam.modules import decoders, encoders, sam, transformer

    torch.manual_seed(0)
    model: Any
    if "sam2" in weights:
        trunk = encoders.Hiera(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,),
                               window_pos_embed_bkg_spatial_size=(4, 4))  # fmt: skip
        neck = encoders.FpnNeck(WIDTH, [128, 64, 32, 16], fpn_top_down_levels=[2, 3])
        memory = nn.Identity()
        memory.d_model = WIDTH  # type: ignore[assignment]
        model = sam.SAM2Model(encoders.ImageEncoder(trunk, neck, scalp=1), memory, nn.Identity(),
                              image_size=SIDE, num_maskmem=0, use_high_res_features_in_sam=True,
                              directly_add_no_mem_embed=True)  # fmt: skip
        decoder = model.sam_mask_decoder
    else:
        cells = (SIDE // 16, SIDE // 16)
        encoder = encoders.ImageEncoderViT(
            depth=2, embed_dim=64, img_size=SIDE, num_heads=2, patch_size=16, use_rel_pos=True, window_size=4,
            global_attn_indexes=(1,), out_chans=WIDTH, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        two_way = transformer.TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=2)
        decoder = decoders.MaskDecoder(WIDTH, two_way, iou_head_depth=2, iou_head_hidden_dim=32)
        model = sam.SAMModel(encoder, encoders.PromptEncoder(WIDTH, cells, (SIDE, SIDE), 4), decoder)
    with torch.no_grad():
        decoder.iou_prediction_head.layers[-1].bias.add_(1.0)
        for head in decoder.output_hypernetworks_mlps:
            head.layers[-1].weight.mul_(300)
    return model.eval()


@pytest.fixture(scope="module", params=["sam_tiny.pt", "sam2_tiny.pt"], ids=["sam", "sam2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    build = pytest.importorskip("ultralytics.models.sam.build", reason="ultralytics is not installed")
    weights = tmp_path_factory.mktemp("sam") / request.param
    torch.save({}, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_sam", tiny)
        return load(str(weights))


def run(model: Any, **prompt: Any) -> Any:
    [result] = model.predict(np.ascontiguousarray(IMAGES[0][..., ::-1]), **OPTIONS, **prompt)
    return result


@pytest.mark.parametrize("prompt", [{"bboxes": BOXES}, {"points": [[60, 50], [90, 70]]}, {}],
                         ids=["boxes", "points", "everything"])  # fmt: skip
def test_results(model: Any, prompt: dict[str, Any]) -> None:
    bare = run(model, **prompt)
    with attach(model, Monitor(["sam"]), strict=True):
        hooked = run(model, **prompt)
    assert torch.equal(bare.boxes.data, hooked.boxes.data)
    assert (bare.masks is None) == (hooked.masks is None) == (len(bare.boxes) == 0)
    assert bare.masks is None or torch.equal(bare.masks.data, hooked.masks.data)
    assert type(run(model, **prompt)) is type(bare)
    found: Instances = hooked.instances
    assert len(found) == len(bare.boxes)
    assert len(found) > 0 or not prompt  # SAM 2 without training has no stable mask
    assert (found.labels == 0).all()
    assert torch.equal(found.scores, bare.boxes.conf.clamp(0, 1))
    assert torch.allclose(found.column("promptable/predicted_iou"), bare.boxes.conf)
    assert found.column("promptable/moved_iou").isfinite().all()
    assert found.column("mask_quality/stability").isfinite().all()
    assert found.column("image/brightness").isfinite().all()


def test_the_host_is_its_own(model: Any) -> None:
    assert find_host(model).name == "ultralytics.models.sam"
    with pytest.raises(FileNotFoundError):
        load("ultralytics:sam_b.pt")


def test_objects_that_are_asked_for(model: Any) -> None:
    boxes = np.array(BOXES, np.float32)
    masks = np.zeros((2, *IMAGES[0].shape[:2]), bool)
    masks[0, 20:90, 20:100] = masks[1, 10:60, 30:90] = True
    truth = GroundTruth(boxes, np.array([3, 5]), np.zeros(2, bool), encode(masks))
    nothing = GroundTruth(boxes[:0], np.zeros(0, np.int64), np.zeros(0, bool), [])
    with attach(model, Monitor(["promptable"]), strict=True) as handle:
        found, none = handle.host.predict_labelled(IMAGES[:1] * 2, [truth, nothing], imgsz=SIDE, jitter=0.0)
        [every] = handle.host.predict_labelled(IMAGES[:1], [truth], imgsz=SIDE, prompt="none")
    assert len(found) == 2
    assert found.masks is not None
    for row, mask in enumerate(masks):
        own = found.masks[row].numpy()
        assert float(found.column(OBJECT_IOU)[row]) == pytest.approx((own & mask).sum() / (own | mask).sum(), abs=1e-6)
    assert len(none) == 0
    assert OBJECT_IOU in none.columns
    assert "promptable/moved_iou" in none.columns
    assert (every.column(OBJECT_IOU) > 0).sum() <= 2


