"""torchmetrics classes equal the pure functions, however the images come."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch

from reliability_hooks.evaluation.summary import evaluate

from .scenes import Arrays, toy

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
stateful = importlib.import_module("reliability_hooks.evaluation.stateful")
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method")  # of nothing, on purpose

#: class -> (its name in `evaluate`, settings)
CLASSES: dict[type[stateful.DetectionMetric], tuple[str, dict[str, Any]]] = {
    stateful.DetectionECE: ("d_ece", {}),
    stateful.ClassWiseDetectionECE: ("class_wise_d_ece", {}),
    stateful.LaECE: ("la_ece", {}),
    stateful.LaECE0: ("la_ece_0", {}),
    stateful.LaACE0: ("la_ace_0", {}),
    stateful.Brier: ("brier", {}),
    stateful.NLL: ("nll", {}),
    stateful.FailureAUROC: ("auroc", {}),
    stateful.FailureAUPR: ("aupr_error", {}),
    stateful.FailureFPR95: ("fpr95_correct", {"positive": "correct"}),
    stateful.AURC: ("aurc", {}),
    stateful.EAURC: ("e_aurc", {}),
    stateful.AUGRC: ("augrc", {}),
    stateful.SelectiveRisk: ("selective_risk_80", {}),
    stateful.LRPOptimal: ("lrp_optimal", {}),
    stateful.OCE: ("oce", {}),
}


def batches(scene: Arrays, reliability: np.ndarray | None = None) -> tuple[list[Any], list[Any]]:
    preds, target = [], []
    for i in range(int(max(scene["image_ids"].max(), scene["gt_image_ids"].max())) + 1):
        d, g = scene["image_ids"] == i, scene["gt_image_ids"] == i
        entry = {name: torch.as_tensor(scene[name][d]) for name in ("boxes", "scores", "labels")}
        preds.append(entry if reliability is None else {**entry, "reliability": torch.as_tensor(reliability[d])})
        truth = {name: torch.as_tensor(scene[f"gt_{name}"][g]) for name in ("boxes", "labels")}
        target.append({**truth, "iscrowd": torch.as_tensor(scene["gt_crowd"][g])})
    return preds, target


@pytest.fixture(scope="module")
def scene() -> Arrays:
    return toy(images=40, crowds=True)


@pytest.fixture(scope="module")
def expected(scene: Arrays) -> Any:
    return evaluate(**scene, score_cut=0.2, draws=10, all_images=np.arange(41))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_equals_the_pure_function(kind, scene, expected):
    name, settings = CLASSES[kind]
    preds, target = batches(scene)
    metric = kind(score_cut=0.2, **settings)
    for start in (0, 7, 14, 28):
        stop = {0: 7, 7: 14, 14: 28, 28: 41}[start]
        metric.update(preds[start:stop], target[start:stop])
    assert float(metric.compute()) == pytest.approx(expected[name].value, abs=1e-6)
    estimate = metric.estimate(draws=10)
    assert estimate.value == pytest.approx(expected[name].value, abs=1e-9)
    assert (estimate.low, estimate.high) == pytest.approx((expected[name].low, expected[name].high))
    assert estimate.n_images == 41
    for key in ("matching", "score_cut", "interval"):
        assert estimate.protocol[key] == expected[name].protocol[key]
    metric.reset()
    assert np.isnan(float(metric.compute()))


def test_every_class_is_tested():
    found = {c for c in vars(stateful).values() if isinstance(c, type) and issubclass(c, stateful.DetectionMetric)}
    assert found - {stateful.DetectionMetric} == CLASSES.keys()


def test_settings_and_reliability(scene):
    reliability = np.random.default_rng(0).random(len(scene["boxes"]))
    found = evaluate(**scene, reliability=reliability, iou_threshold=0.7, draws=2)
    metric = stateful.Brier(iou_threshold=0.7)
    metric.update(*batches(scene, reliability))
    assert float(metric.compute()) == pytest.approx(found["brier"].value, abs=1e-6)
    metric = stateful.DetectionECE(bins=3, binning="mass")
    assert (metric.metric.keywords["bins"], metric.metric.keywords["binning"]) == (3, "mass")
    with pytest.raises(ValueError, match="Unexpected keyword"):
        stateful.Brier(bins=3)
    with pytest.raises(ValueError, match="iou_type"):
        stateful.Brier(iou_type="keypoints")


def test_states_merge_and_travel(scene):
    """What `dist_reduce_fx="cat"` does when processes are gathered; forward; copies."""
    preds, target = batches(scene)
    whole, a, b = (stateful.LRPOptimal() for _ in range(3))
    whole.update(preds, target)
    a.update(preds[:20], target[:20])
    b(preds[20:], target[20:])
    for name in (*a.columns(), "rows"):
        setattr(a, name, [torch.cat([*getattr(a, name), *getattr(b, name)])])
    assert float(a.compute()) == pytest.approx(float(whole.compute()))
    for again in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert float(again.compute()) == float(whole.compute())


def test_masks():
    gt = np.zeros((2, 20, 20), bool)
    gt[:, 2:12, 2:12] = True
    masks = gt.copy()
    masks[0, :, 5:] = False
    label = torch.tensor([0])
    preds = [{"masks": torch.tensor(m[None]), "scores": torch.tensor([0.9]), "labels": label} for m in masks]
    target = [{"masks": torch.tensor(m[None]), "labels": label} for m in gt]
    metric = stateful.Brier(iou_type="segm")
    metric.update(preds, target)
    assert float(metric.compute()) == pytest.approx((0.81 + 0.01) / 2)
    assert "mask IoU" in metric.estimate(draws=2).protocol["matching"]


def test_nothing_and_bad_input():
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    metric = stateful.DetectionECE()
    assert np.isnan(float(metric.compute()))
    metric.update([], [])
    metric.update([none], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}])
    assert np.isnan(float(metric.compute()))
    assert metric.estimate(draws=2).n_images == 1
    with pytest.raises(ValueError, match="one entry for each image"):
        metric.update([none], [])
    with pytest.raises(ValueError, match="every entry of preds needs boxes"):
        metric.update([{"scores": torch.zeros(0), "labels": torch.zeros(0)}], [none])


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, stateful.__name__)
    with pytest.raises(ImportError, match=r'pip install "reliability_hooks\[metrics\]"'):
        importlib.import_module(stateful.__name__)
