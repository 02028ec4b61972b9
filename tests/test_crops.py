from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize

from reliability_hooks.crops import GREY, SMALLEST, content, crop, too_small, visible
from reliability_hooks.frame import View

PIXELS = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
SMOOTH = resize(torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(1)), [240, 320], antialias=True)


def box(*sides: float) -> Tensor:
    return torch.tensor([sides], dtype=torch.float32)


def test_a_box_of_the_output_size_is_copied() -> None:
    assert torch.equal(crop(View(PIXELS), box(7, 11, 39, 43), 32)[0], PIXELS[:, 11:43, 7:39])


@pytest.mark.parametrize("times", [2, 3, 5])
def test_whole_multiples_are_means(times: int) -> None:
    side = 10 * times
    found = crop(View(PIXELS), box(4, 6, 4 + side, 6 + side), 10)[0]
    means = torch.nn.functional.avg_pool2d(PIXELS[:, 6 : 6 + side, 4 : 4 + side], times)
    assert torch.allclose(found, means, atol=1e-6)


@pytest.mark.parametrize("sides", [(10, 20, 210, 190), (3, 5, 300, 235), (40, 40, 100, 90), (40, 40, 60, 75)])
def test_close_to_pillow_and_torchvision(sides: tuple[int, ...]) -> None:
    x1, y1, x2, y2 = sides
    found = crop(View(SMOOTH), box(*sides), 64)[0]
    cut = SMOOTH[:, y1:y2, x1:x2]
    theirs = resize(cut, [64, 64], antialias=True)
    picture = Image.fromarray((cut * 255).round().byte().permute(1, 2, 0).numpy())
    pillow = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    assert (found - theirs).abs().mean() < 0.003
    assert (found - theirs)[:, 2:-2, 2:-2].abs().max() < 0.02
    assert np.abs(found.numpy() - pillow).mean() < 0.005


def test_fine_detail_is_averaged_not_picked() -> None:
    checkers = ((torch.arange(60)[:, None] + torch.arange(80)) % 2).float().expand(3, 60, 80)
    found = crop(View(checkers), box(0, 0, 60, 60), 10)
    assert torch.allclose(found, torch.full_like(found, 0.5), atol=1e-5)


def test_letterboxed_views_show_the_same() -> None:
    padded = torch.full((3, 100, 160), 114 / 255)
    padded[:, 20:80, 40:120] = PIXELS
    boxed = View(padded, offset=(40, 20))
    boxes = torch.tensor([[7.0, 11, 39, 43], [-20, -20, 30, 30], [60, 40, 500, 500], [0, 0, 80, 60]])
    options = {"image_size": (60, 80), "ratio": 1.5}
    assert torch.equal(crop(boxed, boxes, 16, **options), crop(View(PIXELS), boxes, 16, **options))
    assert torch.equal(visible(boxed, box(0, 0, 80, 60), (60, 80), ratio=2), box(40, 20, 120, 80))
    assert content(boxed, (60, 80)) == (40, 20, 120, 80)


def test_scaled_views_show_the_same() -> None:
    double = View(SMOOTH, scale=(2.0, 2.0))
    assert torch.equal(crop(double, box(10, 20, 60, 70), 24), crop(View(SMOOTH), box(20, 40, 120, 140), 24))


def test_normalised_views_show_the_same() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    normal = View((PIXELS - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1), mean=mean, std=std)
    boxes = torch.tensor([[7.0, 11, 39, 43], [1, 2, 70, 50]])
    assert torch.allclose(crop(normal, boxes, 16), crop(View(PIXELS), boxes, 16), atol=1e-6)


def test_ratio_enlarges_about_the_centre_and_clips() -> None:
    view = View(PIXELS)
    assert torch.equal(crop(view, box(20, 20, 30, 30), 20, ratio=2), crop(view, box(15, 15, 35, 35), 20))
    assert torch.equal(visible(view, box(0, 0, 20, 20), ratio=2), box(0, 0, 30, 30))


def test_bad_boxes_give_finite_pixels_and_are_too_small() -> None:
    boxes = torch.tensor([
        [5, 5, 6, 6], [500, 500, 600, 600], [-90, -90, -5, -5], [nan, 0, 50, 50], [0, 0, inf, 50], [30, 30, 10, 10],
    ])  # fmt: skip
    view = View(PIXELS)
    for square in ("squash", "pad"):
        assert crop(view, boxes, 8, square=square, ratio=1.5).isfinite().all()
    assert too_small(view, boxes).all()
    assert torch.equal(visible(view, boxes)[3:5], torch.zeros(2, 4))
    assert crop(view, torch.zeros(0, 4), 8).shape == (0, 3, 8, 8)
    assert too_small(view, torch.zeros(0, 4)).shape == (0,)


def test_too_small_is_told_by_what_is_visible_in_the_view() -> None:
    boxes = torch.tensor([[0.0, 0, SMALLEST, SMALLEST], [0, 0, SMALLEST - 1, 50], [-30, 0, 20, 50]])
    assert too_small(View(PIXELS), boxes).tolist() == [False, True, True]
    assert too_small(View(PIXELS, scale=(0.5, 0.5)), boxes).all()


def test_masks() -> None:
    mask = torch.zeros(2, 60, 80, dtype=torch.bool)
    mask[0, 20:30, 10:25] = True
    boxes = box(10, 20, 26, 36).repeat(2, 1)
    kept, filled = crop(View(PIXELS), boxes, 16, masks=mask, fill=(0.1, 0.2, 0.3))
    expected = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).repeat(1, 16, 16)
    assert torch.equal(filled, expected)
    expected[:, :10, :15] = PIXELS[:, 20:30, 10:25]
    assert torch.equal(kept, expected)

    padded = torch.zeros(3, 100, 160)
    padded[:, 20:80, 40:120] = PIXELS
    coarse = mask[:, ::5, ::5]  # as a detector makes it: fewer cells over the same image
    for masks in (mask, coarse):
        again = crop(View(padded, offset=(40, 20)), boxes, 16, masks=masks, fill=(0.1, 0.2, 0.3), image_size=(60, 80))
        assert torch.equal(again[0], expected)


def test_pad_keeps_the_shape() -> None:
    found = crop(View(PIXELS), box(10, 20, 42, 36), 32, square="pad")[0]
    assert torch.equal(found[:, 8:24], PIXELS[:, 20:36, 10:42])
    assert torch.equal(found[:, :8], torch.tensor(GREY).view(3, 1, 1).expand(3, 8, 32))
    corner = crop(View(torch.ones(3, 60, 80)), box(0, 0, 80, 10), 32, square="pad")[0]  # half of its square is outside
    assert set(corner.unique().tolist()) == {0.5, 1.0}


def test_gradients_reach_the_pixels_inside_and_no_others() -> None:
    pixels = PIXELS.clone().requires_grad_()
    crop(View(pixels), box(10, 10, 50, 50), 16).sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad[:, 10:50, 10:50] > 0).all()
    assert pixels.grad[:, :9].abs().sum() == 0


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"masks must be \(1, h, w\)"):
        crop(View(PIXELS), box(0, 0, 9, 9), 8, masks=torch.zeros(2, 60, 80, dtype=torch.bool))
    with pytest.raises(ValueError, match="'squash' or 'pad'"):
        crop(View(PIXELS), box(0, 0, 9, 9), 8, square="crop")


SIDE = st.floats(-1e4, 1e4) | st.sampled_from([nan, inf, -inf])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE), max_size=4), st.floats(0.1, 10), st.sampled_from(["squash", "pad"]))
def test_any_box_stays_in_range(boxes: list, ratio: float, square: str) -> None:
    rows = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    found = crop(View(PIXELS), rows, 8, ratio=ratio, square=square)
    assert found.shape == (len(rows), 3, 8, 8)
    assert ((found >= 0) & (found <= 1 + 1e-5)).all()
    seen = visible(View(PIXELS), rows, ratio=ratio)
    assert ((seen >= 0) & (seen <= torch.tensor([80.0, 60, 80, 60]))).all()
    assert (seen[:, 2:] >= seen[:, :2]).all()
