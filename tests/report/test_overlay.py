from __future__ import annotations

import numpy as np
import pytest
import torch

from reliability_hooks import Instances
from reliability_hooks.report.overlay import STOPS, UNKNOWN, caption, colour, draw


def test_colours_run_from_doubt_to_trust() -> None:
    assert colour(0.0) == tuple(STOPS[0])
    assert colour(1.0) == tuple(STOPS[-1])
    assert colour(float("nan")) == UNKNOWN
    assert len({colour(v) for v in np.linspace(0, 1, 11)}) == 11


def test_caption() -> None:
    assert "unknown" in caption("dog", 0.5, float("nan"))
    assert caption("dog", 0.871, 0.352, "blurred").endswith("0.35: blurred")


@pytest.mark.parametrize("size", [(480, 640), (1, 1), (60, 40), (3000, 2500)])
def test_a_box_is_drawn_in_its_colour(size: tuple[int, int]) -> None:
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    instances = Instances(
        boxes=torch.tensor([[0.1 * width, 0.4 * height, 0.9 * width, 0.9 * height], [float("nan")] * 4]),
        scores=torch.tensor([0.9, 0.5]),
        labels=torch.tensor([0, 1]),
        masks=torch.zeros(2, 8, 8, dtype=torch.bool),
        image_size=size,
        columns={"reliability": torch.tensor([1.0, 0.3])},
    )
    picture = draw(image, instances, {0: "a <b>"})
    assert not image.any()
    assert 640 <= max(picture.shape[:2]) <= 2000
    bottom = picture[round(0.9 * picture.shape[0]) - 1, picture.shape[1] // 2]
    if min(size) > 30:
        assert tuple(bottom) == colour(1.0)


def test_masks_are_tinted_and_an_empty_image_stays() -> None:
    image = np.full((640, 640, 3), 100, np.uint8)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 20:40, 20:40] = True
    instances = Instances(torch.tensor([[0.0, 0.0, 600.0, 600.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64),
                          masks=mask, columns={"reliability": torch.zeros(1)})
    picture = draw(image, instances, {})
    red, _, blue = picture[300, 300].astype(int)
    assert red > 120
    assert blue < 80
    assert (picture[500, 500] == 100).all()
    assert np.array_equal(draw(image, Instances.empty((640, 640)), {}, legend=False), image)
