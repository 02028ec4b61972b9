"""Open-set metrics against loops written from their definitions."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability_hooks.evaluation.open_set import (
    aose,
    ap_u,
    e_bk,
    missed_unknown,
    nose,
    open_set_errors,
    open_set_summary,
    p_u,
    r_u,
    wilderness_impact,
)
from reliability_hooks.evaluation.open_set_rows import (
    FALSE_KNOWN,
    KNOWN,
    MISSED_UNKNOWN,
    ON_BACKGROUND,
    ON_UNKNOWN,
    TRUE_KNOWN,
    UNKNOWN,
    OpenSetRows,
    open_set_rows,
)

from .scenes import Arrays, toy


def scene(seed: int, images: int = 30, crowds: bool = True) -> Arrays:
    """A third of the objects are unknown; the OOD score knows something of it and has ties."""
    d = toy(seed, images, crowds=crowds)
    rng = np.random.default_rng(seed)
    hidden = rng.random(len(d["gt_labels"])) < 0.35
    d["gt_labels"] = np.where(hidden, -1, d["gt_labels"])
    on = [any(one_iou(b, g) > 0.5 for g in d["gt_boxes"][hidden & (d["gt_image_ids"] == i)])
          for b, i in zip(d["boxes"], d["image_ids"], strict=True)]
    return d | {"ood": np.round(rng.normal(size=len(on)) + 1.2 * np.array(on), 1)}


def one_iou(a: np.ndarray, b: np.ndarray, of_a: bool = False) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if not (w > 0 and h > 0):
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1])
    return float(w * h / (area if of_a else area + (b[2] - b[0]) * (b[3] - b[1]) - w * h))


def naive(d: Arrays, threshold: float, recall: float) -> dict[str, float]:
    """Box by box and object by object."""
    n, g = range(len(d["boxes"])), range(len(d["gt_boxes"]))
    unknown = [j for j in g if d["gt_labels"][j] < 0 and not d["gt_crowd"][j]]
    known = [j for j in g if d["gt_labels"][j] >= 0 and not d["gt_crowd"][j]]
    iou = {i: {j: one_iou(d["boxes"][i], d["gt_boxes"][j]) for j in g if d["gt_image_ids"][j] == d["image_ids"][i]}
           for i in n}

    def greedy(order: list[int], of: dict[int, list[int]]) -> set[int]:
        used: set[int] = set()
        hits: set[int] = set()
        for i in order:
            free = [j for j in of[i] if j not in used and iou[i].get(j, 0) > 0.5]
            if free:
                used.add(max(free, key=lambda j: iou[i][j]))
                hits.add(i)
        return hits

    by_score = sorted(n, key=lambda i: -d["scores"][i])
    true = greedy(by_score, {i: [j for j in known if d["gt_labels"][j] == d["labels"][i]] for i in n})
    place = {}
    for i in n:
        best_known = max([iou[i].get(j, 0) for j in known if iou[i].get(j, 0) > 0.5], default=0)
        best_unknown = max([iou[i].get(j, 0) for j in unknown if iou[i].get(j, 0) > 0.5], default=0)
        in_crowd = any(one_iou(d["boxes"][i], d["gt_boxes"][j], True) > 0.5 for j in iou[i] if d["gt_crowd"][j])
        if i in true:
            place[i] = "true"
        elif best_unknown > best_known:
            place[i] = "unknown"
        elif best_known:
            place[i] = "known"
        else:
            place[i] = "ignored" if in_crowd else "background"
    counted = [i for i in n if place[i] != "ignored"]
    on_unknown = {i: unknown if place[i] == "unknown" else [] for i in n}
    finds = greedy(sorted(counted, key=lambda i: -d["ood"][i]), on_unknown)
    kept = [i for i in counted if d["ood"][i] <= threshold]
    called = [i for i in counted if d["ood"][i] > threshold]
    out = {
        "aose": sum(place[i] == "unknown" for i in counted),
        "aose_rejected": sum(place[i] == "unknown" for i in kept),
        "e_bk": sum(place[i] == "background" for i in counted),
        "e_bk_rejected": sum(place[i] == "background" for i in kept),
        "missed_unknown": sum(not any(place[i] == "unknown" and iou[i].get(j, 0) > 0.5 for i in n) for j in unknown),
        "p_u": sum(i in finds for i in called) / len(called),
        "r_u": sum(i in finds for i in called) / len(unknown),
        "wilderness_impact": impact(d, counted, place, len(known), recall),
        "wilderness_impact_rejected": impact(d, kept, place, len(known), recall),
    }
    points = []
    for t in sorted({d["ood"][i] for i in counted}):
        made = [i for i in counted if d["ood"][i] >= t]
        hits = sum(i in finds for i in made)
        points.append((hits / len(unknown), hits / len(made)))
    levels = sorted({0.0, *(r for r, _ in points)})
    out["ap_u"] = sum((b - a) * max(p for r, p in points if r >= b) for a, b in pairwise(levels))
    return out | {f"nose{k}": 100 * out[f"aose{k}"] / len(unknown) for k in ("", "_rejected")}


def impact(d: Arrays, made: list[int], place: dict[int, str], known: int, recall: float) -> float:
    for t in sorted({d["scores"][i] for i in made}, reverse=True):
        some = [i for i in made if d["scores"][i] >= t]
        if sum(place[i] == "true" for i in some) / known >= recall:
            unknown = sum(place[i] == "unknown" for i in some)
            closed = sum(place[i] == "true" for i in some) / (len(some) - unknown)  # precision without the unknown
            return closed / (sum(place[i] == "true" for i in some) / len(some)) - 1
    return float("nan")


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definitions(seed):
    d = scene(seed)
    expected = naive(d, threshold=0.5, recall=0.4)
    rows = open_set_rows(**d)
    found = open_set_summary(rows, 0.5, recall=0.4, draws=20)
    assert found.keys() == expected.keys()
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(expected[name], nan_ok=True), name
        said = json.loads(json.dumps(asdict(estimate)))["protocol"]
        assert said["on_object"].startswith("IoU > 0.5")
        assert said["unknown_objects"] > 10
        assert (said.get("threshold") == 0.5) == (name in {"p_u", "r_u"} or name.endswith("_rejected"))
    assert rows.ignored > 0
    assert min(expected[k] for k in ("aose_rejected", "e_bk_rejected", "missed_unknown", "ap_u", "p_u", "r_u")) > 0
    assert expected["wilderness_impact"] > 0
    assert found["aose"].low < found["aose"].value < found["aose"].high


@pytest.mark.parametrize("seed", range(2))
def test_interpolated_precision_is_that_of_pycocotools(seed):
    """One class "unknown", scored by a tie-free OOD score; COCO reads the same curve at 101 points only."""
    from reliability_hooks.evaluation.mean_ap import mean_average_precision

    d = scene(seed, images=60, crowds=False)
    d["ood"] = np.random.default_rng(seed).permutation(len(d["ood"])) / len(d["ood"]) + d["ood"]
    d["gt_labels"] = np.full(len(d["gt_labels"]), -1)
    rows = open_set_rows(**d)
    coco = mean_average_precision(d["boxes"], d["ood"], np.zeros(len(d["boxes"]), int), d["image_ids"], d["gt_boxes"],
                                  np.zeros(len(d["gt_boxes"]), int), d["gt_image_ids"])
    assert ap_u(rows.outcome, rows.ood, rows.finds) == pytest.approx(coco.ap50, abs=0.01)
    assert coco.ap50 > 0.1


def test_weights_are_repeated_images():
    d = scene(5)
    rows = open_set_rows(**d)
    times = np.random.default_rng(0).integers(0, 3, 31)
    weight = times[rows.image_ids]

    def repeated(prefix: str) -> Arrays:
        ids = d[f"{prefix}image_ids"]
        picks = [(np.flatnonzero(ids == i), 100 * i + k) for i in range(31) for k in range(times[i])]
        rows_of = np.concatenate([p for p, _ in picks])
        names = [n for n in d if n.startswith("gt_") == (prefix == "gt_")]
        return {n: d[n][rows_of] for n in names} | {f"{prefix}image_ids": np.concatenate(
            [np.full(len(p), k) for p, k in picks])}

    more = open_set_rows(**(repeated("") | repeated("gt_")))
    for metric, names in METRICS.items():
        ours = metric(*(getattr(rows, n) for n in names), weight=weight)
        assert ours == pytest.approx(metric(*(getattr(more, n) for n in names))), metric


METRICS = {
    aose: ("outcome", "ood"),
    nose: ("outcome", "ood"),
    partial(e_bk, threshold=0.3): ("outcome", "ood"),
    missed_unknown: ("outcome",),
    partial(wilderness_impact, recall=0.3): ("outcome", "scores", "ood"),
    ap_u: ("outcome", "ood", "finds"),
    partial(p_u, threshold=0.3): ("outcome", "ood", "finds"),
    partial(r_u, threshold=0.3): ("outcome", "ood", "finds"),
}


def one_image(boxes, labels, gt_boxes, gt_labels, ood=None, scores=None, crowd=None) -> OpenSetRows:
    n, g = len(boxes), len(gt_boxes)
    return open_set_rows(boxes, np.full(n, 0.9) if scores is None else scores, labels, np.zeros(n, int),
                         np.zeros(n) if ood is None else ood, gt_boxes, gt_labels, np.zeros(g, int), crowd)


def test_where_a_box_lies():
    known, unknown, crowd = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 90, 90]
    boxes = [known, known, [0, 0, 10, 9], [20, 0, 30, 9], [20, 0, 30, 8], [55, 55, 60, 60], [200, 0, 210, 9],
             [20, 0, 30, 5], [np.nan] * 4]
    rows = one_image(boxes, [0, 1, 0, 0, 3, 0, 0, 0, 0], [known, unknown, crowd, [300, 0, 310, 10]], [0, -1, 2, -1],
                     scores=np.linspace(0.9, 0.1, 9), ood=np.arange(9.0), crowd=[False, False, True, False])
    assert rows.ignored == 1
    assert rows.outcome.tolist() == [
        TRUE_KNOWN, FALSE_KNOWN, FALSE_KNOWN,  # another class; a duplicate: on a known object, not on background
        ON_UNKNOWN, ON_UNKNOWN, ON_BACKGROUND, ON_BACKGROUND, ON_BACKGROUND,  # IoU of 0.5 is not above 0.5
        KNOWN, UNKNOWN, MISSED_UNKNOWN,
    ]
    assert rows.finds.tolist() == [False] * 4 + [True] + [False] * 6  # of the two the higher OOD score
    before, after = (open_set_errors(rows.outcome, rows.ood, t) for t in (None, 3.0))
    assert (before.missed_unknown, before.unknown_as_known, before.background_as_known) == (1, 2, 3)
    assert (after.missed_unknown, after.unknown_as_known, after.background_as_known) == (1, 1, 0)
    assert nose(rows.outcome, rows.ood) == 100
    assert p_u(rows.outcome, rows.ood, rows.finds, 3.0) == pytest.approx(1 / 4)
    assert r_u(rows.outcome, rows.ood, rows.finds, 3.0) == pytest.approx(1 / 2)
    assert ap_u(rows.outcome, rows.ood, rows.finds) == pytest.approx(1 / 2 * 1 / 4)  # three on background rank above
    # a box on a known and an unknown object lies on the one it overlaps more
    both = one_image([[0, 0, 10, 10]], [1], [[0, 0, 10, 8], [0, 0, 10, 9]], [0, -1])
    assert both.outcome[0] == ON_UNKNOWN
    assert one_image([[0, 0, 10, 10]], [1], [[0, 0, 10, 9], [0, 0, 10, 8]], [0, -1]).outcome[0] == FALSE_KNOWN


def test_nothing_is_ordinary():
    box = [[0.0, 0, 9, 9]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = open_set_summary(one_image([], [], [], []), 0.0, draws=3)
        no_boxes = open_set_summary(one_image([], [], box + box, [0, -1]), 0.0, draws=3)
        no_unknown = open_set_summary(one_image(box, [0], box, [0]), 0.0, draws=3)
    for name in ("aose", "e_bk", "missed_unknown"):
        assert empty[name].value == 0
    for name in ("nose", "wilderness_impact", "ap_u", "p_u", "r_u"):
        assert np.isnan(empty[name].value)
        assert np.isnan(no_unknown[name].value) == (name != "wilderness_impact")
    values = {name: e.value for name, e in no_boxes.items()}
    assert (values["missed_unknown"], values["nose"], values["ap_u"], values["r_u"]) == (1, 0, 0, 0)
    assert np.isnan([values["p_u"], values["wilderness_impact"]]).all()
    assert no_unknown["wilderness_impact"].value == 0
    infinite = one_image(box * 3, [0] * 3, box, [0], scores=[np.inf, np.inf, -np.inf])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wilderness_impact(infinite.outcome, infinite.scores, infinite.ood) == 0


def test_nonsense_is_refused():
    box = [[0.0, 0, 9, 9]]
    with pytest.raises(ValueError, match="must not hold NaN"):
        one_image(box, [0], box, [0], ood=[np.nan])
    with pytest.raises(ValueError, match="labels must be >= 0"):
        one_image(box, [-1], box, [0])
    with pytest.raises(ValueError, match="iou_threshold"):
        open_set_rows(box, [1], [0], [0], [0], box, [0], [0], iou_threshold=1)
    rows = one_image(box, [0], box, [-1])
    with pytest.raises(ValueError, match="recall"):
        wilderness_impact(rows.outcome, rows.scores, rows.ood, recall=0)
    with pytest.raises(ValueError, match="threshold must not be NaN"):
        aose(rows.outcome, rows.ood, threshold=np.nan)
    with pytest.raises(ValueError, match="weights must be"):
        ap_u(rows.outcome, rows.ood, rows.finds, weight=[-1, 1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(-20, 20).map(lambda k: k / 10 + 0.05))  # between the scores
def test_only_ranks_matter_and_rejecting_never_adds_errors(seed, threshold):
    d = scene(seed, images=6)
    rows, same = open_set_rows(**d), open_set_rows(**(d | {"ood": np.exp(d["ood"]) * 3}))
    assert ap_u(rows.outcome, rows.ood, rows.finds) == pytest.approx(
        ap_u(same.outcome, same.ood, same.finds), nan_ok=True)
    ours = r_u(rows.outcome, rows.ood, rows.finds, threshold)
    assert ours == pytest.approx(r_u(same.outcome, same.ood, same.finds, np.exp(threshold) * 3), nan_ok=True)
    before, after = (open_set_errors(rows.outcome, rows.ood, t) for t in (None, threshold))
    assert after.unknown_as_known <= before.unknown_as_known
    assert after.background_as_known <= before.background_as_known
    unknown = (rows.outcome >= UNKNOWN).sum()
    assert rows.finds.sum() + before.missed_unknown <= unknown
