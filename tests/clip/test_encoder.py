from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from reliability_hooks.clip.encoder import CHUNK, load

open_clip = pytest.importorskip("open_clip")
WEIGHTS = "open_clip_model.safetensors"
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)  # of conftest.py
PROMPTS = ["a blurry photo of a dog", "a sharp photo of a dog", "fog"]


def pictures(n: int, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(3))


def normal(crops: torch.Tensor) -> torch.Tensor:
    return (crops - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture(scope="module")
def theirs(tiny: str) -> torch.nn.Module:
    return open_clip.create_model(tiny, require_pretrained=True).eval()


def test_pictures_as_open_clip(tiny: str, theirs: torch.nn.Module) -> None:
    encoder, crops = load(tiny), pictures(5)
    with torch.no_grad():
        expected = theirs.encode_image(normal(crops), normalize=True)
    assert torch.equal(encoder.images(crops), expected)
    assert (encoder.image_size, encoder.dim) == (32, 16)
    assert (encoder.mean, encoder.std) == (MEAN, STD)
    assert encoder.logit_scale == pytest.approx(1 / 0.07)


def test_the_whole_way_as_open_clips_own_transform(tiny: str, theirs: torch.nn.Module) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    from reliability_hooks.crops import crop
    from reliability_hooks.frame import View

    image = (pictures(1, 48)[0] * 255).byte()
    box = torch.tensor([[5.0, 9, 37, 41]])  # of the encoder's size: nothing is resampled
    cut = Image.fromarray(image[:, 9:41, 5:37].permute(1, 2, 0).numpy())
    transform = image_transform_v2(PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False)
    with torch.no_grad():
        expected = theirs.encode_image(transform(cut)[None], normalize=True)
    assert torch.allclose(load(tiny).images(crop(View(image / 255), box, 32)), expected, atol=1e-6)


def test_texts_as_open_clip(tiny: str, theirs: torch.nn.Module) -> None:
    tokens = open_clip.get_tokenizer(tiny)(PROMPTS)
    with torch.no_grad():
        expected = theirs.encode_text(tokens, normalize=True)
    encoder = load(tiny)
    assert torch.allclose(encoder.texts(PROMPTS), expected, atol=1e-5)
    assert torch.allclose(encoder.average([PROMPTS[:2], PROMPTS[2:]]),
                          normalize(torch.stack([expected[:2].mean(0), expected[2]]), dim=-1), atol=1e-5)
    assert encoder.texts([]).shape == encoder.average([]).shape == (0, 16)


def test_cells_of_a_timm_tower(tmp_path: Path, save: Callable[..., str]) -> None:
    tower = {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    encoder, crops = load(save(tmp_path, vision_cfg=tower)), pictures(3, 64)
    dense = encoder.dense(crops)
    assert dense is not None
    assert dense.shape == (3, 16, 2, 2)
    visual = encoder._model.visual
    for i, j in ((0, 0), (1, 0)):
        cell = visual.trunk.forward_features(normal(crops))[:, :, i : i + 1, j : j + 1]
        assert torch.allclose(dense[:, :, i, j], normalize(visual.head(visual.trunk.forward_head(cell)), dim=1),
                              atol=1e-5)


def test_no_cells(tmp_path: Path, save: Callable[..., str]) -> None:
    tower = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    encoder = load(save(tmp_path, vision_cfg=tower))
    assert encoder.dense(pictures(1, 160)) is None
    assert encoder.images(pictures(1, 160)).shape == (1, 16)


def test_dense_of_a_vit(tiny: str, theirs: torch.nn.Module) -> None:
    crops = pictures(2)
    dense = load(tiny).dense(crops)
    assert dense is not None
    assert dense.shape == (2, 16, 4, 4)
    visual = theirs.visual
    with torch.no_grad():
        tokens = visual.ln_post(visual.transformer(visual._embeds(normal(crops))))[:, 1:] @ visual.proj
    expected = normalize(tokens, dim=-1).transpose(1, 2).reshape(2, 16, 4, 4)
    assert torch.allclose(dense, expected, atol=1e-5)
    assert load(tiny).dense(crops[:0]).shape == (0, 16, 4, 4)


def test_memory_is_bounded_by_chunks(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen = load(tiny), []
    whole, model = encoder.images(pictures(300)), encoder._model
    inner = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda x: (seen.append(len(x)), inner(x))[1])
    assert torch.equal(encoder.images(pictures(300)), whole)
    assert seen == [CHUNK] * 4 + [300 - 4 * CHUNK]
    assert encoder.images(pictures(0)).shape == (0, 16)
    assert len(seen) == 5


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precision(tiny: str, precision: str) -> None:
    half, full = load(tiny, precision=precision), load(tiny)
    assert half is not full
    assert half.fingerprint["sha256"] != full.fingerprint["sha256"]
    pairs = [(half.images(pictures(4)), full.images(pictures(4))), (half.texts(PROMPTS), full.texts(PROMPTS))]
    for found, expected in pairs:
        assert found.dtype == torch.float32
        assert torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=1e-5)
        assert (found * expected).sum(1).min() > 0.999
    assert torch.isfinite(half.dense(pictures(1))).all()


def test_the_callers_modes_leave_no_mark(tiny: str) -> None:
    with torch.inference_mode():
        encoder = load(tiny, precision="fp32")
        texts = encoder.to("cpu").texts(["seen first in inference mode"])
    crops = pictures(2).requires_grad_()
    (encoder.images(crops) @ texts.T).sum().backward()
    assert crops.grad is not None
    assert crops.grad.abs().sum() > 0
    expected = encoder.images(pictures(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.images(pictures(2)), expected)


def test_knows_by_rows_of_zeros(tmp_path: Path, save: Callable[..., str]) -> None:
    name = save(tmp_path / "model")
    weights = load_file(tmp_path / "model" / WEIGHTS)
    tokenizer = open_clip.get_tokenizer(name)
    (fog,) = tokenizer.encode("fog")
    for token in (fog, 0):  # 0 is the padding
        weights["token_embedding.weight"][token] = 0
    save_file(weights, tmp_path / "model" / WEIGHTS)
    encoder = load(name)
    assert encoder.knows([*PROMPTS, "a dog in fog", ""]).tolist() == [True, True, False, False, True]
    assert encoder.knows([]).shape == (0,)


def test_knows_everything_else(tiny: str) -> None:
    assert load(tiny).knows(PROMPTS).all()


def test_embeddings_are_finite_on_extreme_pixels(tiny: str) -> None:
    extreme = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    assert load(tiny).images(extreme).isfinite().all()


def test_arguments_are_checked(tiny: str) -> None:
    encoder = load(tiny)
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        load(tiny, precision="int8")
    with pytest.raises(ValueError, match=r"crops must be \(N, 3, 32, 32\)"):
        encoder.images(torch.rand(1, 3, 16, 16))
    with pytest.raises(TypeError, match="list of texts"):
        encoder.texts("dog")
    with pytest.raises(TypeError, match="list of texts"):
        encoder.average(["dog"])
    with pytest.raises(ValueError, match="list of texts"):
        encoder.average([["dog"], []])
