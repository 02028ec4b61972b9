from __future__ import annotations

import pytest
import torch

from reliability_hooks import Instances

NAMES = {1: "cat", 7: "dog"}


@pytest.fixture
def instances() -> Instances:
    """Two objects with masks at half the size of the image, tracks and columns, NaN and a wide one among them."""
    masks = torch.zeros(2, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, :, :1] = True
    return Instances(
        boxes=torch.tensor([[6.0, 4.0, 18.0, 10.0], [0.0, 0.0, 2.0, 20.0]]),
        scores=torch.tensor([0.75, 0.25]),
        labels=torch.tensor([1, 7]),
        masks=masks,
        track_ids=torch.tensor([4, 5]),
        image_size=(20, 40),
        columns={
            "image/x": torch.tensor([1.0, torch.inf]),
            "wide": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            "reliability": torch.tensor([0.5, torch.nan]),
            "reliability_interval": torch.tensor([[0.25, 0.75], [torch.nan, torch.nan]]),
            "verdict": torch.tensor([1, 0]),
            "expected_iou": torch.tensor([0.5, 0.25]),
        },
    )
