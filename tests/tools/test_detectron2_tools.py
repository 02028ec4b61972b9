"""tools/detectron2_predict.py and tools/detectron2_eval.py on a small model of random weights."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.modeling import build_model

from reliability_hooks.detectron2 import load_config

from ..hosts.detectron2_cases import TINY

ROOT = Path(__file__).resolve().parents[2]
ZOO = "model_zoo:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with weights, an image and a COCO data set of it."""
    made = tmp_path_factory.mktemp("tools")
    own = load_config(ZOO, [item for pair in TINY.items() for item in pair])
    own.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    own.DATALOADER.NUM_WORKERS = 0
    torch.manual_seed(0)
    torch.save({"model": build_model(own).state_dict()}, made / "weights.pth")
    own.MODEL.WEIGHTS = str(made / "weights.pth")
    keys = {"MODEL": own.MODEL, "INPUT": own.INPUT, "TEST": own.TEST, "DATALOADER": own.DATALOADER}
    (made / "mine.yaml").write_text(f"_BASE_: {ZOO}\n" + type(own)(keys).dump())
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    (made / "images").mkdir()
    Image.fromarray(pixels).save(made / "images/1.png")
    (made / "coco.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "1.png", "height": 60, "width": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0,
                         "segmentation": [[5, 5, 35, 5, 35, 35, 5, 35]]}],
        "categories": [{"id": k + 3, "name": f"thing {k}"} for k in range(5)],
    }))  # fmt: skip
    return made


def tool(name: str, *words: str) -> int:
    """Run here: a process of its own would import Detectron2 anew."""
    spec = spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    status: int = module.main(words)
    return status


def test_predict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = tool("detectron2_predict", "--config-file", str(folder / "mine.yaml"), "--input", str(folder / "images"),
                  "--output", str(folder / "out"), "--confidence-threshold", "0", "--opts",
                  "MODEL.RELIABILITY.SIGNALS", "['geometry']")  # fmt: skip
    assert (status, "reliability is unknown" in capsys.readouterr().out) == (0, True)
    rows = json.loads((folder / "out/predictions.json").read_text())
    assert len(rows) > 0
    assert rows[0].keys() >= {"bbox", "score", "reliability", "verdict", "segmentation", "columns"}
    picture = np.array(Image.open(folder / "out/1.png"))
    assert picture.shape[:2] == (60, 80)
    assert not np.array_equal(picture[..., :3], np.array(Image.open(folder / "images/1.png")))


def test_eval(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = tool("detectron2_eval", "--config-file", str(folder / "mine.yaml"), "--dataset", "tools_test",
                  str(folder / "coco.json"), str(folder / "images"), "--output", str(folder / "eval"), "--opts",
                  "DATASETS.TEST", "('tools_test',)")  # fmt: skip
    assert (status, "tools_test bbox: AP" in capsys.readouterr().out) == (0, True)
    out = folder / "eval/inference/tools_test"
    rows = json.loads((out / "reliability_instances_results.json").read_text())
    plain = json.loads((out / "coco_instances_results.json").read_text())
    assert [r["score"] for r in rows] == pytest.approx([r["score"] for r in plain])
    assert [r["category_id"] for r in rows] == [r["category_id"] for r in plain]
    assert (out / "reliability_metrics.json").is_file()
