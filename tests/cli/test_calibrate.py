from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from reliability_hooks import Instances, Monitor
from reliability_hooks.cli import collect, main
from reliability_hooks.cli.collect import degrade, label_names
from reliability_hooks.config import load_settings
from reliability_hooks.evaluation.corruptions import CONDITIONS
from reliability_hooks.evaluation.datasets import GroundTruth
from reliability_hooks.hosts.base import Host


def test_a_monitor_and_its_report(monitor: Path) -> None:
    loaded = Monitor.load(monitor)
    assert loaded.judge is not None
    assert loaded.drift is not None
    report = json.loads((monitor / "report.json").read_text())
    assert "| reliability |" in (monitor / "CARD.md").read_text(encoding="utf-8")
    assert report["failed"] == []
    assert "COCO greedy" in report["protocol"]
    before, after = report["metrics"]["detector's score"], report["metrics"]["reliability"]
    for line in (before, after):
        for name in ("d_ece", "brier", "auroc", "augrc"):
            assert line[name]["low"] <= line[name]["high"]
            assert line[name]["n_images"] == 24
    assert after["d_ece"]["value"] < before["d_ece"]["value"]
    assert after["brier"]["value"] < before["brier"]["value"]
    assert report["fit"]["chosen"] in {"platt", "isotonic", "logistic", "boosting", "blend"}


def test_a_second_run_detects_nothing_anew(
    shared: Path, detector: str, annotations: Path, monitor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images come from the cache; with one file gone, that image alone is seen again."""
    seen: list[int] = []
    original = collect.Collector._detect

    def counting(self: collect.Collector, images: list[np.ndarray], known: list[GroundTruth | None]) -> list[Instances]:
        seen.append(len(images))
        return original(self, images, known)

    monkeypatch.setattr(collect.Collector, "_detect", counting)
    first = json.loads((monitor / "report.json").read_text())["metrics"]
    argv = ["calibrate", "--detector", detector, "--images", str(shared / "data/coco/val2017"), "--annotations",
            str(annotations), "--conf", "0.05", "--out", str(monitor), "detector.predict.imgsz", "320"]
    next((monitor / "cache").rglob("*.safetensors")).unlink()
    assert main(argv) == 0
    assert sum(seen) == 1
    again = json.loads((monitor / "report.json").read_text())["metrics"]
    for row in first:
        for name in ("brier", "auroc", "augrc"):  # ultralytics pads an image alone otherwise than in a mixed batch
            assert again[row][name]["value"] == pytest.approx(first[row][name]["value"], abs=0.03)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which labelled images"),
        (["--images", ".", "--annotations", "none.json"], "none.json"),
        (["--images", ".", "--annotations", "x.json", "--config-file", "none.yaml"], "none.yaml"),
        (["monitor.signal", "[geometry]"], "did you mean 'monitor.signals'"),
        (["monitor.signals", "[geometri]", "data.images", ".", "data.annotations", "."], "did you mean 'geometry'"),
        (["--detector", "none.pt", "--images", ".", "--annotations", "x.json"], "no weights file 'none.pt'"),
        (["--detector", "model.onnx", "--images", ".", "--annotations", "x.json"], "HOST:model.onnx"),
        (["--host", "yolo", "--images", ".", "--annotations", "x.json"], "unknown host 'yolo'"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    detector: str, argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = argv if "--detector" in argv else ["--detector", detector, *argv]
    assert main(["calibrate", "--out", str(tmp_path), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_unknown_condition_is_named(
    shared: Path, detector: str, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["calibrate", "--detector", detector, "--images", str(shared / "data/coco/val2017"), "--annotations",
            str(annotations), "--out", str(tmp_path), "--conditions", "clean,blurr"]
    assert main(argv) == 2
    assert "blur" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_conditions_are_the_same_every_time() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert degrade(image, "clean", 0.5, 1) is image
    first = degrade(image, "noise", 0.5, 7)
    assert np.array_equal(first, degrade(image, "noise", 0.5, 7))
    assert not np.array_equal(first, degrade(image, "noise", 0.5, 8))
    assert not np.array_equal(first, image)


def test_all_conditions() -> None:
    settings = load_settings(None, ["data.conditions", "[all]"])
    assert collect.expanded(settings).data.conditions == ["clean", *CONDITIONS]
    assert collect.expanded(load_settings()).data.conditions == ["clean"]


def test_label_names_are_one_to_one() -> None:
    assert label_names({1: "cat", 3: "dog", 4: "cat"}) == ["#0", "cat", "#2", "dog", "#4"]
    assert label_names({}) == []


def test_fingerprints_tell_models_apart(detector: str) -> None:
    from reliability_hooks.hosts.base import find_host, load

    host: Host = find_host(load(detector))
    first = host.fingerprint()
    assert first == find_host(load(detector)).fingerprint()
    with torch.no_grad():
        next(host.module().parameters()).view(-1)[0] += 1
    assert host.fingerprint() != first
