from __future__ import annotations

import json
from pathlib import Path

import pytest

from reliability_hooks import Monitor
from reliability_hooks.cli import collect, main
from reliability_hooks.images import read_image

SMALL = ["--conf", "0.05", "detector.predict.imgsz", "320"]


@pytest.fixture(scope="module")
def held_out(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 25 to 40 of COCO val2017: none that the monitor was fitted on."""
    data = json.loads((shared / "data/coco/instances_val2017.json").read_text())
    images = data["images"][24:40]
    ids = {image["id"] for image in images}
    path = tmp_path_factory.mktemp("held_out") / "instances.json"
    own = [a for a in data["annotations"] if a["image_id"] in ids]
    path.write_text(json.dumps({**data, "images": images, "annotations": own}))
    return path


def test_table_json_and_diagrams(
    shared: Path, detector: str, monitor: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["evaluate", "--detector", detector, "--monitor", str(monitor), "--images",
                   str(shared / "data/coco/val2017"), "--annotations", str(held_out), "--conditions", "clean,low_light",
                   "--report", "--out", str(tmp_path), *SMALL])
    assert status == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    score, ours = found["metrics"]["detector's score"], found["metrics"]["reliability"]
    assert score.keys() == ours.keys() >= {"d_ece", "brier", "auroc", "augrc", "la_ece_0", "lrp_optimal", "oce"}
    for line in (*score.values(), *ours.values()):
        assert line["low"] <= line["value"] + 0.1
        assert line["protocol"]
    assert ours["brier"]["value"] < score["brier"]["value"]
    assert set(found["conditions"]) == {"clean", "low_light"}
    assert sum(v["detections"] for v in found["verdicts"]) > 20
    for name in ("reliability.png", "risk_coverage.png", "conditions.png"):
        assert read_image(tmp_path / name).std() > 10
    assert "D-ECE" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("Does the reliability keep its promise?", "What is gained", "D-ECE under each condition", "Verdicts"):
        assert words in page
    shown = json.loads(page.partition('id="page">')[2].partition("</script>")[0])
    assert [i["seen"] for i in shown["images"]] == ["clean"] * 16 + ["low light"] * 16
    truths = [row["correct"] for row in shown["instances"] if "correct" in row]
    assert len(truths) == sum(v["detections"] for v in found["verdicts"])
    right = sum(v["detections"] * v["precision"] for v in found["verdicts"] if v["detections"])
    assert sum(truths) == pytest.approx(right)


def test_what_is_missing_is_said(detector: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--detector", detector, "--images", ".", "--annotations", "x.json"]) == 2
    assert "which monitor" in capsys.readouterr().err


def test_signals_that_learn_are_taught_out_of_fold_and_by_a_bank(
    shared: Path, detector: str, held_out: Path, tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    bank.mkdir()
    for path in sorted((shared / "data/coco/train2017").glob("*.jpg"))[:8]:
        (bank / path.name).symlink_to(path)
    for name, more in (("folds", []), ("bank", ["data.bank", str(bank)])):
        out = tmp_path / name
        status = main(["calibrate", "--detector", detector, "--images", str(shared / "data/coco/val2017"),
                       "--annotations", str(held_out), "--out", str(out), *SMALL, "monitor.signals",
                       "[features, activations]", *more])
        assert status == 0
        loaded = Monitor.load(out)
        assert [s.name for s in loaded.signals] == ["features", "activations"]
        assert all(s.state()[0] for s in loaded.signals)
    taught = [Monitor.load(tmp_path / n).signals[1].state()[0]["early/mean"] for n in ("folds", "bank")]
    assert not taught[0].equal(taught[1])


def test_the_cache_serves_fewer_signals_and_remembers_lessons(
    shared: Path, detector: str, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = tmp_path / "bank"
    bank.mkdir()
    for path in sorted((shared / "data/coco/train2017").glob("*.jpg"))[:4]:
        (bank / path.name).symlink_to(path)
    data = json.loads((shared / "data/coco/instances_train2017.json").read_text())
    own = [i for i in data["images"] if (bank / i["file_name"]).exists()]
    kept = [a for a in data["annotations"] if a["image_id"] in {i["id"] for i in own}]
    known = tmp_path / "bank.json"
    known.write_text(json.dumps({**data, "images": own, "annotations": kept}))
    seen: list[int] = []
    original = collect.Collector._detect
    monkeypatch.setattr(collect.Collector, "_detect",
                        lambda self, x, truths: seen.append(len(x)) or original(self, x, truths))

    def calibrate(signals: str, *more: str) -> int:
        seen.clear()
        assert main(["calibrate", "--detector", detector, "--images", str(shared / "data/coco/val2017"),
                     "--annotations", str(held_out), "--out", str(tmp_path / "out"), *SMALL,
                     "monitor.signals", signals, *more]) == 0
        return sum(seen)

    taught = ["data.bank", str(bank), "data.bank_annotations", str(known)]
    assert calibrate("[geometry, ood/knn, ood/temperature_msp]", *taught) == 16 + 4
    assert calibrate("[geometry, ood/knn]", *taught) == 4  # another set of signals that learn
    assert calibrate("[geometry, ood/knn]", *taught) == 0
    assert calibrate("[geometry]") == 0
    assert calibrate("[geometry, image]") == 16
