"""Geometry against loops over instances and pixels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from reliability_hooks.frame import Frame
from reliability_hooks.instances import Instances
from reliability_hooks.signals.geometry import Geometry, areas, intersections


def instances(boxes, scores=None, labels=None, masks=None, image_size=(480, 640)) -> Instances:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    n = len(boxes)
    scores = torch.linspace(0.1, 0.9, n) if scores is None else torch.as_tensor(scores)
    labels = torch.zeros(n, dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    return Instances(boxes, scores, labels, masks=masks, image_size=image_size)


def geometry(*args, **kwargs) -> dict[str, torch.Tensor]:
    columns = Geometry()(Frame(instances(*args, **kwargs)))
    return {key.removeprefix("geometry/"): value for key, value in columns.items()}


def iou(a, b) -> float:
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union, common


def naive(boxes, scores, labels, image_size) -> list[dict[str, float]]:
    height, width = image_size
    rows = []
    for i, box in enumerate(boxes):
        x1, y1, x2, y2 = box
        w, h = max(x2 - x1, 1), max(y2 - y1, 1)
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        margins = [x1 / width, y1 / height, (width - x2) / width, (height - y2) / height]
        others = [j for j in range(len(boxes)) if j != i]
        overlaps = {j: iou(box, boxes[j]) for j in others}
        near = 0
        for j in others:
            ox, oy = (boxes[j][0] + boxes[j][2]) / 2, (boxes[j][1] + boxes[j][3]) / 2
            near += cx - w <= ox <= cx + w and cy - h <= oy <= cy + h
        rows.append({
            "area": math.log(w * h / (width * height)), "width": math.log(w), "height": math.log(h),
            "aspect": math.log(w / h), "center_x": cx / width, "center_y": cy / height,
            "border": max(min(margins), 0), "truncated": sum(m <= 0.005 for m in margins) / 4,
            "overlap": max([o[0] for o in overlaps.values()], default=0),
            "overlap_other_class": max([overlaps[j][0] for j in others if labels[j] != labels[i]], default=0),
            "covered": max([o[1] for o in overlaps.values()], default=0) / ((x2 - x1) * (y2 - y1)),
            "crowding": math.log(1 + near),
            "rank": sum(scores[j] > scores[i] for j in others) / max(len(others), 1),
            "count": math.log(1 + len(boxes)),
        })  # fmt: skip
    return rows


BOX = st.tuples(st.integers(-20, 600), st.integers(-20, 440), st.integers(2, 300), st.integers(2, 300))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(BOX, st.integers(0, 100), st.integers(0, 2)), max_size=8))
def test_equals_the_loop(rows) -> None:
    boxes = [(x + 0.25, y + 0.25, x + 0.25 + w, y + 0.25 + h) for (x, y, w, h), _, _ in rows]
    scores, labels = [s / 100 for _, s, _ in rows], [label for *_, label in rows]
    got = geometry(boxes, torch.tensor(scores, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64))
    for i, row in enumerate(naive(boxes, scores, labels, (480, 640))):
        for key, value in row.items():
            assert got[key][i].item() == pytest.approx(value, abs=2e-5), key
    assert all(got[key].isnan().all() for key in got if key.startswith("mask_"))


def test_intersections_against_torchvision() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, 4, generator=g) * 100 for n in (7, 9))
    a[:, 2:] += a[:, :2]
    b[:, 2:] += b[:, :2]
    common = intersections(a, b)
    torch.testing.assert_close(common / (areas(a)[:, None] + areas(b) - common), box_iou(a, b))


def test_masks_equal_the_loop() -> None:
    g = torch.Generator().manual_seed(1)
    masks = torch.rand(5, 12, 16, generator=g) > 0.6
    masks[1] = False
    masks[2] = True
    image = [0, 0, 640, 480.0]
    boxes = torch.tensor([image, [5, 5, 50, 50], image, [100, 50, 400, 300], [600, 400, 640, 480]])
    got = geometry(boxes, masks=masks)
    for i, mask in enumerate(masks):
        on = [(y, x) for y in range(12) for x in range(16) if mask[y, x]]
        inside = set(on)
        edges = sum((y + dy, x + dx) not in inside for y, x in on for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)))
        area = len(on) * 40 * 40
        box = boxes[i].tolist()
        assert got["mask_fill"][i].item() == pytest.approx(area / ((box[2] - box[0]) * (box[3] - box[1])), rel=1e-5)
        if not on:
            assert got["mask_boundary"][i].isnan()
            assert got["mask_fit"][i] == 0
            continue
        assert got["mask_boundary"][i].item() == pytest.approx(edges * 40 / math.sqrt(area), rel=1e-5)
        ys, xs = [p[0] for p in on], [p[1] for p in on]
        tight = (min(xs) * 40, min(ys) * 40, (max(xs) + 1) * 40, (max(ys) + 1) * 40)
        assert got["mask_fit"][i].item() == pytest.approx(iou(box, tight)[0], rel=1e-5)


@pytest.mark.parametrize("shape", [(60, 80), (120, 80), (480, 640), (960, 1280)])
def test_a_rectangle_reads_the_same_at_any_mask_resolution(shape) -> None:
    masks = torch.zeros(1, *shape, dtype=torch.bool)
    h, w = shape
    masks[:, h // 4 : h * 3 // 4, w // 4 : w * 3 // 4] = True  # 320 x 240 px of the image
    got = geometry([[160, 120, 480, 360]], masks=masks)
    assert got["mask_fill"].item() == pytest.approx(1, abs=0.03)
    assert got["mask_fit"].item() == pytest.approx(1, abs=0.03)
    assert got["mask_boundary"].item() == pytest.approx(2 * (320 + 240) / math.sqrt(320 * 240), rel=0.02)


def test_a_ragged_mask_has_a_longer_boundary() -> None:
    smooth = torch.zeros(1, 40, 40, dtype=torch.bool)
    smooth[:, 10:30, 10:30] = True
    ragged = smooth.clone()
    ragged[:, 10:30:2, 10:20] = False
    box = [[100, 100, 300, 300]]
    a, b = (geometry(box, masks=m, image_size=(400, 400))["mask_boundary"] for m in (smooth, ragged))
    assert a.item() == pytest.approx(4)
    assert b > 1.5 * a


def test_unknown_image_size_leaves_only_the_relative_columns_undefined() -> None:
    got = geometry([[10, 10, 50, 30]], image_size=None)
    undefined = {key for key, value in got.items() if value.isnan().any()}
    assert undefined == {
        "area", "center_x", "center_y", "border", "truncated", "mask_fill", "mask_boundary", "mask_fit"
    }  # fmt: skip


def test_a_box_without_extent_is_defined() -> None:
    got = geometry([[10, 10, 10, 10], [10, 10, 10, 10], [30, 30, 20, 20]])
    for key, value in got.items():
        assert value.isfinite().all() or key.startswith("mask_"), key
    assert got["overlap"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_box_that_is_not_finite_is_no_neighbour(bad: float) -> None:
    boxes = [[10, 10, 50, 40], [0, 0, bad, bad], [20, 15, 60, 45.0]]
    got, without = geometry(boxes), geometry([boxes[0], boxes[2]])
    for key in got:
        assert got[key][1].isnan(), key
        if key not in ("rank", "count"):
            torch.testing.assert_close(got[key][[0, 2]], without[key], equal_nan=True, msg=key)


def test_an_unknown_score_has_no_rank() -> None:
    got = geometry([[10, 10, 50, 30]] * 3, scores=[0.5, math.nan, 0.7])
    torch.testing.assert_close(got["rank"], torch.tensor([0.5, math.nan, 0.0]), equal_nan=True)
