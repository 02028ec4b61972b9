"""Candidate statistics against a loop over pairs, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability_hooks.frame import Candidates, Frame
from reliability_hooks.instances import Instances
from reliability_hooks.signals import candidates as module
from reliability_hooks.signals.candidates import CandidateStatistics


def run(kept: Instances, pool: Candidates) -> dict[str, torch.Tensor]:
    columns = CandidateStatistics()(Frame(kept, candidates=pool))
    return {key.removeprefix("candidates/"): value for key, value in columns.items()}


def scene(n: int, m: int, seed: int, image_size=(480, 640)) -> tuple[Instances, Candidates]:
    g = torch.Generator().manual_seed(seed)
    center, size = torch.rand(n, 2, generator=g) * 400, torch.rand(n, 2, generator=g) * 150 + 10
    boxes = torch.cat([center - size / 2, center + size / 2], 1)
    near = torch.randint(n, (m,), generator=g) if n else torch.zeros(0, dtype=torch.int64)
    jitter = torch.randn(len(near), 4, generator=g) * torch.rand(len(near), 1, generator=g) * 40
    kept = Instances(boxes, torch.rand(n, generator=g), torch.randint(3, (n,), generator=g), image_size=image_size)
    labels = torch.randint(3, (len(near),), generator=g)
    return kept, Candidates(boxes[near] + jitter, torch.rand(len(near), generator=g), labels)


def naive(kept: Instances, pool: Candidates) -> list[dict[str, float]]:
    def clip(box):
        box = box.double().numpy()
        if kept.image_size is None:
            return box
        h, w = kept.image_size
        return np.clip(box, 0, [w, h, w, h])

    rows = []
    for i in range(len(kept)):
        a = clip(kept.boxes[i])
        w, h = a[2] - a[0], a[3] - a[1]
        support, rivals, partial = [], [], []
        for j in range(len(pool)):
            b, score = clip(pool.boxes[j]), pool.scores[j].item()
            common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
            union = w * h + max(b[2] - b[0], 0) * max(b[3] - b[1], 0) - common
            iou = common / union if union > 0 else 0
            same = bool(pool.labels[j] == kept.labels[i])
            if iou >= 0.45 and same:
                dx = ((b[0] + b[2]) - (a[0] + a[2])) / 2 / w
                dy = ((b[1] + b[3]) - (a[1] + a[3])) / 2 / h
                support.append((score, dx, dy, (b[2] - b[0] - w) / w, (b[3] - b[1] - h) / h, iou))
            elif iou >= 0.45:
                rivals.append(score)
            elif iou >= 0.1 and same:
                partial.append(score)
        s = np.array(support).reshape(-1, 6) if support else np.full((1, 6), math.nan)
        mean, std, low, high = s.mean(0), s.std(0), s.min(0), s.max(0)
        rival = max(rivals, default=0)
        rows.append({
            "count": math.log(1 + len(support)), "score_sum": sum(x[0] for x in support), "score_mean": mean[0],
            "score_std": std[0], "score_min": low[0], "score_max": high[0],
            **{f"{k}_offset": mean[1 + p] for p, k in enumerate("xywh")},
            **{f"{k}_std": std[1 + p] for p, k in enumerate("xywh")},
            "iou_mean": mean[5], "iou_min": low[5], "iou_std": std[5],
            "other_class": rival, "other_ratio": rival / kept.scores[i].item(), "other_sum": sum(rivals),
            "partial": max(partial, default=0),
        })  # fmt: skip
    return rows


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 6), st.integers(0, 60), st.integers(0, 10_000), st.sampled_from([(480, 640), (150, 200), None]))
def test_equals_the_loop(n: int, m: int, seed: int, image_size) -> None:
    kept, pool = scene(n, m, seed, image_size)
    got = run(kept, pool)
    for i, row in enumerate(naive(kept, pool)):
        assert set(row) == set(got)
        for key, value in row.items():
            assert got[key][i].item() == pytest.approx(value, abs=1e-4, rel=1e-4, nan_ok=True), key


def test_splitting_the_work_changes_nothing(monkeypatch) -> None:
    kept, pool = scene(9, 80, 3)
    whole = run(kept, pool)
    monkeypatch.setattr(module, "_MATRIX", 100)  # one kept box at a time
    torch.testing.assert_close(run(kept, pool), whole, rtol=0, atol=0, equal_nan=True)


def test_order_of_candidates_does_not_matter() -> None:
    kept, pool = scene(5, 200, 4)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    turned = Candidates(pool.boxes[order], pool.scores[order], pool.labels[order])
    torch.testing.assert_close(run(kept, turned), run(kept, pool), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_box_that_only_supports_itself() -> None:
    kept = Instances(torch.tensor([[10.0, 10, 50, 60]]), torch.tensor([0.7]), torch.tensor([2]), image_size=(100, 100))
    got = run(kept, Candidates(kept.boxes, kept.scores, kept.labels))
    assert got["count"].item() == pytest.approx(math.log(2))
    assert got["iou_mean"].item() == got["iou_min"].item() == 1
    for key in ("score_std", "x_std", "y_std", "w_std", "h_std", "iou_std", "x_offset", "w_offset", "other_ratio"):
        assert got[key].item() == 0, key


def test_no_supporters() -> None:
    kept, _ = scene(3, 0, 1)
    got = run(kept, Candidates.empty())
    for key in ("count", "score_sum", "other_class", "other_ratio", "other_sum", "partial"):
        assert got[key].tolist() == [0, 0, 0], key
    for key in ("score_mean", "score_min", "x_std", "iou_mean"):
        assert got[key].isnan().all(), key


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["box", "score"])
def test_broken_candidates_do_not_count(bad: float, where: str) -> None:
    kept, pool = scene(4, 40, 5)
    boxes, scores = kept.boxes[:2].clone(), torch.tensor([0.9, 0.9])
    if where == "box":
        boxes[:, 2] = bad
    else:
        scores[:] = bad
    more = Candidates(
        torch.cat([pool.boxes, boxes]), torch.cat([pool.scores, scores]), torch.cat([pool.labels, kept.labels[:2]])
    )
    torch.testing.assert_close(run(kept, more), run(kept, pool), equal_nan=True)


def test_a_score_of_zero_has_no_ratio() -> None:
    kept, pool = scene(1, 30, 6)
    got = run(kept.replace(scores=torch.zeros(1)), pool)
    assert got["other_ratio"].isnan().all()
    assert got["other_class"].isfinite().all()


def test_many_of_both_stay_small(monkeypatch) -> None:
    """The matrix of one step never holds more than the limit, or one kept box."""
    kept, pool = scene(40, 3000, 7)
    seen = []
    intersections = module.intersections
    monkeypatch.setattr(module, "_MATRIX", 10_000)
    monkeypatch.setattr(module, "intersections", lambda a, b: seen.append(len(a) * len(b)) or intersections(a, b))
    run(kept, pool)
    assert len(seen) == 14
    assert max(seen) <= 10_000
