from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reliability_hooks.cli import main
from reliability_hooks.images import read_image

SMALL = ["detector.predict.imgsz", "320"]


def photographs(shared: Path) -> list[Path]:
    return sorted((shared / "data/coco/val2017").glob("*.jpg"))[24:]


def rows(out: Path) -> list[dict]:
    return json.loads((out / "predictions.json").read_text())


def test_pictures_predictions_and_table(
    shared: Path, detector: str, monitor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in photographs(shared)[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    data = shared / "data/coco/instances_val2017.json"
    status = main(["predict", str(tmp_path), "--detector", detector, "--monitor", str(monitor), "--out", str(out),
                   "--annotations", str(data), "--conf", "0.1", *SMALL])
    assert status == 0
    found = rows(out)
    assert len(found) > 3
    assert all(0 <= r["reliability"] <= 1 and 0 <= r["expected_iou"] <= 1 for r in found)
    assert {r["verdict"] for r in found} == {"unknown"}  # nothing is certified without a guarantee
    ids = {i["file_name"]: i["id"] for i in json.loads(data.read_text())["images"]}
    names = {c["name"]: c["id"] for c in json.loads(data.read_text())["categories"]}
    assert all(r["image_id"] == ids[r["file_name"]] and r["category_id"] == names[r["category_name"]] for r in found)
    for path in photographs(shared)[:3]:
        picture, plain = read_image(out / path.name), read_image(path)
        assert picture.shape == plain.shape
        assert (picture.astype(int) - plain).any()
    printed = capsys.readouterr().out
    assert "least reliable" in printed
    assert found[0]["category_name"].split()[0] in printed


def test_without_a_monitor_reliability_is_unknown(
    shared: Path, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["predict", str(photographs(shared)[0]), "--detector", detector, "--out", str(tmp_path), *SMALL])
    assert status == 0
    assert {r["reliability"] for r in rows(tmp_path)} == {None}
    assert "reliability is unknown" in capsys.readouterr().out


def test_bad_files_do_not_cost_the_good_ones(
    shared: Path, detector: str, monitor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    good = photographs(shared)[0]
    pixels = read_image(good)
    (source / "a_cut.jpg").write_bytes(good.read_bytes()[:3000])
    (source / "b_text.jpg").write_text("no image")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(source / "c_16bit.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(source / "d_alpha.png")
    Image.fromarray(pixels[..., 0]).save(source / "e_grey.png")
    Image.fromarray(pixels[:1, :1]).save(source / "f_one_pixel.png")
    (source / "g_good.jpg").write_bytes(good.read_bytes())
    Image.fromarray(pixels).save(source / "g_good.png")  # the same stem: neither overwrites the other
    given = ["--detector", detector, "--monitor", str(monitor), "--out", str(out), *SMALL]
    assert main(["predict", str(source), *given]) == 1
    run = json.loads((out / "run.json").read_text())
    assert [Path(f["file"]).name for f in run["failed"]] == ["a_cut.jpg", "b_text.jpg"]
    assert run["images"] == 6
    assert {r["file_name"] for r in rows(out)} >= {"c_16bit.png", "d_alpha.png", "e_grey.png", "g_good.jpg"}
    assert {p.stem for p in out.glob("*.jpg")} == {"c_16bit", "d_alpha", "e_grey", "f_one_pixel", "g_good", "g_good-2"}
    assert "a_cut.jpg" in capsys.readouterr().err


def test_a_video_gives_a_video(shared: Path, detector: str, monitor: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    frame = read_image(photographs(shared)[1])
    height, width = (side // 2 * 2 for side in frame.shape[:2])
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (width, height))
    for _ in range(3):
        writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
    writer.release()
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "v.avi"), "--detector", detector, "--monitor", str(monitor), "--out",
                 str(out), *SMALL]) == 0
    assert {r["file_name"] for r in rows(out)} == {"v.avi#0", "v.avi#1", "v.avi#2"}
    capture = cv2.VideoCapture(str(out / "v.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3


def test_a_monitor_of_another_detector_is_refused(
    shared: Path, monitor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(shared / "weights/yolo11n-seg.pt")
    status = main(["predict", str(photographs(shared)[0]), "--detector", other, "--monitor", str(monitor),
                   "--out", str(tmp_path / "out")])
    assert status == 2
    assert "fitted on another detector" in capsys.readouterr().err


def test_through_a_config_and_the_tool(shared: Path, detector: str, monitor: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"detector: {{weights: '{detector}', predict: {{conf: 0.9}}}}\nmonitor: {{path: '{monitor}'}}\n")
    tool = Path(__file__).resolve().parents[2] / "tools/predict.py"
    done = subprocess.run(
        [sys.executable, str(tool), str(photographs(shared)[0]), "--config-file", str(config), "--out",
         str(tmp_path / "out"), "detector.predict.conf", "0.05", *SMALL],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert min(r["score"] for r in rows(tmp_path / "out")) < 0.9


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ([], 0, "predict"),
        (["--help"], 0, "calibrate"),
        (["predikt"], 2, "did you mean 'predict'"),
        (["--version"], 0, "reliability_hooks 0."),
        (["predict", "nowhere", "--detector", "x.pt"], 2, "nowhere"),
        (["predict", ".", "--out"], 2, "expected one argument"),
    ],
)
def test_the_way_in(argv: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        got = main(argv)
    except SystemExit as e:  # argparse
        got = e.code
    printed = capsys.readouterr()
    assert got == status
    assert message in printed.out + printed.err


def test_a_table_of_the_detections_of_any_callable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    (tmp_path / "mine.py").write_text(
        "import numpy as np, supervision as sv\n"
        "def run(image):\n"
        "    box = np.array([[2, 3, 30, 40.0]])\n"
        "    return sv.Detections(box, confidence=np.array([0.5]), class_id=np.array([0]))\n"
    )
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "7.png")
    status = main(["predict", str(tmp_path / "7.png"), "--detector", f"callable:{tmp_path}/mine.py:run", "--out",
                   str(tmp_path / "out"), "--format", "parquet", "monitor.signals", "[geometry]"])  # fmt: skip
    assert status == 0
    table = parquet.read_table(tmp_path / "out/predictions.parquet").to_pydict()
    assert table["image_id"] == [7]
    assert table["bbox"] == [[2, 3, 28, 37]]
    assert table["geometry/width"] == pytest.approx([np.log(28)])
    assert not (tmp_path / "out/predictions.json").exists()
    assert "predictions.parquet" in capsys.readouterr().out


def report_of(path: Path) -> dict:
    """What the page's script works on."""
    return json.loads(path.read_text(encoding="utf-8").partition('id="page">')[2].partition("</script>")[0])


def test_a_report(shared: Path, detector: str, monitor: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for path in photographs(shared)[:2]:
        (source / path.name).write_bytes(path.read_bytes())
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(source / "z_black.png")
    (source / "broken.jpg").write_text("no image")
    status = main(["predict", str(source), "--detector", detector, "--monitor", str(monitor), "--report", "--out",
                   str(out), "--conf", "0.1", *SMALL])  # fmt: skip
    assert status == 1
    page, found = report_of(out / "report.html"), rows(out)
    assert [image["name"] for image in page["images"]] == [*(p.name for p in photographs(shared)[:2]), "z_black.png"]
    assert len(page["instances"]) == len(found)
    for shown, row in zip(page["instances"], found, strict=True):
        assert shown["name"] == row["category_name"]
        assert shown["r"] == pytest.approx(row["reliability"], abs=1e-4)
        assert shown["ood"]["p"] == pytest.approx(row["columns"]["ood_p_value"], abs=1e-4)
        assert page["calibration"][shown["ood"]["cell"]]["images"] > 0
        assert shown["shares"]
    typical = [i["r"] - sum(change for _, change in i["shares"]) for i in page["instances"]]
    assert np.ptp(typical) < 2e-3  # what the signals add leads from one and the same value to each reliability
    text = (out / "report.html").read_text(encoding="utf-8")
    for words in ("broken.jpg", "Drift against the calibration images", "How unusual the objects are", "Classes"):
        assert words in text


def test_a_report_without_a_monitor_and_one_that_has_no_place(
    shared: Path, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    file = tmp_path / "there/r.html"
    given = ["predict", str(photographs(shared)[0]), "--detector", detector, "--out", str(tmp_path), "--report"]
    assert main([*given, str(file), *SMALL]) == 0
    page = report_of(file)
    assert not page["fitted"]
    assert {row["r"] for row in page["instances"]} == {None}
    assert "No monitor was fitted" in file.read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main([*given, *SMALL])
    assert "does not end in .html" in capsys.readouterr().err
