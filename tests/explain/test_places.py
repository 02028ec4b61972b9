from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from reliability_hooks.explain.places import hat, resample, smoothed
from reliability_hooks.frame import View


@pytest.mark.parametrize("size", [(7, 5), (24, 33)])
def test_a_map_of_the_whole_image_is_interpolated_as_by_torch(size: tuple[int, int]) -> None:
    values = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    view = View(torch.zeros(3, 40, 60), (2.0, 1.5), (4.0, 6.0))
    height, width = 24, 33
    boxes = view.to_view(torch.tensor([[0.0, 0, width, height]]))
    expected = interpolate(values[None], size, mode="bilinear")[0]
    torch.testing.assert_close(resample(values, boxes, view, (height, width), size), expected)


def test_padding_is_left_out_and_nothing_shows_outside_of_a_box() -> None:
    view = View(torch.zeros(3, 32, 32), (1.0, 1.0), (0.0, 8.0))
    whole = torch.zeros(1, 32, 32)
    whole[0, 8:24] = torch.arange(16.0)[:, None]
    boxes = torch.tensor([[0.0, 0, 32, 32]])
    torch.testing.assert_close(resample(whole, boxes, view, (16, 32))[0], torch.arange(16.0)[:, None].expand(16, 32))
    own = resample(torch.ones(2, 3, 3), torch.tensor([[4.0, 12, 8, 20], [torch.nan] * 4]), view, (16, 32))
    expected = torch.zeros(16, 32)
    expected[4:12, 4:8] = 1
    assert torch.equal(own[0], expected)
    assert bool((own[1] == 0).all())
    assert resample(whole[:0], boxes, view, (16, 32)).shape == (0, 16, 32)


def test_hat_weights_sum_to_one() -> None:
    weights = hat(torch.linspace(-3, 9, 50), 6)
    torch.testing.assert_close(weights.sum(1), torch.ones(50))
    torch.testing.assert_close(weights @ torch.arange(6.0), torch.linspace(-3, 9, 50).clamp(0, 5))


def test_smoothing_is_a_normalised_gaussian_of_the_size_asked_for() -> None:
    values = torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(0))
    boxes, reach = torch.tensor([[0.0, 0, 24, 36]]), torch.tensor([[4.0, 4.0], [0.0, 0.0]])  # cells of 2 x 4
    found = smoothed(values, boxes, reach)
    expected = torch.zeros(9, 12)
    for y in range(9):
        for x in range(12):
            weights = torch.tensor([[torch.exp(torch.tensor(-((y - i) ** 2) / 2 - ((x - j) ** 2) / 8))
                                     for j in range(12)] for i in range(9)])
            expected[y, x] = (weights * values[0]).sum() / weights.sum()
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], values[1])
    assert smoothed(values[:0], boxes, reach[:0]).shape == (0, 9, 12)
