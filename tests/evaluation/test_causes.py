"""Causes of errors: hand-made scenes, and a loop written from TIDE's definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability_hooks.evaluation.causes import CAUSES, causes
from reliability_hooks.evaluation.matching import match

GT = np.array([[0, 0, 20, 20], [40, 0, 60, 20], [0, 40, 60, 100]], float)


def said(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> tuple[list[str], list[int]]:
    n = len(boxes)
    found = causes(np.array(boxes).reshape(-1, 4), np.linspace(0.9, 0.5, n), labels, np.zeros(n, int), GT, [0, 1, 2],
                   np.zeros(3, int), crowd or [False] * 3)  # fmt: skip
    return [CAUSES[c] for c in found.code], found.partner.tolist()


def test_each_cause() -> None:
    boxes = [[0, 0, 20, 20], [1, 0, 21, 20], [10, 0, 30, 20], [40, 0, 60, 20], [200, 0, 220, 20], [50, 0, 70, 20],
             [0, 40, 60, 100]]  # fmt: skip
    names, partners = said(boxes, [0, 0, 0, 0, 0, 0, 2])
    assert names == ["right", "duplicate", "localisation", "class", "background", "class and place", "right"]
    assert partners == [0, 0, 0, 1, -1, 1, 2]
    assert said([[0, 40, 30, 60]], [2], [False, False, True]) == (["ignored"], [-1])
    assert said([], []) == ([], [])
    assert said([[float("nan")] * 4], [0]) == (["background"], [-1])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w, h = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    return w * h / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - w * h)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_as_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, g = rng.integers(0, 8), rng.integers(0, 6)

    def draw(k: int) -> np.ndarray:
        corner = rng.integers(0, 30, (k, 2))
        return np.c_[corner, corner + rng.integers(5, 30, (k, 2))].astype(float)

    boxes, gt = draw(n), draw(g)
    labels, truth, scores = rng.integers(0, 2, n), rng.integers(-1, 2, g), rng.random(n)
    where = np.zeros(n, int), np.zeros(g, int)
    found = causes(boxes, scores, labels, where[0], gt, truth, where[1], np.zeros(g, bool))
    tp = match(boxes, scores, labels, where[0], gt, truth, where[1]).tp
    for i in range(n):
        own = max((iou(boxes[i], b) for b, t in zip(gt, truth, strict=True) if t == labels[i]), default=0)
        other = max((iou(boxes[i], b) for b, t in zip(gt, truth, strict=True) if t != labels[i]), default=0)
        if tp[i]:
            expected = "right"
        elif 0.1 <= own < 0.5:
            expected = "localisation"
        elif other >= 0.5:
            expected = "class"
        elif own >= 0.5:
            expected = "duplicate"
        else:
            expected = "background" if other < 0.1 else "class and place"
        assert CAUSES[found.code[i]] == expected
        at = found.partner[i]
        assert (at < 0) == (expected == "background")
        if at >= 0:
            assert found.iou[i] == pytest.approx(iou(boxes[i], gt[at]))
            assert (truth[at] == labels[i]) == (not expected.startswith("class"))


def test_the_threshold_is_checked() -> None:
    with pytest.raises(ValueError, match="iou_threshold"):
        causes(GT, [1, 1, 1], [0, 1, 2], [0, 0, 0], GT, [0, 1, 2], [0, 0, 0], [False] * 3, 0.05)
