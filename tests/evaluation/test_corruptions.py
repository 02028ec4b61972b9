"""Synthetic conditions: each does what its name says, more with more severity, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reliability_hooks.evaluation.corruptions import CONDITIONS, corrupt

RANDOM = {"noise", "low_light", "fog"}


@pytest.fixture(scope="module")
def photograph(shared) -> Tensor:
    with Image.open(shared / "data/coco/val2017/000000000139.jpg") as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def error(image: Tensor, other: Tensor) -> float:
    return float((image.double() - other.double()).square().mean().sqrt())


def detail(image: Tensor) -> float:
    """Mean absolute difference of neighbours: what blur takes away and noise adds."""
    return float(image.float().diff(dim=-1).abs().mean())


@pytest.mark.parametrize("name", CONDITIONS)
def test_form_seed_and_severity(name, photograph):
    before = photograph.clone()
    results = [corrupt(photograph, name, severity) for severity in (0.2, 0.5, 0.8, 1.0)]
    assert torch.equal(photograph, before)
    assert all(r.dtype == torch.uint8 and r.shape == photograph.shape for r in results)
    errors = [error(photograph, r) for r in results]
    assert errors == sorted(errors)
    assert errors[0] < errors[1] < errors[2]
    assert torch.equal(results[1], corrupt(photograph, name))
    assert torch.equal(results[1], corrupt(photograph, name, seed=1)) == (name not in RANDOM)


@pytest.mark.parametrize("name", CONDITIONS)
def test_global_generator_is_left_alone(name, photograph):
    state = torch.get_rng_state()
    corrupt(photograph, name)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (17, 5)])
def test_tiny_images(name, size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert corrupt(image, name, 1.0).shape == image.shape


def test_each_is_what_its_name_says(photograph):
    plain = photograph.float()
    assert detail(corrupt(photograph, "blur")) < 0.6 * detail(photograph)
    assert detail(corrupt(photograph, "low_resolution")) < 0.7 * detail(photograph)
    assert detail(corrupt(photograph, "noise")) > 1.5 * detail(photograph)
    assert corrupt(photograph, "low_light").float().mean() < 0.4 * plain.mean()
    foggy = corrupt(photograph, "fog").float()
    assert foggy.mean() > plain.mean()
    assert foggy.std() < 0.7 * plain.std()


def test_noise_is_of_the_stated_strength():
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    severity, light = 0.2, 128 / 255
    noisy = corrupt(grey, "noise", severity).double() / 255
    stated = (light * severity**2 / 12 + (0.2 * severity) ** 2) ** 0.5
    assert float(noisy.std()) == pytest.approx(stated, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(light, abs=0.002)


def test_strength_scales_with_the_short_side(photograph):
    from torchvision.transforms.v2.functional import resize

    small = resize(photograph, [213, 320], antialias=True)
    for name in ("blur", "low_resolution"):
        one, other = corrupt(photograph, name, 0.6), corrupt(small, name, 0.6)
        # The same picture remains at half the size: what differs is far less than what the condition did.
        assert error(resize(one, [213, 320], antialias=True), other) < 0.25 * error(other, small)


def test_jpeg_leaves_its_blocks(photograph):
    def border_ratio(image: Tensor) -> float:
        """Steps across the borders of 8 x 8 blocks, relative to those inside."""
        step = image.float().diff(dim=-1).abs().mean((0, 1))
        border = torch.arange(len(step)) % 8 == 7
        return float(step[border].mean() / step[~border].mean())

    assert border_ratio(photograph) == pytest.approx(1, abs=0.05)
    assert border_ratio(corrupt(photograph, "jpeg", 0.5)) > 1.2
    assert border_ratio(corrupt(photograph, "jpeg", 1.0)) > 2


def test_clean_is_the_image(photograph):
    assert torch.equal(corrupt(photograph, "clean"), photograph)


def test_bad_input():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="unknown condition 'low_ligth', did you mean 'low_light'"):
        corrupt(image, "low_ligth")
    with pytest.raises(TypeError, match="uint8"):
        corrupt(image.float(), "blur")
    for shape in ((8, 8), (1, 8, 8), (3, 0, 8)):
        with pytest.raises(ValueError, match=r"shape \(3, H, W\)"):
            corrupt(torch.zeros(shape, dtype=torch.uint8), "blur")
    for severity in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="severity"):
            corrupt(image, "blur", severity)
