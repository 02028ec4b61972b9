"""The detector that comes with the package: what it gives, that it sees, that damaged files are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.ops import box_iou

from reliability_hooks import Monitor, attach
from reliability_hooks.evaluation.datasets import read_coco
from reliability_hooks.hosts.base import find_host, load
from reliability_hooks.hosts.torchvision_demo import (
    CONFIG,
    FOLDER,
    MONITOR,
    SCORE_THRESH,
    WEIGHTS,
    build,
    load_demo_detector,
)
from reliability_hooks.images import read_image

detection = pytest.importorskip("torchvision.models.detection")
Outputs = list[dict[str, Tensor]]


@pytest.fixture(scope="module")
def detector() -> Any:
    return load_demo_detector()


def pictures() -> list[Tensor]:
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.random((3, *size))).float() for size in ((90, 140), (128, 96))]


def same(a: Outputs, b: Outputs) -> bool:
    return all(x.keys() <= y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def test_it_fits_into_the_package_and_has_a_card() -> None:
    assert {CONFIG, WEIGHTS, "CARD.md"} <= {f.name for f in FOLDER.iterdir()}
    assert sum(f.stat().st_size for f in FOLDER.rglob("*")) <= 24e6
    card = (FOLDER / "CARD.md").read_text(encoding="utf-8")
    assert all(f"## {word}" in card for word in ("Data", "Licence", "Figures", "Limits"))
    names = json.loads((FOLDER / CONFIG).read_text(encoding="utf-8"))["names"]
    assert all(f"| {name} |" in card for name in names[1:])


def test_it_is_torchvisions_own_class_and_knows_its_names(detector: Any) -> None:
    assert type(detector) is detection.MaskRCNN
    assert not detector.training
    assert detector.names == detector.class_names
    assert detector.names[0] == "__background__"
    assert detector.roi_heads.box_predictor.cls_score.out_features == len(detector.names)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in detector.parameters())


@torch.inference_mode()
def test_output_is_as_torchvision_has_it_and_the_same_again(detector: Any) -> None:
    detector.roi_heads.score_thresh, before = 0.0, detector.roi_heads.score_thresh
    found, again = detector(pictures()), load_demo_detector()
    again.roi_heads.score_thresh = 0.0
    assert same(found, again(pictures()))
    detector.roi_heads.score_thresh = before
    for picture, out in zip(pictures(), found, strict=True):
        n, (height, width) = len(out["boxes"]), picture.shape[1:]
        assert n > 0
        assert out["masks"].shape == (n, 1, height, width)
        assert out["scores"].shape == out["labels"].shape == (n,)
        assert (out["labels"] >= 1).all()
        assert (out["labels"] < len(detector.names)).all()
        assert (out["boxes"] >= 0).all()
        assert (out["boxes"] <= torch.tensor([width, height, width, height])).all()


def test_by_its_name_it_is_as_its_monitor_knows_it() -> None:
    assert load("demo").roi_heads.score_thresh == SCORE_THRESH
    assert load("demo", score_thresh=0.4).roi_heads.score_thresh == 0.4
    with pytest.raises(ValueError, match="score_thresh"):
        load("demo", score_thresh=4)


def test_the_monitor_in_the_package_is_its_own(detector: Any) -> None:
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    Monitor.load(MONITOR).check(find_host(detector).fingerprint)


def test_loading_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_demo_detector()
    assert torch.equal(torch.rand(2), expected)


@torch.inference_mode()
def test_it_sees_large_objects_in_photographs_that_it_was_not_trained_on(shared: Path, detector: Any) -> None:
    coco = shared / "data" / "coco"
    dataset = read_coco(coco / "instances_val2017.json", coco / "val2017")
    own = np.array([detector.names.index(name) if name in detector.names else 0 for name in dataset.names])
    seen, large = 0, 0
    for record in dataset.images[:50]:
        labels, boxes = torch.from_numpy(own[record.truth.labels]), torch.from_numpy(record.truth.boxes)
        use = (labels > 0) & ((boxes[:, 2:] - boxes[:, :2]).amin(1) > 80)
        if not use.any():
            continue
        (out,) = detector([torch.from_numpy(read_image(record.path)).permute(2, 0, 1) / 255])
        sure = out["scores"] > 0.3
        overlap = box_iou(boxes[use], out["boxes"][sure])
        right = (overlap > 0.5) & (labels[use][:, None] == out["labels"][sure])
        seen, large = seen + int(right.any(1).sum()), large + int(use.sum())
    assert large >= 8
    assert seen >= 0.4 * large


@torch.inference_mode()
def test_hooks_find_logits_features_and_names(detector: Any) -> None:
    threshold, detector.roi_heads.score_thresh = detector.roi_heads.score_thresh, 0.0
    bare = detector(pictures())
    with attach(detector, Monitor(["geometry", "candidates", "ood/logits"]), strict=True):
        hooked = detector(pictures())
    again = detector(pictures())
    detector.roi_heads.score_thresh = threshold
    assert same(bare, hooked)
    assert same(bare, again)
    for out in hooked:
        instances = out["instances"]
        assert instances.head == "softmax+background"
        assert instances.logits.shape == (len(out["boxes"]), len(detector.names))
        own = instances.probabilities().gather(1, out["labels"][:, None])[:, 0]
        assert torch.allclose(own, out["scores"], atol=1e-5)
        assert instances.features.isfinite().all()
        assert any(name.startswith("ood/") for name in instances.columns)


@torch.inference_mode()
def test_hooks_find_its_feature_maps_and_classifier(detector: Any) -> None:
    with attach(detector, Monitor(["geometry"]), strict=True) as handle, handle.frames("maps", "classifier") as frames:
        detector(pictures())
    for frame in frames:
        assert frame.maps is not None
        widths = [level.shape[0] for level in frame.maps.values()]
        assert widths == [24, 40, 112]  # the ends of the stages of strides 4, 8 and 16
        assert frame.classifier is not None or len(frame.instances) == 0


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in (CONFIG, WEIGHTS):
        shutil.copy(FOLDER / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_demo_detector(copied)


def test_damaged_weights_are_refused(copied: Path) -> None:
    file = copied / WEIGHTS
    state = {name: value.clone() for name, value in load_file(file).items()}  # the file is mapped, and overwritten here
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged"):
        load_demo_detector(copied)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        load_demo_detector(copied)
    save_file({k: v for k, v in state.items() if k != "roi_heads.mask_predictor.mask_fcn_logits.bias"}, file)
    with pytest.raises(ValueError, match="mask_fcn_logits"):
        load_demo_detector(copied)
    save_file({**state, "stray": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="stray"):
        load_demo_detector(copied)


@pytest.mark.parametrize("content", [
    "{", "[]", "{}", '{"names": ["person"]}', "null",
])
def test_a_damaged_config_is_refused(copied: Path, content: str) -> None:
    (copied / CONFIG).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        load_demo_detector(copied)


@pytest.mark.parametrize("change", [
    {"names": ["person", "car"]}, {"names": ["__background__", "car", "car"]}, {"names": ["__background__"]},
    {"channels": 64}, {"anchors": [[16], [32]]}, {"colour": "blue"},
])  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(copied: Path, change: dict[str, Any]) -> None:
    config = json.loads((copied / CONFIG).read_text(encoding="utf-8"))
    (copied / CONFIG).write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"damaged|does not fit"):
        load_demo_detector(copied)


def test_build_gives_a_detector_that_learns() -> None:
    config = json.loads((FOLDER / CONFIG).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = build(**{**config, "names": ["__background__", "a"], "min_size": 64, "max_size": 96})
    target = {"boxes": torch.tensor([[10.0, 10, 50, 60]]), "labels": torch.tensor([1]),
              "masks": torch.ones(1, 64, 96, dtype=torch.uint8)}  # fmt: skip
    losses = model([torch.rand(3, 64, 96)], [target])
    sum(losses.values()).backward()
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert all(p.grad is not None for p in model.parameters())
