from __future__ import annotations

import pytest
import torch

from reliability_hooks.evaluation.object_frame import cover, in_frame, to_image, window


def test_sums_as_by_many_samples() -> None:
    g = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 10, 12, generator=g)
    boxes = torch.tensor([[30.0, 20, 50, 60], [0, 0, 120, 100], [100, 90, 119, 99]])
    found = in_frame(maps, boxes, (100, 120), 6)
    fine = 40  # samples on each side of a cell
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        left, top, right, bottom = window((x1, y1, x2, y2))
        steps = (torch.arange(6 * fine) + 0.5) / (6 * fine)
        x, y = left + steps * (right - left), top + steps * (bottom - top)
        inside = ((y >= 0) & (y < 100))[:, None] & ((x >= 0) & (x < 120))
        sampled = maps[k][(y / 10).long().clamp(0, 9)][:, (x / 10).long().clamp(0, 11)] * inside
        area = (right - left) * (bottom - top) / (6 * fine) ** 2 / 100  # of a sample, in pixels of the map
        expected = sampled.view(6, fine, 6, fine).sum((1, 3)) * area
        torch.testing.assert_close(found[k], expected, atol=0.02 * float(expected.max()), rtol=0.02)
        share = inside.float().view(6, fine, 6, fine).mean((1, 3))
        torch.testing.assert_close(cover(boxes, (100, 120), 6)[k], share, atol=0.03, rtol=0)


def test_a_frame_that_holds_the_image_keeps_the_whole_sum() -> None:
    maps = torch.rand(1, 7, 9)
    whole = in_frame(maps, torch.tensor([[0.0, 0, 90, 70]]), (70, 90), 12)
    assert float(whole.sum()) == pytest.approx(float(maps.sum()), rel=1e-5)


def test_places_and_no_objects() -> None:
    box = torch.tensor([[10.0, 20, 30, 60]])
    assert to_image((1, 0, 2, 1), box).tolist() == [[30, 20, 50, 60]]
    assert window((10.0, 20.0, 30.0, 60.0)) == (-10, -20, 50, 100)
    assert in_frame(torch.zeros(0, 4, 4), torch.zeros(0, 4), (40, 40), 12).shape == (0, 12, 12)
    assert cover(torch.zeros(0, 4), (40, 40), 12).shape == (0, 12, 12)
