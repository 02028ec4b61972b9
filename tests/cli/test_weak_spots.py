"""`weak-spots`: a planted shortcut is found, checked and confirmed; real detectors; interruption; bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from reliability_hooks.cli import main
from reliability_hooks.cli.weak_spot_cache import Evidence
from reliability_hooks.cli.weak_spot_rows import arrays_of
from reliability_hooks.cli.weak_spots import analyse
from reliability_hooks.evaluation.datasets import GroundTruth
from reliability_hooks.evaluation.weak_spots import Spot
from reliability_hooks.images import read_image

from .planted import NAMES, Planted, scenes

torch.set_num_threads(1)
MAKE: dict[str, Any] = {"method": "gradient", "budget": 1, "iou_threshold": 0.5, "phrases": {}, "options": {}}
QUIET = Console(quiet=True)


def shortcuts(folder: Path, explained: bool, filled: bool) -> list[Spot]:
    """What is found where the detector that is explained, and the one whose pictures are filled, cheat or not."""
    records = scenes(folder)
    kept = [(r, arrays_of(Planted(records, explained), read_image(r.path), r.truth, **MAKE)) for r in records]
    spots, _, _ = analyse(Planted(records, filled), kept, NAMES, {}, QUIET)
    return [s for s in spots if s.kind == "shortcut"]


def test_a_planted_sticker_is_found_and_confirmed(tmp_path: Path) -> None:
    best, *rest = shortcuts(tmp_path, explained=True, filled=True)
    assert best.established
    assert best.words == "bottle: rests on what is to the right of it"
    x1, y1, x2, y2 = best.told["rect"]  # the sticker lies at 1.2-1.6 across and .3-.7 down, cells are .25 wide
    assert 1.0 <= x1 <= 1.2
    assert 1.6 <= x2 <= 2.0
    assert 0 <= y1 <= 0.3
    assert 0.7 <= y2 <= 1.0
    assert best.effect > 0.3
    assert all(best.told["fall"][f] > 0.3 > abs(best.told["fall_compared"][f]) for f in ("inpaint", "grey"))
    assert best.told["share"] > 0.9
    assert not any(s.established for s in rest)


def test_without_a_shortcut_none_is_confirmed(tmp_path: Path) -> None:
    assert not any(s.established for s in shortcuts(tmp_path, explained=False, filled=False))


def test_a_place_that_only_the_maps_name_is_refuted_by_filling_it(tmp_path: Path) -> None:
    bottle = next(s for s in shortcuts(tmp_path, explained=True, filled=False) if s.label == 0)
    assert bottle.p < 0.05
    assert bottle.effect == pytest.approx(0, abs=0.01)
    assert "more than an equal area" in bottle.why_not


def test_kept_images_are_not_run_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    records = scenes(tmp_path, 3)
    handle, cache = Planted(records, True), tmp_path / "cache"
    first = list(Evidence(handle, cache, {"conf": 0.1}, MAKE).of(records[:2], QUIET))
    assert handle.calls == 2
    again = Evidence(handle, cache, {"conf": 0.1}, MAKE)
    second = list(again.of(records, QUIET))
    assert handle.calls == 3
    for (_, a), (_, b) in zip(first, second, strict=False):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    with pytest.raises(ValueError, match=r"other settings \(conf: 0.1 there, 0.2 now\)"):
        Evidence(handle, cache, {"conf": 0.2}, MAKE)
    records[0].path.write_bytes(b"no picture")
    other = Evidence(handle, tmp_path / "other", {}, MAKE)
    assert len(list(other.of(records, QUIET))) == 2
    assert "0.png" in other.failed[0]


def test_no_gradients_no_annotations_and_no_explanations(tmp_path: Path) -> None:
    records = scenes(tmp_path, 2)
    image, nothing = read_image(records[0].path), GroundTruth(np.zeros((0, 4), np.float32), np.zeros(0, int),
                                                              np.zeros(0, bool), [])  # fmt: skip
    with pytest.raises(ValueError, match="does not give"):
        arrays_of(Planted(records, True, look=False), image, nothing, **{**MAKE, "method": "auto"})
    bare = arrays_of(Planted(records, True, look=False), image, nothing, **{**MAKE, "method": "none"})
    assert "frame" not in bare
    spots, judged, notes = analyse(Planted(records, True), [(records[0], bare)], NAMES, {}, QUIET)
    assert {s.kind for s in spots} == {"failure", "loose box"} - ({"loose box"} if not judged.caused("right").any()
                                                                  else set())  # fmt: skip
    assert any("no explanations" in note for note in notes)


def test_no_image_at_all() -> None:
    spots, judged, notes = analyse(Planted([], True), [], NAMES, {}, QUIET)
    assert spots == []
    assert len(judged.scores) == judged.images == 0
    assert "nothing was detected: lower --conf" in notes


def test_saliency_within_boxes_alone_is_said_to_be_that(tmp_path: Path) -> None:
    records = scenes(tmp_path, 2)
    for cheats in (True, False):
        kept = [(r, arrays_of(Planted(records, cheats), read_image(r.path), r.truth, **MAKE)) for r in records]
        _, _, notes = analyse(Planted(records, cheats), kept, NAMES, {}, QUIET)
        assert any("beyond any box" in note for note in notes) == (not cheats)


@pytest.fixture(scope="module")
def few(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs of COCO val2017, of which one has lost its annotations and another cannot be read."""
    data, folder = json.loads((shared / "data/coco/instances_val2017.json").read_text()), tmp_path_factory.mktemp("few")
    images = data["images"][20:24]
    for k, image in enumerate(images):
        original = (shared / "data/coco/val2017" / image["file_name"]).read_bytes()
        (folder / image["file_name"]).write_bytes(b"no picture" if k == 3 else original)
    ids = {image["id"] for image in images[:2]}
    own = [a for a in data["annotations"] if a["image_id"] in ids]
    (folder / "instances.json").write_text(json.dumps({**data, "images": images, "annotations": own}))
    return folder


@pytest.mark.parametrize("weights", ["yolo11n-seg.pt", "yolov8n.pt"])
def test_a_real_detector(
    weights: str, shared: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    asked = ["weak-spots", "--model", str(shared / "weights" / weights), "--images", str(few), "--annotations",
             str(few / "instances.json"), "detector.predict.imgsz", "320", "--out", str(tmp_path)]  # fmt: skip
    status = main([*asked, "--top", "1"])
    assert status == 1  # one could not be read
    said = json.loads((tmp_path / "weak_spots.json").read_text())
    assert said["images"] == 3
    assert any("1 of 3 images have no annotated object" in note for note in said["notes"])
    assert {"failure", "context"} <= {s["kind"] for s in said["spots"]}
    assert ("boundary" in {s["kind"] for s in said["spots"]}) == ("seg" in weights)
    assert all(s["why_not"] for s in said["spots"] if not s["established"])
    assert sum(said["causes"].values()) >= said["detections"] > said["right"] > 0
    sheets = sorted(tmp_path.glob("spot_*.png"))
    assert [s["sheet"] for s in said["spots"][:2]] == ["spot_01.png", None]
    assert [p.name for p in sheets] == ["spot_01.png"]
    assert read_image(sheets[0]).std() > 10
    with (tmp_path / "weak_spots.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(said["spots"])
    assert "failed" in capsys.readouterr().out
    if "seg" in weights:
        assert main([*asked, "--conf", "0.6"]) == 2
        assert "other settings (predict" in capsys.readouterr().err
    else:
        assert main([*asked[:-1], str(tmp_path / "none"), "--conf", "0.999"]) == 1
        assert "nothing was detected" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["--method", "odem"], "odam"), (["--budget", "0"], "budget"), (["--limit", "0"], "limit"),
    (["--top", "-1"], "top"),
])  # fmt: skip
def test_a_typo_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weak-spots", "--model", "x.pt", "--images", ".", "--annotations", "x.json", *words]) == 2
    assert said in capsys.readouterr().err
