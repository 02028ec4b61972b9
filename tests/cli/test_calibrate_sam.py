"""`calibrate` for masks without classes: prompts of annotated objects, right by the overlap of masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reliability_hooks import Monitor, attach
from reliability_hooks.cli import main
from reliability_hooks.hosts.segment_anything import SegmentAnythingHost

from ..hosts.segment_anything_cases import sam_predictor

SIDE = 96


def scenes(folder: Path, count: int = 8) -> Path:
    """Images of bright rectangles on noise, with their outlines as COCO polygons."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        pixels = random.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        for x, y in ((6, 8), (50, 40)):
            w, h = (int(v) for v in random.integers(20, 40, 2))
            pixels[y : y + h, x : x + w] = random.integers(150, 255, 3)
            annotations.append({
                "id": len(annotations) + 1, "image_id": i, "category_id": 7 + i % 2, "bbox": [x, y, w, h],
                "area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            })  # fmt: skip
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": 7, "name": "box"}, {"id": 8, "name": "crate"}]
    path = folder / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, predictor = scenes(tmp_path), sam_predictor(None)
    weights = tmp_path / "sam.pth"
    torch.save(predictor.model.state_dict(), weights)
    given: dict[str, Any] = {}

    def load(spec: str, **options: Any) -> Any:
        given.update(options, spec=spec)
        return predictor

    monkeypatch.setattr(SegmentAnythingHost, "load", load)  # the published architectures are too large for a test
    out = tmp_path / "monitor"
    assert main([
        "calibrate", "--detector", f"segment_anything:vit_b:{weights}", "--images", str(tmp_path), "--annotations",
        str(annotations), "--out", str(out), "detector.load.kind", "predictor", "detector.predict.multimask", "true",
        "monitor.signals", "[mask_quality, promptable]", "monitor.iou_threshold", "0.2", "monitor.taus", "[0.3]",
    ]) == 0  # fmt: skip
    assert given == {"spec": f"vit_b:{weights}", "kind": "predictor"}
    report = json.loads((out / "report.json").read_text())
    assert "mask IoU >= 0.2 with its object, of whatever class" in report["protocol"]
    assert report["metrics"]["detector's score"]["brier"]["value"] >= 0
    monitor = Monitor.load(out)
    assert monitor.judge is not None
    with attach(predictor, monitor, strict=True):
        predictor.set_image(np.array(Image.open(tmp_path / "0.png")))
        predictor.predict(box=np.array([6.0, 8.0, 40.0, 40.0]))
        found = predictor.instances
    assert ((found.reliability >= 0) & (found.reliability <= 1)).all()
    assert found.column("expected_iou").isfinite().all()
    assert (found.column("p_tp_30") <= found.reliability + 1e-6).all()
    assert "right" in capsys.readouterr().out
