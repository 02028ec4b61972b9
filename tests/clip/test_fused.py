from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("open_clip")

from reliability_hooks.clip.encoder import CHUNK_OF_MAPS, load
from reliability_hooks.clip.fused import HalvingConvolution, Pointwise, fuse
from reliability_hooks.clip.models import EMBEDDED, create, digest


def pictures(n: int, side: int = 192) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    return create(EMBEDDED)[0]


def test_embeddings_are_those_of_open_clips_model(plain: torch.nn.Module) -> None:
    crops = pictures(CHUNK_OF_MAPS + 2)
    with torch.no_grad():
        expected = plain.encode_image((crops - 0.5) / 0.5, normalize=True)
    assert (load().images(crops) - expected).abs().max() < 1e-5


def test_the_fingerprint_is_that_of_the_weights_as_they_came() -> None:
    model, _, config = create(EMBEDDED)
    assert load().fingerprint["sha256"] == digest(model, config)


@pytest.mark.parametrize(("side", "halved"), [(64, 5), (72, 0)])
def test_gradients_and_other_sizes(plain: torch.nn.Module, side: int, halved: int) -> None:
    trunk = copy.deepcopy(plain.visual.trunk)
    state = torch.random.get_rng_state()
    fuse(trunk, side)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(isinstance(m, HalvingConvolution) for m in trunk.modules()) == halved
    assert any(isinstance(m, Pointwise) for m in trunk.modules())
    gradients = []
    for tower in (plain.visual.trunk, trunk):
        crops = pictures(2, side).requires_grad_()
        tower(crops).sum().backward()
        gradients.append(crops.grad)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))
    with torch.no_grad():
        assert torch.allclose(trunk(pictures(2, side)), plain.visual.trunk(pictures(2, side)), atol=1e-4)


def test_odd_maps_are_refused_by_the_halving() -> None:
    layer = HalvingConvolution(torch.nn.Conv2d(2, 2, 3, stride=2, groups=2))
    with pytest.raises(ValueError, match="even sides"):
        layer(torch.rand(1, 2, 5, 4))


def test_other_trunks_stay() -> None:
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    fuse(other, 192)
    assert isinstance(other[0], torch.nn.Conv2d)
