"""COCO greedy matching against pycocotools on real ground truth and against a naive loop."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability_hooks.evaluation import pairs
from reliability_hooks.evaluation.datasets import read_coco
from reliability_hooks.evaluation.matching import Matches, match

from .scenes import Arrays, pycoco, simulate


def one_iou(det: np.ndarray, gt: np.ndarray, crowd: bool) -> float:
    w = min(det[2], gt[2]) - max(det[0], gt[0])
    h = min(det[3], gt[3]) - max(det[1], gt[1])
    if not (w > 0 and h > 0):
        return 0.0
    area = (det[2] - det[0]) * (det[3] - det[1])
    gt_area = (gt[2] - gt[0]) * (gt[3] - gt[1])
    return float(w * h / (area if crowd else area + gt_area - w * h))


def naive(d: Arrays, threshold: float, agnostic: bool) -> tuple[list[int], list[float]]:
    """The rule in its own words: for each image, detection by detection. Returns matched row and best IoU."""
    index, best = [-1] * len(d["boxes"]), [0.0] * len(d["boxes"])
    used: set[int] = set()
    by_score = sorted(range(len(index)), key=lambda i: (-np.nan_to_num(d["scores"][i], nan=-9), d["labels"][i], i))
    for i in by_score:
        same = [
            j
            for j in sorted(range(len(d["gt_boxes"])), key=lambda j: (d["gt_labels"][j], j))
            if d["gt_image_ids"][j] == d["image_ids"][i]
            and (agnostic or d["gt_labels"][j] == d["labels"][i] >= 0)
            and not np.isnan(d["boxes"][i]).any()
            and not np.isnan(d["scores"][i])
        ]
        iou = {j: one_iou(d["boxes"][i], d["gt_boxes"][j], bool(d["gt_crowd"][j])) for j in same}
        best[i] = max((iou[j] for j in same if not d["gt_crowd"][j]), default=0.0)
        for want_crowd in (False, True):
            free = [
                j
                for j in same
                if d["gt_crowd"][j] == want_crowd
                and (want_crowd or j not in used)
                and iou[j] > 0
                and iou[j] >= min(threshold, 1 - 1e-10)
            ]
            if free and index[i] < 0:
                top = max(iou[j] for j in free)
                index[i] = [j for j in free if iou[j] == top][-1]
                used.add(index[i])
    return index, best


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(shared, seed, agnostic):
    dataset = read_coco(shared / "data/coco/instances_val2017.json", shared / "data/coco/val2017")
    data = simulate(dataset, seed)
    for threshold in (0.1, 0.5, 0.75, 1.0):
        ours = match(**data, iou_threshold=threshold, class_agnostic=agnostic)
        index, ignore = pycoco(data, threshold, agnostic)
        np.testing.assert_array_equal(ours.gt_index, index)
        np.testing.assert_array_equal(ours.ignore, ignore)
        np.testing.assert_array_equal(ours.tp, (index >= 0) & ~ignore)
        assert ours.tp.sum() > 50
        if threshold == 0.5:
            assert ours.ignore.sum() > 20  # crowds took part


coordinate = st.integers(0, 6).map(float)


@st.composite
def scenes(draw: st.DrawFn) -> Arrays:
    def some(prefix: str, count: int) -> Arrays:
        values = draw(
            st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=count, max_size=count)
        )
        boxes = np.array(values, float).reshape(count, 4)
        boxes[:, 2:] += boxes[:, :2]  # zero width is included
        ints = st.lists(st.integers(-1, 1), min_size=count, max_size=count)
        labels, images = np.array(draw(ints), int), np.array(draw(ints), int)
        return {f"{prefix}boxes": boxes, f"{prefix}labels": labels, f"{prefix}image_ids": images}

    n, g = draw(st.integers(0, 12)), draw(st.integers(0, 8))
    scores = draw(st.lists(st.sampled_from([0.1, 0.5, 0.5, 0.9, float("nan")]), min_size=n, max_size=n))
    crowd = draw(st.lists(st.booleans(), min_size=g, max_size=g))
    scene = {**some("", n), **some("gt_", g), "scores": np.array(scores, float), "gt_crowd": np.array(crowd, bool)}
    if n and draw(st.booleans()):
        scene["boxes"][draw(st.integers(0, n - 1)), draw(st.integers(0, 3))] = np.nan
    return scene


@settings(max_examples=100, deadline=None)
@given(scenes(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans(), st.sampled_from([1, 3, 1 << 19]))
def test_equals_the_naive_loop(scene, threshold, agnostic, chunk):
    before, pairs._CHUNK = pairs._CHUNK, chunk
    try:
        ours = match(**scene, iou_threshold=threshold, class_agnostic=agnostic)
    finally:
        pairs._CHUNK = before
    index, best = naive(scene, threshold, agnostic)
    np.testing.assert_array_equal(ours.gt_index, index)
    np.testing.assert_allclose(ours.best_iou, best)
    check_consistent(ours, scene)


def check_consistent(ours: Matches, scene: Arrays) -> None:
    crowd, hit = scene["gt_crowd"], ours.gt_index >= 0
    np.testing.assert_array_equal(hit, ours.tp | ours.ignore)
    assert not (ours.tp & ours.ignore).any()
    np.testing.assert_array_equal(ours.ignore[hit], crowd[ours.gt_index[hit]])
    np.testing.assert_array_equal(np.flatnonzero(ours.gt_matched), np.unique(ours.gt_index[hit]))
    iou = [
        one_iou(scene["boxes"][i], scene["gt_boxes"][j], crowd[j]) if j >= 0 else 0 for i, j in enumerate(ours.gt_index)
    ]
    np.testing.assert_allclose(ours.iou, iou)


BOX = np.array([[0.0, 0, 10, 10]])


def test_threshold_is_inclusive_and_zero_needs_overlap():
    half = np.array([[0.0, 0, 10, 5]])
    assert match(half, [0.9], [0], [1], BOX, [0], [1], iou_threshold=0.5).tp.all()
    far = np.array([[10.0, 0, 20, 10]])  # touches, without overlap
    result = match(far, [0.9], [0], [1], BOX, [0], [1], iou_threshold=0.0)
    assert not result.tp.any()
    assert not result.gt_matched.any()
    assert match(BOX, [0.9], [0], [1], BOX, [0], [1], iou_threshold=1.0).tp.all()


def test_duplicate_is_false_positive_with_its_best_iou():
    result = match(np.repeat(BOX, 2, 0), [0.8, 0.9], [0, 0], ["a", "a"], BOX, [0], ["a"])
    np.testing.assert_array_equal(result.tp, [False, True])
    np.testing.assert_array_equal(result.iou, [0, 1])
    np.testing.assert_array_equal(result.best_iou, [1, 1])
    assert "IoU >= 0.5" in result.rule
    assert "same class" in result.rule


def test_crowd_absorbs_many_but_only_as_second_choice():
    boxes = np.repeat(BOX, 3, 0)
    result = match(
        boxes, [0.9, 0.8, 0.7], [0] * 3, [1] * 3, np.repeat(BOX, 2, 0), [0, 0], [1, 1], gt_crowd=[True, False]
    )
    np.testing.assert_array_equal(result.gt_index, [1, 0, 0])
    np.testing.assert_array_equal(result.ignore, [False, True, True])


def test_nothing_is_ordinary():
    none = np.zeros((0, 4))
    result = match(none, [], [], [], BOX, [0], ["a"])
    assert result.tp.shape == result.iou.shape == (0,)
    np.testing.assert_array_equal(result.gt_matched, [False])
    assert not match(BOX, [0.5], [0], ["a"], none, [], []).tp.any()
    assert match([], [], [], [], [], [], []).gt_matched.shape == (0,)


def test_nan_and_unmapped_labels_never_match():
    boxes = np.array([[0.0, 0, 10, np.nan], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, np.inf, 10]])
    result = match(boxes, [0.9, np.nan, 0.5, 0.95], [0] * 4, [1] * 4, BOX, [0], [1])
    np.testing.assert_array_equal(result.tp, [False, False, True, False])
    np.testing.assert_array_equal(result.best_iou, [0, 0, 1, 0])
    assert not match(BOX, [0.9], [-1], [1], BOX, [-1], [1]).tp.any()
    assert match(BOX, [0.9], [3], [1], BOX, [-1], [1], class_agnostic=True).tp.all()


def test_other_ious_take_the_place_of_boxes():
    table = np.array([[0.2, 0.6], [0.9, 0.7]])
    result = match(
        np.repeat(BOX, 2, 0),
        [0.9, 0.8],
        [0, 0],
        [1, 1],
        np.repeat(BOX, 2, 0),
        [0, 0],
        [1, 1],
        pair_iou=lambda d, g: table[d, g],
    )
    np.testing.assert_array_equal(result.gt_index, [1, 0])
    np.testing.assert_array_equal(result.iou, [0.6, 0.9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((1, 5))}, "boxes must have shape"),
        ({"scores": [0.1, 0.2]}, "scores must have shape"),
        ({"gt_crowd": [True, False]}, "gt_crowd"),
        ({"iou_threshold": 1.5}, "iou_threshold"),
        ({"iou_threshold": float("nan")}, "iou_threshold"),
        ({"image_ids": ["1"]}, "mix numbers with strings"),
    ],
)
def test_bad_input(change, message):
    good: dict[str, Any] = {"boxes": BOX, "scores": [0.9], "labels": [0], "image_ids": [1]}
    good |= {"gt_boxes": BOX, "gt_labels": [0], "gt_image_ids": [1]}
    with pytest.raises(ValueError, match=message):
        match(**good | change)


def test_memory_stays_bounded_in_one_crowded_image():
    rng = np.random.default_rng(0)
    n, g = 4000, 1500
    corner, gt_corner = rng.integers(0, 4000, (n, 2)), rng.integers(0, 4000, (g, 2))
    boxes, gt_boxes = np.c_[corner, corner + 20], np.c_[gt_corner, gt_corner + 20]
    tracemalloc.start()
    match(boxes, rng.random(n), np.zeros(n), np.ones(n), gt_boxes, np.zeros(g), np.ones(g))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # the two indices and the IoU of all six million pairs alone take 144 MB
