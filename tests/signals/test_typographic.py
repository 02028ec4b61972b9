"""Writing on an object, and what a mirror changes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from reliability_hooks.clip.embed import Embed
from reliability_hooks.frame import Frame, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.typographic import BLANK, WRITTEN, Typographic

from .clip_fake import FakeEncoder, seen, unit


def test_text_is_high_where_the_picture_is_like_writing() -> None:
    encoder = FakeEncoder()
    sides = [encoder.average([[p.format(label="cup") for p in side]])[0] for side in (WRITTEN, BLANK)]
    given = Typographic()(seen(torch.stack(sides), [0, 0], {0: "cup"}, mirrored=unit(2)))["typographic/text"]
    odds = encoder.logit_scale * (1 - float(sides[0] @ sides[1]))
    torch.testing.assert_close(given, torch.tensor([odds, -odds]).sigmoid())


def test_flip_is_the_distance_of_the_mirror_image() -> None:
    x, mirrored = unit(4), unit(4, seed=1)
    given = Typographic()(seen(x, mirrored=mirrored, small=[False, False, True, False]))["typographic/flip"]
    expected = (1 - cosine_similarity(x, mirrored)).masked_fill(torch.tensor([False, False, True, False]), float("nan"))
    torch.testing.assert_close(given, expected, equal_nan=True)


@pytest.mark.parametrize(("symmetric", "zero"), [(True, True), (False, False)])
def test_real_crops(symmetric: bool, zero: bool) -> None:
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    if symmetric:
        pixels = (pixels + pixels.flip(2)) / 2
    found = Instances(torch.tensor([[0.0, 0, 64, 64], [0, 0, 4, 4]]), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    view = View(pixels)
    given = Typographic()(Frame(found, view, embed=Embed(FakeEncoder(), view, found)))  # type: ignore[arg-type]
    assert (given["typographic/flip"][0] < 1e-5) == zero
    assert all(column[1].isnan() for column in given.values())


def test_nothing_there() -> None:
    given = Typographic()(seen(unit(0)))
    assert [(c.shape, c.dtype) for c in given.values()] == [((0,), torch.float32)] * 2
