from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reliability_hooks import Instances
from reliability_hooks.cli import main
from reliability_hooks.cli.explain import which

SMALL = ["detector.predict.imgsz", "320"]


def test_panels_arrays_and_reasons(shared: Path, detector: str, monitor: Path, tmp_path: Path) -> None:
    photograph = sorted((shared / "data/coco/val2017").glob("*.jpg"))[24]
    out = tmp_path / "out"
    status = main(["explain", str(photograph), "--detector", detector, "--monitor", str(monitor), "--out", str(out),
                   "--conf", "0.25", "--instances", "least-reliable:2", "--target", "class,mask",
                   "--budget", "16", "--report", str(tmp_path / "r.html"), *SMALL])
    assert status == 0
    page = json.loads((tmp_path / "r.html").read_text().partition('id="page">')[2].partition("</script>")[0])
    explained = [row for row in page["instances"] if "maps" in row]
    assert [[m["name"] for m in row["maps"]] for row in explained] == [["class"]] * 2
    assert len(page["instances"]) >= 2
    rows = json.loads((out / "explanations.json").read_text())
    assert len(rows) == 2
    arrays = np.load(out / f"{photograph.stem}.npz")
    assert arrays["map/class"].shape[0] == 2
    assert "map/mask" not in arrays  # a detector without masks
    assert json.loads(str(arrays["info"]))["method"] == rows[0]["method"]
    for row in rows:
        assert Image.open(out / row["panel"]).width > 500
        assert "score" in row["shares"]
        assert {c["remedy"] for c in row["counterfactuals"]} >= {"denoised", "sharpened"}


def test_doubt_on_a_grey_photograph(shared: Path, detector: str, monitor: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.open(sorted((shared / "data/coco/val2017").glob("*.jpg"))[24]).convert("L").save(grey)
    out = tmp_path / "out"
    assert main(["explain", str(grey), "--detector", detector, "--monitor", str(monitor), "--out", str(out), "--conf",
                 "0.1", "--instances", "least-reliable:1", "--target", "reliability", "--budget", "4", "--doubt", "4",
                 *SMALL]) == 0  # fmt: skip
    row = json.loads((out / "explanations.json").read_text())[0]
    assert row["method"] == "bayes"
    assert row["passes"] == 4
    assert row["doubt"]
    arrays = np.load(out / "grey.npz")
    assert arrays["map/reliability"].shape[0] == 1
    for kind in ("restored", "removed"):
        assert arrays[f"doubt/{kind}"].shape == arrays[f"doubt_error/{kind}"].shape == (1, 16, 16)
        assert np.isfinite(arrays[f"doubt/{kind}"]).all()
    assert arrays["doubt/windows"].shape == (1, 4)


def test_without_a_monitor_and_with_a_picture_that_cannot_be_read(
    shared: Path, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    photograph = sorted((shared / "data/coco/val2017").glob("*.jpg"))[24]
    (tmp_path / "b.jpg").write_bytes(photograph.read_bytes())
    out = tmp_path / "out"
    assert main(["explain", str(tmp_path), "--detector", detector, "--out", str(out), "--instances", "0",
                 "--method", "gaussian", *SMALL]) == 1
    assert [r["file_name"] for r in json.loads((out / "explanations.json").read_text())] == ["b.jpg"]
    assert "a.jpg" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["--instances", "worst:3"], "least-reliable:N"), (["--method", "odem"], "odam"), (["--budget", "0"], "budget"),
    (["--target", "clas"], "class"), (["--target", "mask"], "no masks"), (["--doubt", "64"], "add --monitor"),
    (["--target", "reliability"], "fitted"),
])  # fmt: skip
def test_a_typo_is_told(
    words: list[str], said: str, shared: Path, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph = str(sorted((shared / "data/coco/val2017").glob("*.jpg"))[24])
    assert main(["explain", photograph, "--detector", detector, "--out", str(tmp_path), *words, *SMALL]) == 2
    assert said in capsys.readouterr().err


def test_which_instances() -> None:
    found = Instances(torch.zeros(4, 4), torch.rand(4), torch.zeros(4).long(),
                      columns={"reliability": torch.tensor([0.4, float("nan"), 0.1, 0.9])})
    assert which(found, "all").tolist() == [0, 1, 2, 3]
    assert which(found, "least-reliable:2").tolist() == [1, 2]
    assert which(found, "most-reliable:1").tolist() == [3]
    assert which(found, "0,3,7").tolist() == [0, 3]
