from __future__ import annotations

from math import nan
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from reliability_hooks.clip.embed import CHUNK, Embed
from reliability_hooks.crops import crop
from reliability_hooks.frame import View
from reliability_hooks.instances import Instances

SIZE = (90, 120)
PIXELS = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[10.0, 10, 50, 60], [5, 5, 6, 6], [60, 20, 110, 80], [nan, 0, 40, 40], [500, 0, 560, 60]])
SEEN = [0, 2]


class Fake:
    """An encoder whose vectors are the mean colour."""

    image_size, mean = 16, (0.1, 0.2, 0.3)

    def __init__(self) -> None:
        self.calls: list[Tensor] = []

    def images(self, crops: Tensor) -> Tensor:
        self.calls.append(crops)
        return torch.nn.functional.normalize(crops.mean((2, 3)), dim=1)

    def dense(self, crops: Tensor) -> Tensor | None:
        return torch.nn.functional.normalize(crops[:, :, ::8, ::8], dim=1)


def instances(boxes: Tensor = BOXES, **fields: Tensor) -> Instances:
    n = len(boxes)
    return Instances(boxes, torch.rand(n), torch.zeros(n, dtype=torch.int64), image_size=SIZE, **fields)


def embed(found: Instances, pixels: Tensor = PIXELS) -> tuple[Embed, Fake]:
    fake = Fake()
    return Embed(fake, View(pixels), found), fake  # type: ignore[arg-type]


def test_each_way_of_cropping_is_embedded_once() -> None:
    made, fake = embed(instances())
    plain = made()
    assert made(1) is plain
    assert len(fake.calls) == 1
    expected = crop(View(PIXELS), BOXES[SEEN], 16)
    assert torch.equal(fake.calls[0], expected)
    made(ratio=2)
    made(mirrored=True)
    made(mirrored=True)
    assert len(fake.calls) == 3
    assert torch.equal(fake.calls[1], crop(View(PIXELS), BOXES[SEEN], 16, ratio=2))
    assert torch.equal(fake.calls[2], expected.flip(-1))


def test_what_is_too_small_is_nan_and_costs_nothing() -> None:
    made, fake = embed(instances())
    rows = made()
    assert made.too_small.tolist() == [False, True, False, True, True]
    assert torch.equal(rows.isnan().all(1), made.too_small)
    assert torch.equal(rows.isnan().any(1), made.too_small)
    assert len(fake.calls[0]) == 2
    assert made.crops().shape == (5, 3, 16, 16)
    assert made.crops().isfinite().all()
    assert torch.equal(made.crops(torch.tensor([2])), fake.calls[0][1:])
    dense = made.dense()
    assert dense is not None
    assert dense.shape == (5, 3, 2, 2)
    assert torch.equal(dense.isnan().any(1).any(1).any(1), made.too_small)


def test_masked() -> None:
    masks = torch.zeros(5, *SIZE, dtype=torch.bool)
    made, fake = embed(instances(masks=masks))
    made(masked=True)
    filled = torch.tensor(Fake.mean).view(3, 1, 1).expand(2, 3, 16, 16)
    assert torch.equal(fake.calls[0], filled)
    with pytest.raises(ValueError, match="no masks"):
        embed(instances())[0](masked=True)
    with pytest.raises(ValueError, match="no masks"):
        embed(instances(BOXES[:0]))[0](masked=True)


@pytest.mark.parametrize("boxes", [BOXES[:0], BOXES[[1, 3]]])
def test_nothing_to_embed(boxes: Tensor) -> None:
    made, _ = embed(instances(boxes))
    assert made().shape == (len(boxes), 3)
    assert made().isnan().all()
    assert made.crops().shape == (len(boxes), 3, 16, 16)
    dense = made.dense()
    assert dense is not None
    assert dense.shape == (len(boxes), 3, 2, 2)


def test_crops_are_made_in_chunks() -> None:
    made, fake = embed(instances(BOXES[:1].repeat(300, 1)))
    assert made().shape == (300, 3)
    assert [len(c) for c in fake.calls] == [CHUNK] * 4 + [300 - 4 * CHUNK]


def test_gradients_flow_to_the_pixels() -> None:
    pixels = PIXELS.clone().requires_grad_()
    made, _ = embed(instances(), pixels)
    made()[SEEN].sum().backward()
    assert pixels.grad is not None
    assert pixels.grad[:, 10:60, 10:50].abs().sum() > 0


def test_a_tower_without_cells() -> None:
    found = SimpleNamespace(image_size=16, mean=(0.0,) * 3, dense=lambda crops: None)
    assert Embed(found, View(PIXELS), instances()).dense() is None  # type: ignore[arg-type]


def test_with_a_real_encoder(tiny: str) -> None:
    from reliability_hooks.clip.encoder import load

    encoder = load(tiny)
    made = Embed(encoder, View(PIXELS), instances())
    assert torch.equal(made()[SEEN], encoder.images(crop(View(PIXELS), BOXES[SEEN], 32)))
    assert torch.allclose(made()[SEEN].norm(dim=1), torch.ones(2), atol=1e-5)
    assert Embed(encoder, View(PIXELS), instances(BOXES[:0])).dense().shape == (0, 16, 4, 4)  # type: ignore[union-attr]
