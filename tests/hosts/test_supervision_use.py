"""A callable as a detector in use: loaded, sliced, calibrated, and compared with a host that knows more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reliability_hooks import Monitor, attach
from reliability_hooks.hosts.base import load
from reliability_hooks.hosts.supervision import Detector, score
from reliability_hooks.hosts.supervision_rows import to_truth
from reliability_hooks.reliability.state import StateError

from .case import photographs

sv = pytest.importorskip("supervision", reason="supervision is not installed")

SIGNALS = ["geometry", "image"]


def test_loaded_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import supervision as sv\ndef run(image):\n    return sv.Detections.empty()\n")
    detector = load(f"callable:{tmp_path}/mine.py:run", names={0: "cat"}, version="3")
    assert len(detector(np.zeros((9, 9, 3), np.uint8))) == 0
    assert detector.fingerprint() != Detector(detector.model, {0: "cat"}, "4").fingerprint()
    for spec, error, message in [("mine", ValueError, "write FILE.py:NAME"), (f"{tmp_path}/mine.py:walk", ValueError,
                                 "no 'walk'"), (f"{tmp_path}/gone.py:run", FileNotFoundError, "no file")]:  # fmt: skip
        with pytest.raises(error, match=message):
            load(f"callable:{spec}")


def test_slices_of_supervision() -> None:
    """A callable of supervision's own, around a hooked detector and inside of one."""
    def detect(part: np.ndarray) -> sv.Detections:
        return sv.Detections(np.array([[10, 10, 30, 40.0]]), confidence=np.array([0.5]), class_id=np.array([0]))

    (image,) = photographs(None, ((100, 120),))
    hooked, slices = Detector(detect), {"slice_wh": (60, 60), "overlap_wh": (0, 0)}
    with attach(hooked, Monitor(SIGNALS), strict=True):
        inside = sv.InferenceSlicer(callback=hooked, **slices)(image)
    slicer = Detector(sv.InferenceSlicer(callback=detect, **slices))
    with attach(slicer, Monitor(SIGNALS), strict=True):
        around = slicer(image)
    for found in (inside, around):
        assert len(found) > 1
        assert found.data.keys() >= {"reliability", "image/sharpness"}


def test_a_monitor_is_fitted_saved_and_refused_elsewhere(tmp_path: Path) -> None:
    """Boxes on white squares are right, others wrong: what the pixels show is learnt; some images have no boxes."""
    draw = np.random.default_rng(0)
    scenes = []
    for k in range(60):
        scene = draw.integers(0, 90, (100, 100, 3), dtype=np.uint8)
        right = draw.random(4) < 0.5
        boxes = np.array([[x, y, x + 30, y + 30] for x in (5, 60) for y in (5, 60)], np.float32)
        for x1, y1, x2, y2 in boxes[right].astype(int):
            scene[y1:y2, x1:x2] = 255
        n = 0 if k % 20 == 0 else 4
        found = sv.Detections(boxes[:n], confidence=draw.uniform(0.3, 0.9, n), class_id=np.zeros(n, int))
        scenes.append((scene, found, sv.Detections(boxes[right], class_id=np.zeros(right.sum(), int)), right[:n]))
    answers = iter(found for _, found, _, _ in scenes)
    detector = Detector(lambda _: next(answers), {0: "square"}, "v1")
    monitor = Monitor(["cheap"])  # `candidates` and `ood/logits` are skipped
    with attach(detector, monitor, strict=True) as handle:
        pairs = [(handle.predict([scene])[0], to_truth(truth)) for scene, _, truth, _ in scenes]
        monitor.fit(pairs, fingerprint=detector.fingerprint())
    monitor.save(tmp_path)
    loaded = Monitor.load(tmp_path)
    scored = [score(scene, found, loaded, {0: "square"}, "v1", strict=True) for scene, found, _, _ in scenes]
    reliability = np.concatenate([s.data["reliability"] for s in scored])
    right = np.concatenate([right for _, _, _, right in scenes])
    assert reliability[right].min() > reliability[~right].max()
    with pytest.raises(StateError, match=r"another detector .*weights"):
        score(scenes[0][0], scenes[0][1], loaded, {0: "square"}, "v2")


def test_the_same_signals_as_the_ultralytics_host(shared: Path) -> None:
    """What the fallback sees of yolo11n-seg's own Detections is what the host of its framework sees."""
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    from reliability_hooks.images import read_image

    pictures = map(read_image, sorted((shared / "data/coco/val2017").glob("*.jpg")))
    picture = next(p for p in pictures if p.shape[:2] == (480, 640))  # which the network sees unscaled
    model = ultralytics.YOLO(str(shared / "weights/yolo11n-seg.pt"))
    with attach(model, Monitor(SIGNALS), strict=True):
        (result,) = model.predict(picture[..., ::-1].copy(), conf=0.05, imgsz=640, verbose=False)
    scored = score(picture, sv.Detections.from_ultralytics(result), Monitor(SIGNALS), model.names, strict=True)
    assert len(scored) >= 3
    assert np.array_equal(scored.confidence, result.boxes.conf)
    own = result.instances.columns
    assert own.keys() - {"reliability_interval"} <= scored.data.keys()
    for name in own.keys() - {"reliability", "reliability_interval", "verdict", "expected_iou"}:
        assert np.isfinite(scored.data[name]).all(), name
        np.testing.assert_allclose(scored.data[name], own[name], rtol=1e-4, atol=1e-4, err_msg=name)
