from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.evaluation.datasets import GroundTruth
from reliability_hooks.evaluation.labels import labelled
from reliability_hooks.frame import Candidates, Frame, View
from reliability_hooks.monitor import without_answer
from reliability_hooks.reliability.caution import chance_known
from reliability_hooks.reliability.state import StateError
from reliability_hooks.signals.base import PRESETS, Signal, create

FINGERPRINT = {"host": "toy", "weights": "abc"}


class Tell(Signal):
    """Says what decides whether a detection is right: the first feature."""

    name = "tell"
    requires = ("features",)
    columns: ClassVar = {"tell/value": ("looks wrong", "looks right")}

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        assert frame.instances.features is not None
        return {"tell/value": frame.instances.features[:, 0].float()}


class Distance(Signal):
    """Distance to the mean feature of the frames that it was shown."""

    name = "distance"
    requires = ("features",)
    columns: ClassVar = {"distance/mean": ("usual", "unusual")}
    learns = True

    def __init__(self) -> None:
        self.total, self.count, self.mean = torch.zeros(1), 0, torch.full((1,), torch.nan)

    def update(self, frame: Frame) -> None:
        assert frame.instances.features is not None
        self.total = self.total + frame.instances.features[:, :1].sum(0)
        self.count += len(frame.instances)

    def finish(self) -> None:
        self.mean = self.total / self.count

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        assert frame.instances.features is not None
        return {"distance/mean": (frame.instances.features[:, 0] - self.mean).abs()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"mean": self.mean}, {"count": self.count}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.mean, self.count = tensors["mean"], meta["count"]


def scene(seed: int, n: int = 12, features: bool = True) -> tuple[Frame, GroundTruth]:
    """An image whose detections are right exactly where their feature is high, whatever their score."""
    rng = np.random.default_rng(seed)
    corner = np.stack([np.arange(n) * 30.0, rng.uniform(0, 50, n)], 1)
    boxes = np.concatenate([corner, corner + 20], 1).astype(np.float32)
    right = rng.random(n) < 0.5
    value = np.where(right, 1.0, -1.0) + rng.normal(0, 0.4, n)
    labels = rng.integers(0, 3, n)
    instances = Instances(
        boxes=torch.from_numpy(boxes),
        scores=torch.from_numpy(rng.uniform(0.1, 1, n)).float(),
        labels=torch.from_numpy(labels),
        features=torch.from_numpy(value[:, None]).float() if features else None,
        image_size=(100, 400),
    )
    return Frame(instances), GroundTruth(boxes[right], labels[right].astype(np.int64), np.zeros(right.sum(), bool))


@pytest.fixture(scope="module")
def fitted() -> Monitor:
    monitor = Monitor([Tell(), "geometry"])
    pairs = [(monitor.apply(frame), truth) for frame, truth in map(scene, range(40))]
    monitor.fit(pairs, fingerprint=FINGERPRINT)
    return monitor


def test_an_unfitted_monitor_gives_columns_and_no_answer() -> None:
    out = Monitor([Tell()]).apply(scene(0)[0])
    assert torch.isfinite(out.columns["tell/value"]).all()
    assert out.reliability.isnan().all()
    assert (out.columns["verdict"] == 0).all()


def test_a_fitted_monitor_knows_right_from_wrong_where_the_score_does_not(fitted: Monitor) -> None:
    frames = [scene(seed) for seed in range(100, 130)]
    pairs = [(fitted.apply(frame), truth) for frame, truth in frames]
    rows, correct, iou, image = labelled(pairs)
    assert rows.reliability[correct].mean() > 0.8
    assert rows.reliability[~correct].mean() < 0.2
    assert rows.columns["expected_iou"][correct].mean() > 0.7
    assert torch.equal(iou > 0.5, correct)
    assert image.tolist() == sorted(image.tolist())


def test_intervals_hold_the_reliability_and_verdicts_keep_the_promise(fitted: Monitor) -> None:
    assert fitted.judge is not None
    assert fitted.judge.guarantee is not None
    accept = next(row for row in fitted.judge.guarantee.describe() if row["side"] == "accept")
    assert accept["threshold"] is not None, accept["message"]
    pairs = [(fitted.apply(frame), truth) for frame, truth in map(scene, range(200, 260))]
    rows, correct, _, _ = labelled(pairs)
    low, high = rows.columns["reliability_interval"].unbind(1)
    assert ((low <= rows.reliability) & (rows.reliability <= high)).all()
    assert (high - low).mean() < 0.3
    verdict = rows.columns["verdict"]
    assert (verdict == 1).float().mean() > 0.05  # few images: a limit for each of them keeps the promise
    assert correct[verdict == 1].float().mean() >= 0.9
    assert correct[verdict == -1].float().mean() <= 0.1


def test_further_questions_are_answered(fitted: Monitor) -> None:
    pairs = [(fitted.apply(frame), truth) for frame, truth in map(scene, range(200, 260))]
    rows, correct, iou, _ = labelled(pairs)
    strict = rows.columns["p_tp_75"]
    assert (strict <= rows.reliability).all()
    assert abs(strict.mean() - (correct & (iou >= 0.75)).float().mean()) < 0.05
    assert ((rows.columns["p_class_right"] >= 0) & (rows.columns["p_class_right"] <= 1)).all()
    with pytest.raises(ValueError, match="taus must lie between"):
        Monitor(taus=[0.4])


def test_masks_give_an_expected_mask_iou() -> None:
    """Masks that fill the left half of their object's box: IoU one half where the detection is right."""
    pairs = []
    for seed in range(20):
        frame, truth = scene(seed, n=6)
        boxes = frame.instances.boxes.round()
        found = frame.instances.replace(boxes=boxes, image_size=(100, 400))
        masks = torch.zeros(6, 100, 400, dtype=torch.bool)
        for mask, (x1, y1, _, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1 : x1 + 10] = True
        polygons = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in truth.boxes.round().tolist()]
        whole = GroundTruth(truth.boxes.round(), truth.labels, truth.crowd, polygons)
        pairs.append((Monitor([Tell()]).apply(Frame(found.replace(masks=masks))), whole))
    monitor = Monitor([Tell()])
    monitor.fit(pairs)
    out = monitor.apply(scene(300)[0])
    sure = out.reliability > 0.8
    assert sure.any()
    assert (out.columns["expected_mask_iou"][sure] - 0.5).abs().max() < 0.1


def test_drift_is_fitted_on_the_usual_images_alone(fitted: Monitor) -> None:
    usual = [fitted.apply(scene(seed)[0]) for seed in range(400, 440)]
    changed = [i.with_columns({"tell/value": i.columns["tell/value"] + 3}) for i in usual]
    assert fitted.drift is not None
    fitted.drift.reset()
    for image in usual:
        assert not fitted.drift.update(image).alarm
    for image in changed:
        state = fitted.drift.update(image)
    fitted.drift.reset()
    assert state.alarm
    assert state.moved[0].signal == "tell/value"
    pairs = [(fitted.apply(frame), truth) for frame, truth in map(scene, range(30))]
    monitor = Monitor([Tell()])
    monitor.fit(pairs * 2, groups=[*range(30), *range(30)])
    once = monitor.drift
    monitor.fit(pairs * 2, groups=[*range(30), *range(30)], usual=[True] * 30 + [False] * 30)
    assert torch.equal(once.state()[0]["edges"], monitor.drift.state()[0]["edges"])


def test_novelty_keeps_its_false_alarm_rate(tmp_path: Path) -> None:
    monitor = Monitor([Tell()], novelty="tell/value", false_alarm=0.1)
    monitor.fit([(monitor.apply(frame), truth) for frame, truth in map(scene, range(60))])
    monitor.save(tmp_path)
    again = Monitor.load(tmp_path, signals=[Tell()])
    assert again.terms == monitor.terms
    pairs = [(again.apply(frame), truth) for frame, truth in map(scene, range(200, 260))]
    rows, correct, _, _ = labelled(pairs)
    assert 0.03 < rows.columns["is_ood"][correct].mean() < 0.14
    odd = scene(300)[0]
    odd = odd.with_instances(odd.instances.replace(features=odd.instances.features + 5))
    assert again.apply(odd).columns["is_ood"].mean() > 0.9
    closed = Monitor([Tell()], novelty=None)
    closed.fit(pairs)
    assert closed.judge.caution is None
    assert "is_ood" not in closed.apply(odd).columns
    wary = Monitor([Tell()], novelty="tell/value", caution=0.5)
    wary.fit(pairs)
    assert wary.judge.caution.prior > 0
    seen = wary.apply(scene(301)[0])
    p = seen.columns["ood_p_value"]
    model = wary.judge.model.contributions(seen.columns, seen.scores, seen.labels)["tell/value"]
    own = wary.judge.contributions(seen)["tell/value"] - model * chance_known(p, wary.judge.caution.prior)
    assert torch.equal(own > 0, p > 0.5)  # what looks more usual than half of the known objects gains
    with pytest.raises(ValueError, match=r"no column 'tell/valu'.* did you mean 'tell/value'"):
        Monitor([Tell()], novelty="tell/valu").fit(pairs)


def test_too_little_data_certifies_nothing() -> None:
    monitor = Monitor([Tell()], groups=["class", "size"])
    monitor.fit([(monitor.apply(frame), truth) for frame, truth in map(scene, range(4))])
    out = monitor.apply(scene(50)[0])
    assert (out.columns["verdict"] == 0).all()
    assert out.reliability.isfinite().all()
    assert all("needs" in row["message"] for row in monitor.judge.guarantee.describe())
    with pytest.raises(ValueError, match=r"unknown groups \['colour'\]"):
        Monitor(groups=["colour"])


def test_the_frame_and_its_instances_stay_as_they_are(fitted: Monitor) -> None:
    frame, _ = scene(3)
    before = frame.instances.boxes.clone()
    fitted.apply(frame)
    assert frame.instances.columns == {}
    assert torch.equal(frame.instances.boxes, before)


def test_save_and_load_give_the_same_answers(fitted: Monitor, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = Monitor.load(tmp_path, signals=[Tell(), "geometry"])
    frame, _ = scene(7)
    a, b = fitted.apply(frame), loaded.apply(frame)
    assert a.columns.keys() == b.columns.keys()
    assert all(torch.equal(a.columns[k].nan_to_num(-1), b.columns[k].nan_to_num(-1)) for k in a.columns)
    assert loaded.fingerprint == FINGERPRINT
    assert {p.name for p in tmp_path.iterdir()} == {"monitor.json", "state.safetensors"}


def test_a_monitor_of_another_detector_is_refused(fitted: Monitor) -> None:
    fitted.check(lambda: dict(FINGERPRINT))
    with pytest.raises(StateError, match=r"another detector \(different: weights\)"):
        fitted.check(lambda: {**FINGERPRINT, "weights": "xyz"})
    Monitor().check(lambda: {"host": "any"})


def test_bad_states_are_refused(fitted: Monitor, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="missing"):
        Monitor.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not fitted"):
        Monitor([Tell()]).save(tmp_path)
    fitted.save(tmp_path)
    with pytest.raises(ValueError, match="unknown signal 'tell'"):
        Monitor.load(tmp_path)
    with pytest.raises(StateError, match="was fitted with the signals"):
        Monitor.load(tmp_path, signals=["geometry"])
    record = json.loads((tmp_path / "monitor.json").read_text())
    del record["meta"]["settings"]
    (tmp_path / "monitor.json").write_text(json.dumps(record))
    with pytest.raises(StateError, match="'settings' is missing"):
        Monitor.load(tmp_path)


def test_zero_detections_keep_the_schema(fitted: Monitor) -> None:
    full = fitted.apply(scene(1)[0])
    none = fitted.apply(Frame(Instances.empty((100, 400))))
    assert none.columns.keys() == full.columns.keys()
    assert all(v.shape[0] == 0 for v in none.columns.values())
    assert fitted.reasons(none) == []


def test_missing_evidence_is_no_trust_and_is_said_once(fitted: Monitor, caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor([Tell(), "geometry"])
    monitor.judge = fitted.judge
    frame, _ = scene(1, features=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(ValueError, match="tell/value"):
                monitor.apply(frame)
    assert [r.getMessage() for r in caplog.records] == ["signal tell is skipped: this detector gives no features"]


def test_reasons_name_what_speaks_against(fitted: Monitor) -> None:
    out = fitted.apply(scene(5)[0])
    doubted = int(out.reliability.argmin())
    reason = fitted.reasons(out, top=1)[doubted][0]
    assert (reason.column, reason.phrase) == ("tell/value", "looks wrong")
    assert reason.change < -0.2


def test_after_a_fault_there_are_no_reasons(fitted: Monitor) -> None:
    bare = without_answer(scene(3)[0].instances)
    assert bare.reliability.isnan().all()
    for found in (fitted.reasons(bare), fitted.shares(bare)):
        assert found == [[]] * len(bare)


def test_a_signal_that_learns(tmp_path: Path) -> None:
    monitor = Monitor([Distance()])
    assert monitor.learns
    with monitor.learning():
        for seed in range(5):
            assert monitor.apply(scene(seed)[0]).reliability.isnan().all()
    expected = torch.cat([scene(seed)[0].instances.features for seed in range(5)]).mean()
    frame, _ = scene(9)
    out = monitor.apply(frame)
    assert torch.allclose(out.columns["distance/mean"], (frame.instances.features[:, 0] - expected).abs())
    monitor.fit([(monitor.apply(f), t) for f, t in map(scene, range(20))])
    monitor.save(tmp_path)
    again = Monitor.load(tmp_path, signals=[Distance()])
    assert torch.equal(again.apply(frame).columns["distance/mean"], out.columns["distance/mean"])


def test_copies_of_one_photograph_are_never_on_both_sides() -> None:
    """With a column that identifies the image, only grouped cross-validation reports that it is useless."""

    class Photograph(Signal):
        name = "photograph"
        columns: ClassVar = {"photograph/id": ("early", "late")}

        def __call__(self, frame: Frame) -> dict[str, Tensor]:
            return {"photograph/id": frame.instances.features[:, 0]}

    rng = np.random.default_rng(0)
    monitor, pairs, groups = Monitor([Photograph()]), [], []
    for k in range(30):
        share, noise = rng.random() < 0.5, rng.normal()
        for _ in range(6):
            frame, _ = scene(int(rng.integers(1e6)), n=4)
            real = slice(None) if share else slice(0)  # all right or all wrong
            boxes, labels = frame.instances.boxes.numpy()[real], frame.instances.labels.numpy()[real]
            truth = GroundTruth(boxes, labels, np.zeros(len(boxes), bool))
            instances = frame.instances.replace(features=torch.full((4, 1), noise))
            pairs.append((monitor.apply(Frame(instances)), truth))
            groups.append(k)
    _, correct, _, _ = labelled(pairs)
    honest = monitor.fit(pairs, groups=groups).cross_fitted
    assert (honest[correct].mean() - honest[~correct].mean()).abs() < 0.25


def test_unknown_and_doubled_signals() -> None:
    with pytest.raises(ValueError, match="did you mean 'geometry'"):
        Monitor(["geometri"])
    for doubled in (["image", "image"], ["cheap", "geometry"], [Tell(), Tell()]):
        with pytest.raises(ValueError, match="listed twice: "):
            Monitor(doubled)
    assert [s.name for s in create(["cheap"])] == list(PRESETS["cheap"])
    with pytest.raises(ValueError, match="iou_threshold"):
        Monitor(iou_threshold=1.5)
    with pytest.raises(ValueError, match="no labelled images"):
        Monitor().fit([])


def test_frame_says_what_it_has() -> None:
    frame, _ = scene(0)
    assert [r for r in ("image", "candidates", "masks", "logits", "features", "tracks") if frame.has(r)] == ["features"]
    more = Frame(frame.instances.replace(track_ids=torch.zeros(12, dtype=torch.int64)), View(torch.zeros(3, 4, 4)),
                 Candidates.empty())
    assert all(more.has(r) for r in ("image", "candidates", "tracks"))


def test_a_clip_that_cannot_be_loaded_is_told_when_it_is_attached() -> None:
    pytest.importorskip("open_clip")
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    with pytest.raises(ValueError, match="ViT-B-32"):
        attach(model, Monitor(["condition"], clip="ViT-B-23/openai"))
    with attach(model, Monitor(["condition"])) as handle:
        assert handle.monitor.encoder is not None


def test_a_state_fitted_with_other_weights_of_the_clip_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    monitor = Monitor(["geometry", "condition"])
    rng = torch.Generator().manual_seed(0)
    columns = {name: torch.rand(30, generator=rng) for s in monitor.signals for name in s.columns}
    boxes = torch.tensor([[0.0, 0, 40, 40]]).repeat(30, 1)
    found = [Instances(boxes[:3], torch.rand(3, generator=rng), torch.zeros(3).long(), image_size=(80, 80),
                       columns={k: v[3 * i : 3 * i + 3] for k, v in columns.items()}) for i in range(10)]  # fmt: skip
    truth = GroundTruth(np.array([[0, 0, 40, 40]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    monitor.fit([(i, truth) for i in found])
    monitor.save(tmp_path / "m")
    assert Monitor.load(tmp_path / "m").encoder is monitor.encoder
    file = tmp_path / "m" / "monitor.json"
    meta = json.loads(file.read_text())
    sha = meta["meta"]["encoder"]["sha256"]
    file.write_text(file.read_text().replace(sha, "0" * len(sha)))
    with pytest.raises(StateError, match="condition-clip"):
        Monitor.load(tmp_path / "m")
