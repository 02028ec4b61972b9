from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from reliability_hooks.cli import main
from reliability_hooks.cli.ood_rows import Seen, threshold_at
from reliability_hooks.images import read_image
from reliability_hooks.signals.base import FAMILIES


@pytest.fixture(scope="module")
def config(shared: Path, detector: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ood")
    bank = directory / "bank"
    bank.mkdir()
    data = json.loads((shared / "data/coco/instances_train2017.json").read_text())
    for path in sorted((shared / "data/coco/train2017").glob("*.jpg"))[:10]:
        (bank / path.name).symlink_to(path)
    images = [i for i in data["images"] if (bank / i["file_name"]).exists()]
    (directory / "bank.json").write_text(json.dumps({**data, "images": images, "annotations": [
        a for a in data["annotations"] if a["image_id"] in {i["id"] for i in images}
    ]}))  # fmt: skip
    raccoons = shared / "data/ood/raccoon"
    path = directory / "ood.yaml"
    path.write_text(json.dumps({  # JSON is YAML
        "detector": {"weights": detector, "predict": {"conf": 0.2, "imgsz": 320}},
        "monitor": {"signals": ["ood/logits", "ood/knn", "ood/mahalanobis@late"]},
        "data": {"images": str(shared / "data/coco/val2017"), "limit": 10, "bank": str(bank),
                 "annotations": str(shared / "data/coco/instances_val2017.json"),
                 "bank_annotations": str(directory / "bank.json")},
        "ood": {"draws": 10, "intensities": [0.3, 0.9], "intensity_limit": 4, "sets": {
            "raccoon": {"images": str(raccoons / "images"), "annotations": str(raccoons / "annotations"),
                        "distance": "near", "limit": 12},
        }},
    }))  # fmt: skip
    return path


def test_table_csv_markdown_and_picture(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate-ood", "--config-file", str(config), "--out", str(tmp_path), "--report"]) == 0
    shown = capsys.readouterr().out
    assert "raccoon (near)" in shown
    assert "AUROC" in shown
    found = json.loads((tmp_path / "ood.json").read_text())
    table = found["sets"]["raccoon"]
    assert set(table) == {"ood/knn/score", "ood/mahalanobis@late/score",
                          *(f"ood/logits/{n}" for n in ("msp", "max_logit", "energy", "entropy", "gen"))}
    for row in table.values():
        for metric in ("ood_auroc", "ood_aupr_in", "ood_aupr_out", "fpr95_id_positive", "fpr95_ood_positive", "ap_u"):
            assert 0 <= row[metric]["value"] <= 1
            assert row[metric]["protocol"]
        assert row["aose_rejected"]["value"] <= row["aose"]["value"]
    msp, highest = table["ood/logits/msp"], table["ood/logits/max_logit"]
    assert msp["ood_auroc"]["value"] == highest["ood_auroc"]["value"]  # a sigmoid head: one ranking
    assert {"detector", "ood/logits", "ood/knn"} <= set(found["seconds"])
    assert 0 < found["map"]["ap"] < found["map"]["ap50"] < 1
    assert set(found["intensity"]["ood/knn/score"]) >= {"blur", "noise"}
    rows = list(csv.DictReader((tmp_path / "ood.csv").open()))
    assert {row["score"] for row in rows} == set(table)
    assert "| ood/knn/score |" in (tmp_path / "ood.md").read_text()
    assert read_image(tmp_path / "ood.png").std() > 10
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("How well each score tells unknown objects", "Scores of ", "raccoon (near)", "Spearman"):
        assert words in page


def test_the_list_names_every_score_with_its_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate-ood", "--list"]) == 0
    shown = capsys.readouterr().out
    for name in FAMILIES:
        assert name in shown or not name.startswith("ood/") or name == "ood/logits"
    assert "Djurisic" in shown


def test_without_unknown_objects_it_says_what_to_give(detector: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate-ood", "--detector", detector]) == 2
    assert "ood.sets" in capsys.readouterr().err
    assert main(["evaluate-ood", "ood.sets.raccoon.imags", "x"]) == 2
    assert "did you mean 'ood.sets.raccoon.images'" in capsys.readouterr().err
    assert main(["evaluate-ood", "ood.sets.raccoon.images", "x"]) == 2
    assert "ood.sets.raccoon.annotations is missing" in capsys.readouterr().err


def test_the_threshold_keeps_the_false_alarm_rate() -> None:
    """Known objects of an image share most of their score: a rate over images, not over objects."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        n = rng.integers(1, 20, 80)
        image = np.repeat(np.arange(80), n)
        score = rng.normal(size=80)[image] + 0.3 * rng.normal(size=len(image)) + 0.05 * n[image]
        threshold = threshold_at(score[image < 40], image[image < 40], 0.1)
        rates.append(np.mean([(score[image == i] > threshold).mean() for i in range(40, 80)]))
    assert 0.06 < np.mean(rates) < 0.1 + 2 * np.std(rates) / len(rates) ** 0.5
    assert threshold_at(np.arange(5.0), np.arange(5), 0.05) == np.inf
    assert threshold_at(np.zeros(0), np.zeros(0, int), 0.05) == np.inf


def test_rows_of_unknown_objects() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], np.float32)
    truth = (boxes[:2], np.array([-1, 3]), np.array([0, 0]), np.array([False, False]))
    each = np.array([0.9, 0.8, 0.7]), np.array([3, 3, 3]), np.zeros(3, int)
    seen = Seen(boxes, *each, {"s": np.arange(3.0)}, truth, 1)
    assert seen.on_unknown().tolist() == [True, False, False]
    assert seen.right().tolist() == [False, True, False]
    both = seen.joined(seen)
    assert both.images == 2
    assert both.image.tolist() == [0, 0, 0, 1, 1, 1]
    assert both.right().tolist() == [False, True, False] * 2


def test_scores_that_learn_need_a_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without one, unknown images would teach them."""
    config = tmp_path / "ood.yaml"
    config.write_text("ood: {sets: {unknown: {images: ., annotations: .}}}\nmonitor: {signals: [geometry, ood/knn]}\n")
    assert main(["evaluate-ood", "--config-file", str(config), "--out", str(tmp_path / "out")]) == 2
    assert "ood/knn learn from images without unknown objects: give data.bank" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
