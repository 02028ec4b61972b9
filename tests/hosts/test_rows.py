"""Row matching, candidates and pooling against loops written from their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reliability_hooks import Instances
from reliability_hooks.hosts import rows as module
from reliability_hooks.hosts.rows import RawRows, candidates, match_rows, pool_features, with_evidence


def raw_rows(boxes: Tensor, scores: Tensor) -> RawRows:
    """One box for each class: the row's own, moved by a pixel for each label."""
    return RawRows(
        scores=scores,
        logits=scores.logit(),
        decode=lambda rows, labels: boxes[rows] + labels[:, None],
        head="sigmoid",
        features=lambda rows, kept: torch.stack([rows.float(), kept[:, 0]], 1),
    )


def naive_match(boxes: Tensor, scores: Tensor, labels: Tensor, raw: RawRows) -> list[int]:
    found = []
    for box, score, label in zip(boxes, scores, labels, strict=True):
        fits = []
        for row in range(len(raw.scores)):
            decoded = raw.decode(torch.tensor([row]), label[None])[0]
            if abs(raw.scores[row, label] - score) <= 1e-5 and (decoded - box).abs().max() <= 0.05:
                fits.append(row)
        found.append(fits[0] if len(fits) == 1 else -1)
    return found


def scene(seed: int, rows: int, kept: int, classes: int, levels: int) -> tuple[Instances, RawRows, Tensor]:
    """Boxes and scores from a coarse grid, so that ties in one or the other, or both, are common."""
    random = torch.Generator().manual_seed(seed)
    boxes = torch.randint(0, levels, (rows, 4), generator=random).float() * 7
    scores = torch.randint(1, levels + 1, (rows, classes), generator=random) / (levels + 1)
    raw = raw_rows(boxes, scores)
    row = torch.randint(0, rows, (kept,), generator=random) if rows else torch.zeros(0, dtype=torch.int64)
    label = torch.randint(0, classes, (len(row),), generator=random)
    jitter = (torch.rand(len(row), 4, generator=random) - 0.5) * 0.05
    return Instances(boxes=raw.decode(row, label) + jitter, scores=scores[row, label], labels=label), raw, row


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(0, 30), kept=st.integers(0, 12), classes=st.integers(1, 4),
       levels=st.sampled_from([2, 3, 50]))
def test_match_rows_is_the_loop(seed: int, rows: int, kept: int, classes: int, levels: int) -> None:
    found, raw, _ = scene(seed, rows, kept, classes, levels)
    matched = match_rows(found.boxes, found.scores, found.labels, raw)
    assert matched.tolist() == naive_match(found.boxes, found.scores, found.labels, raw)
    assert matched.dtype == torch.int64


def test_match_rows_finds_distinct_rows() -> None:
    found, raw, row = scene(0, rows=5000, kept=100, classes=20, levels=10_000)
    assert torch.equal(match_rows(found.boxes, found.scores, found.labels, raw), row)


def test_identical_rows_are_not_guessed() -> None:
    boxes = torch.tensor([[0.0, 0, 5, 5], [0, 0, 5, 5], [9, 9, 20, 20]])
    raw = raw_rows(boxes, torch.tensor([[0.8], [0.8], [0.8]]))
    assert match_rows(boxes, raw.scores[:, 0], torch.zeros(3, dtype=torch.int64), raw).tolist() == [-1, -1, 2]


@pytest.mark.parametrize(("boxes", "score", "label"), [
    ([0.1, 0, 5, 5], 0.8, 0),  # another box
    ([0.0, 0, 5, 5], 0.8001, 0),  # another score
    ([0.0, 0, 5, 5], 0.8, 1),  # another class
    ([float("nan"), 0, 5, 5], 0.8, 0),
    ([0.0, 0, 5, 5], float("nan"), 0),
])
def test_what_fits_no_row(boxes: list[float], score: float, label: int) -> None:
    raw = raw_rows(torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([[0.8, 0.1]]))
    assert match_rows(torch.tensor([boxes]), torch.tensor([score]), torch.tensor([label]), raw).tolist() == [-1]


def test_equal_sums_of_coordinates_are_no_match() -> None:
    raw = raw_rows(torch.tensor([[0.0, 5, 10, 20]]), torch.tensor([[0.8]]))
    box = torch.tensor([[5.0, 0, 20, 10]])
    assert match_rows(box, torch.tensor([0.8]), torch.tensor([0]), raw).tolist() == [-1]


def test_evidence_comes_from_the_row() -> None:
    found, raw, row = scene(1, rows=50, kept=10, classes=3, levels=10_000)
    with_stranger = Instances.cat([found, found[:1].replace(boxes=found.boxes[:1] + 3)])
    given = with_evidence(with_stranger, raw).instances
    assert given.logits is not None
    assert given.features is not None
    assert torch.equal(given.logits[:10], raw.logits[row])
    assert torch.equal(given.features[:10], torch.stack([row.float(), found.boxes[:, 0]], 1))
    assert given.logits[10].isnan().all()
    assert given.features[10].isnan().all()
    assert given.head == "sigmoid"


@pytest.mark.parametrize(("rows", "kept"), [(0, 0), (7, 0)])
def test_nothing_kept_has_the_same_schema(rows: int, kept: int) -> None:
    found, raw, _ = scene(2, rows, kept, classes=3, levels=5)
    given = with_evidence(found, raw).instances
    assert given.logits is not None
    assert given.features is not None
    assert (given.logits.shape, given.features.shape) == ((0, 3), (0, 2))


def test_half_rows_give_float_evidence() -> None:
    found, raw, row = scene(3, rows=50, kept=10, classes=3, levels=40)
    half = RawRows(raw.scores.half(), raw.logits.half(), lambda r, k: raw.decode(r, k).half(), "sigmoid")
    kept = found.replace(boxes=half.decode(row, found.labels).float(), scores=half.scores[row, found.labels].float())
    given = with_evidence(kept, half).instances
    assert given.logits is not None
    assert given.logits.dtype == torch.float32
    assert torch.equal(given.logits, half.logits[row].float())
    assert given.features is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(0, 30), limit=st.sampled_from([1, 5, 3000]))
def test_candidates_are_the_highest_pairs(seed: int, rows: int, limit: int) -> None:
    random = torch.Generator().manual_seed(seed)
    raw = raw_rows(torch.rand(rows, 4, generator=random), torch.rand(rows, 3, generator=random) ** 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CANDIDATES", limit)
        found = candidates(raw)
    pairs = [(float(raw.scores[r, k]), r, k) for r in range(rows) for k in range(3) if raw.scores[r, k] > 0.01]
    pairs = sorted(pairs, reverse=True)[:limit]
    assert sorted(found.scores.tolist(), reverse=True) == [score for score, _, _ in pairs]
    expected = {(round(score, 6), k): raw.decode(torch.tensor([r]), torch.tensor([k]))[0] for score, r, k in pairs}
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        assert torch.equal(box, expected[round(float(score), 6), int(label)])


def naive_pool(level: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over the box of the map taken as constant in each of its cells."""
    c, h, w = level.shape
    x1, y1, x2, y2 = (float(v) * s for v, s in zip(box, (w / size[1], h / size[0]) * 2, strict=True))
    total, area = torch.zeros(c, dtype=torch.float64), 0.0
    for j in range(h):
        for i in range(w):
            overlap = max(0.0, min(x2, i + 1) - max(x1, i)) * max(0.0, min(y2, j + 1) - max(y1, j))
            total += level[:, j, i].double() * overlap
            area += overlap
    return total / area


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 4))
def test_pooling_is_the_mean_inside_the_box(seed: int, n: int) -> None:
    random = torch.Generator().manual_seed(seed)
    size = (64, 96)
    maps = [torch.randn(3, 8, 12, generator=random), torch.randn(2, 3, 5, generator=random)]
    low = torch.rand(n, 2, generator=random) * torch.tensor([60.0, 40])
    boxes = torch.cat([low, low + 2 + torch.rand(n, 2, generator=random) * torch.tensor([60.0, 40])], 1)
    pooled = pool_features(maps, boxes, size)
    assert pooled.shape == (n, 5)
    for row, box in zip(pooled, boxes, strict=True):
        expected = torch.cat([naive_pool(level, box, size) for level in maps])
        assert torch.allclose(row.double(), expected, atol=1e-4)


def test_pooling_agrees_with_roi_align_on_a_smooth_map() -> None:
    ops = pytest.importorskip("torchvision.ops")
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    level = torch.stack([x, y, x + 2 * y])
    boxes = torch.tensor([[20.0, 30, 90, 120], [33, 41, 77, 66]])
    aligned = ops.roi_align(level[None], [boxes / 8], 1, sampling_ratio=16, aligned=True).flatten(1)
    assert torch.allclose(pool_features([level], boxes, (160, 240)), aligned, atol=0.06)


def test_pooling_is_defined_for_degenerate_boxes() -> None:
    level = torch.arange(16.0).view(1, 4, 4)
    nan = float("nan")
    boxes = torch.tensor([[1.5, 0.5, 1.5, 0.5], [-9, -9, -5, -5], [9, 9, 12, 12], [nan] * 4, [0, 0, 4, 4]])
    pooled = pool_features([level], boxes, (4, 4))[:, 0]
    assert torch.allclose(pooled, torch.tensor([1.0, 0, 15, 0, 7.5]), atol=1e-3)
