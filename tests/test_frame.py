from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from reliability_hooks.frame import View

numbers = st.floats(0.05, 8), st.floats(0.05, 8), st.floats(0, 100), st.floats(0, 100)


@given(*numbers)
def test_to_view_and_back(sx: float, sy: float, ox: float, oy: float) -> None:
    view = View(torch.zeros(3, 8, 8), (sx, sy), (ox, oy))
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0], [3.0, 4.0, 300.0, 200.0]], dtype=torch.float64)
    moved = view.to_view(boxes)
    assert torch.allclose(moved[0], torch.tensor([ox, oy, 10 * sx + ox, 20 * sy + oy], dtype=torch.float64))
    assert torch.allclose(view.to_image(moved), boxes, atol=1e-6)


def test_rgb_undoes_the_normalisation() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = torch.rand(3, 5, 6)
    normal = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    view = View(normal, mean=mean, std=std)
    assert torch.allclose(view.rgb(), image, atol=1e-6)
    assert torch.allclose(view.rgb(normal[None, :, 1:3]), image[None, :, 1:3], atol=1e-6)
    assert torch.equal(View(image).rgb(), image)
