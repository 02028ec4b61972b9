from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from reliability_hooks.evaluation.boundary import WIDTH, boundary_iou


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """As the authors' `mask_to_boundary`: erosion by a 3 x 3 square, as often as the boundary is wide, padded by 0."""
    d = max(1, round(WIDTH * np.hypot(*a.shape)))
    first, second = (m & ~binary_erosion(m, np.ones((3, 3)), d, border_value=0) for m in (a, b))
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 0.0


def test_as_by_erosion() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:90, :120]

    def blob() -> np.ndarray:
        cy, cx, ry, rx = rng.uniform(20, 70), rng.uniform(20, 100), *rng.uniform(5, 40, 2)
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    pairs = [(blob(), blob()) for _ in range(20)]
    pairs += [(np.ones((90, 120), bool),) * 2, (np.zeros((90, 120), bool), blob()), (np.zeros((90, 120), bool),) * 2]
    first, second = (torch.from_numpy(np.stack([p[k] for p in pairs])) for k in (0, 1))
    expected = [reference(a, b) for a, b in pairs]
    np.testing.assert_allclose(boundary_iou(first, second).numpy(), expected, atol=1e-6)
    assert max(expected[:20]) > 0.05


def test_a_large_object_with_a_wrong_outline() -> None:
    truth, found = torch.zeros(2, 1, 200, 200, dtype=torch.bool)
    truth[0, 20:180, 20:180] = True
    found[0, 28:172, 28:172] = True
    area = float((truth & found).sum() / (truth | found).sum())
    assert area == pytest.approx(0.81)
    assert float(boundary_iou(truth, found)) < 0.2


def test_none_and_other_shapes() -> None:
    assert boundary_iou(torch.zeros(0, 5, 5) > 0, torch.zeros(0, 5, 5) > 0).shape == (0,)
    with pytest.raises(ValueError, match="pairs"):
        boundary_iou(torch.zeros(1, 5, 5) > 0, torch.zeros(1, 5, 6) > 0)
