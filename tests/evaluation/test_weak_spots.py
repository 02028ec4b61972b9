"""Figures of spots by their formula, on detections made up so that the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reliability_hooks.evaluation.causes import CAUSES
from reliability_hooks.evaluation.shortcuts import Suspect
from reliability_hooks.evaluation.weak_spot_groups import (
    condition_groups,
    context_groups,
    difference,
    excess,
    failure_groups,
    outline_groups,
    shortcut_groups,
    total_groups,
)
from reliability_hooks.evaluation.weak_spots import IMAGES, Judged, counted, ranked

NAMES = {0: "cat", 1: "dog", 2: "cup"}


def judged(n: int = 120, images: int = 30, seed: int = 0, **changes: Any) -> Judged:
    """All right, the same evidence everywhere but for noise."""
    rng = np.random.default_rng(seed)
    plain: dict[str, Any] = {
        "image": np.repeat(np.arange(images), n // max(images, 1)), "labels": np.tile([0, 1, 2], n)[:n],
        "scores": np.full(n, 0.8), "boxes": np.tile([0.0, 0, 50, 50], (n, 1)), "images": images,
        "cause": np.zeros(n, int), "partner": np.arange(n), "iou": np.full(n, 0.9), "size": rng.random(n),
        "area": np.full(n, 2500.0), "mask_iou": np.full(n, 0.9), "boundary_iou": np.full(n, 0.8),
        "outside": {"class": rng.normal(0.3, 0.02, n)}, "outside_true": np.full(n, 0.3),
        "reliability": np.full(n, np.nan), "conditions": {}, "gt_boxes": np.tile([0.0, 0, 50, 50], (n, 1)),
        "gt_labels": np.tile([0, 1, 2], n)[:n], "gt_image": np.repeat(np.arange(images), n // max(images, 1)),
    }  # fmt: skip
    return Judged(**{**plain, **changes})


def test_failures_by_cause_weighed_by_confidence() -> None:
    data = judged()
    cause, scores, gt = data.cause.copy(), data.scores.copy(), data.gt_labels.copy()
    dogs = np.flatnonzero(data.labels == 1)[:12]
    cause[dogs], gt[dogs], scores[dogs] = CAUSES.index("class"), 0, np.linspace(0.4, 0.95, 12)
    cups = np.flatnonzero(data.labels == 2)[:2]
    cause[cups] = CAUSES.index("background")
    cause[-1] = CAUSES.index("ignored")
    partner = np.where(np.isin(cause, [CAUSES.index("background"), CAUSES.index("ignored")]), -1, data.partner)
    data = judged(cause=cause, scores=scores, gt_labels=gt, partner=partner)
    first, second = ranked(failure_groups(data, NAMES), data)
    assert (first.words, first.n, first.established) == ("cat taken for dog", 12, True)
    assert first.effect == pytest.approx(scores[dogs].mean())
    assert first.risk == pytest.approx(scores[dogs].sum() / 119)  # one is on a crowd
    assert 0 < first.risk_low < first.risk < first.risk_high
    assert first.told["share_of_errors"] == pytest.approx(12 / 14)
    assert first.told["confident"] == int((scores[dogs] >= 0.5).sum())
    assert scores[first.examples[0]] == scores[dogs].max()
    assert len({int(data.image[r]) for r in first.examples}) == len(first.examples)
    assert second.words == "cup where none is annotated"
    assert second.why_not == f"{counted(second.images, 'image')}, fewer than {IMAGES}"


def test_errors_of_one_image_are_not_established() -> None:
    data = judged(n=60, images=2)
    cause = np.where(data.image == 0, CAUSES.index("background"), 0)
    data = judged(n=60, images=2, cause=cause, partner=np.where(cause, -1, 0))
    assert [s.established for s in ranked(failure_groups(data, NAMES), data)] == [False] * 3


def test_context_is_compared_at_equal_size_and_corrected() -> None:
    data = judged(n=300, images=60)
    none = ranked(context_groups(data, NAMES), data)
    assert len(none) == 3
    assert not any(s.established for s in none)
    size = np.where(data.labels == 2, data.size * 0.3, data.size)
    spilt = 0.5 * (1 - size) + 0.02 * np.random.default_rng(1).normal(size=300)  # over small objects of every class
    alike = judged(n=300, images=60, size=size, outside={"class": spilt})
    spots = {s.label: s for s in ranked(context_groups(alike, NAMES), alike)}
    assert spilt[data.labels == 2].mean() > spilt[data.labels != 2].mean() + 0.1
    assert abs(spots[2].effect) < 0.01
    assert not any(s.established for s in spots.values())
    more = judged(n=300, images=60, size=size, outside={"class": spilt + 0.2 * (data.labels == 1)})
    spot = ranked(context_groups(more, NAMES), more)[0]
    assert (spot.label, spot.established) == (1, True)
    assert spot.effect == pytest.approx(0.2, abs=0.02)
    assert spot.p < 0.05


def test_a_size_that_no_other_class_has_is_not_compared() -> None:
    data = judged(size=np.where(np.tile([0, 1, 2], 40) == 0, 0.9, 0.1))
    assert np.isnan(excess(data, data.outside["class"])[data.labels == 0]).all()
    assert np.isfinite(excess(data, data.outside["class"])[data.labels == 1]).all()


def test_wrong_and_right_detections_are_told_apart() -> None:
    data = judged()
    cats = data.labels == 0
    wrong = cats & (np.arange(120) % 2 == 0)
    cause = np.where(wrong, CAUSES.index("background"), 0)
    outside = {"class": data.outside["class"] + 0.3 * wrong}
    data = judged(cause=cause, outside=outside, partner=np.where(wrong, -1, data.partner))
    value, low, high = context_groups(data, NAMES)[0].told["wrong_less_right"]
    assert value == pytest.approx(0.3, abs=0.05)
    assert 0.2 < low <= value <= high < 0.4
    assert difference(outside["class"], wrong & (np.arange(120) < 5), ~wrong, data) is None
    one = judged(labels=np.zeros(120, int))
    assert np.isnan(excess(one, one.outside["class"])).all()
    assert ranked(context_groups(one, NAMES), one)[0].why_not == "no saliency, or nothing of its size in other classes"


def test_outlines_and_loose_boxes() -> None:
    data = judged()
    lost = (data.labels == 2) & (np.arange(120) % 4 != 0)
    area = np.where(data.labels == 2, 200**2, 20**2)
    data = judged(area=area, boundary_iou=np.where(lost, 0.3, 0.8))
    spot = ranked(outline_groups(data, NAMES), data)[0]
    share = lost.sum() / (data.labels == 2).sum()
    assert (spot.kind, spot.words) == ("boundary", "cup, large: outline lost")
    assert spot.effect == pytest.approx(0.6 * share)
    assert spot.told["share_lost"] == pytest.approx(share)
    assert lost[list(spot.examples)].all()
    none = np.full(120, np.nan)
    boxes = judged(area=area, mask_iou=none, boundary_iou=none, iou=np.where(lost, 0.6, 0.9))
    spot = ranked(outline_groups(boxes, NAMES), boxes)[0]
    assert (spot.kind, spot.words) == ("loose box", "cup, large: IoU below 0.75")
    assert spot.effect == pytest.approx(0.4 * share)
    assert all(s.effect == 0 and not s.established for s in ranked(outline_groups(boxes, NAMES), boxes)[1:])


def test_conditions() -> None:
    dark = np.arange(120) % 3 == 0
    cause = np.where(dark & (np.arange(120) % 2 == 0), CAUSES.index("background"), 0)
    data = judged(cause=cause, partner=np.where(cause, -1, 0),
                  conditions={"dark": np.where(dark, 0.9, 0.1), "blurred": np.where(dark, 0.8, np.nan)})
    totals = {s.words: s for s in ranked(total_groups(data), data)}
    assert totals["background"].risk == pytest.approx(0.8 * 20 / 120)
    assert (totals["medium"].n, totals["medium"].effect) == (120, 0)
    (spot,) = ranked(condition_groups(data, NAMES), data)
    assert (spot.words, spot.established) == ("wrong when dark", True)
    assert spot.effect == pytest.approx(0.5)
    failures = failure_groups(data, NAMES)
    assert all(g.told["worst_condition"] == {"dark": 1.0} for g in failures)


@pytest.mark.parametrize(("fall", "mirrored", "p", "why"), [
    ((0.4, 0.3), (0.05, 0.05), 0.001, ""),
    ((0.4, 0.3), (0.05, 0.05), 0.2, "p = 0.2 after correction"),
    ((0.4, 0.3), (0.4, 0.3), 0.001, "more than an equal area"),
    ((0.6, -0.1), (0.0, 0.0), 0.001, "more than an equal area"),
    (None, None, 0.001, "no equal area"),
])  # fmt: skip
def test_a_shortcut_is_confirmed_by_filling_it(fall: Any, mirrored: Any, p: float, why: str) -> None:
    data = judged()
    rows = np.flatnonzero(data.labels == 0)[:10]
    checks = {} if fall is None else {0: {int(r): np.stack([fall, mirrored], 1) for r in rows}}
    found = [Suspect(0, (1.2, 0, 1.8, 1), 5.0, p, 0.2, 0.02, 0.9, 20)]
    company = {0: {"there": {2: 0.6}, "mirrored": {2: 0.1}}}
    (spot,) = ranked(shortcut_groups(found, checks, ("inpaint", "grey"), company, data, NAMES), data)
    assert spot.words == "cat: rests on what is to the right of it"
    assert why in spot.why_not
    assert spot.established == (why == "")
    assert spot.told["company"]["there"] == {"cup": 0.6}
    if fall is not None:
        assert spot.effect == pytest.approx(np.mean(fall) - np.mean(mirrored))
        assert spot.risk == pytest.approx(40 / 120 * spot.effect)
        assert spot.told["checked"] == 10
        assert set(spot.examples) <= set(rows.tolist())


def test_nothing_at_all() -> None:
    none = np.zeros(0)
    empty = judged(n=0, images=5, image=none.astype(int), gt_image=none.astype(int))
    groups = [*failure_groups(empty, NAMES), *context_groups(empty, NAMES), *outline_groups(empty, NAMES),
              *condition_groups(empty, NAMES), *shortcut_groups([], {}, (), {}, empty, NAMES)]  # fmt: skip
    assert ranked(groups, empty) == []
    nowhere = judged(n=0, images=0, image=none.astype(int), gt_image=none.astype(int))
    assert ranked([], nowhere) == []
