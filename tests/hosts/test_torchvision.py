"""What only torchvision has: its own builders, loading, names, training mode, rounding."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reliability_hooks import Monitor, attach
from reliability_hooks.hosts.base import find_host, load
from reliability_hooks.hosts.torchvision import ADDED

from ..conftest import SHARED
from .case import Case, Recorder, Subject, photographs
from .test_conformance import alive, check_rounded, same
from .test_rows import naive_pool
from .torchvision_cases import CASES, STOCK

detection = pytest.importorskip("torchvision.models.detection")
NAME = "ssdlite320_mobilenet_v3_large"
IMAGE = np.full((40, 60, 3), 90, dtype=np.uint8)


def subject(cases: list[Case], name: str) -> Subject:
    folder = SHARED if (SHARED / "README.md").is_file() else None
    case = next(c for c in cases if c.name == f"torchvision/{name}")
    with torch.no_grad():
        return Subject(case, folder)


@pytest.fixture(scope="module")
def faster() -> Subject:
    return subject(CASES, "FasterRCNN")


@pytest.fixture(scope="module")
def ssdlite() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = load(f"torchvision:{NAME}", allow_random=True, num_classes=4)
    return model


@pytest.mark.parametrize("case", STOCK, ids=lambda case: case.name)
@torch.no_grad()
def test_own_builders(case: Case) -> None:
    own = subject(STOCK, case.name.partition("/")[2])
    with attach(own.model, Recorder(), strict=True):
        hooked = own.run()
    same(case, own.bare, hooked)
    for output in hooked:
        assert len(output["instances"]) > 0
        assert not output["instances"].logits.isnan().any()
        assert output["instances"].features.isfinite().all()


@pytest.mark.parametrize(("name", "dtype"), [
    ("FasterRCNN", torch.float16),  # roi_align knows no bfloat16
    ("RetinaNet", torch.float16), ("RetinaNet", torch.bfloat16), ("FCOS", torch.float16), ("SSD", torch.float16),
    ("SSD", torch.bfloat16),
])
@torch.no_grad()
def test_half_precision(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's CPU build has no half-precision NMS; with one in float32 all else runs as on an accelerator."""
    from torchvision.ops import boxes

    nms = boxes.nms
    monkeypatch.setattr(boxes, "nms", lambda b, s, threshold: nms(b.float(), s.float(), threshold))
    own = subject(CASES, name)
    own.model.to(dtype)
    bare = own.run()
    with attach(own.model, Monitor(), strict=True):
        hooked = own.run()
    same(own.case, bare, hooked)
    check_rounded([output["instances"] for output in hooked], own.case, dtype)


def test_training_mode_is_left_alone(faster: Subject) -> None:
    model = copy.deepcopy(faster.model).train()  # batch norm learns at every pass
    images = [torch.from_numpy(i).permute(2, 0, 1) / 255 for i in faster.images]
    targets = [{"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([1])} for _ in images]

    def losses() -> dict[str, Tensor]:
        torch.manual_seed(0)
        found: dict[str, Tensor] = model(images, targets)
        return found

    recorder = Recorder()
    with attach(model, recorder, strict=True) as handle:
        hooked = losses()
        with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
            handle.predict([IMAGE])
    bare = losses()
    assert bare.keys() == hooked.keys()
    assert all(torch.equal(bare[k], hooked[k]) for k in bare)
    assert recorder.frames == []


def test_failed_forward_leaves_nothing(faster: Subject) -> None:
    recorder = Recorder()
    with attach(faster.model, recorder, strict=True), torch.no_grad():
        with pytest.raises(ValueError, match="3d tensors"):
            faster.model([torch.zeros(1, 1, 3, 8, 8)])
        faster.model.transform([torch.zeros(3, 8, 8)])  # a part called by itself, outside a forward pass
        faster.model.roi_heads.box_predictor(torch.zeros(1, 1024))
        assert recorder.frames == []
        same(faster.case, faster.bare, faster.run())
    assert len(recorder.frames) == len(faster.images)


@pytest.mark.parametrize("fails", [False, True])
@torch.no_grad()
def test_nothing_is_kept_between_calls(faster: Subject, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> None:
        raise ArithmeticError

    with attach(faster.model, Monitor(signals=()), strict=True):
        before = alive()
        if fails:
            monkeypatch.setattr(faster.model.roi_heads, "postprocess_detections", failing)
            with pytest.raises(ArithmeticError):
                faster.run()
            monkeypatch.undo()
        else:
            faster.run()
        assert alive() == before


@torch.no_grad()
def test_features_lie_at_the_box_in_a_padded_batch() -> None:
    own, captured = subject(CASES, "RetinaNet"), []
    recorder = Recorder()
    handle = own.model.head.register_forward_hook(lambda module, args, output: captured.extend(args[0]))
    with attach(own.model, recorder, strict=True):
        own.run()
    handle.remove()
    for i, frame in enumerate(recorder.frames):
        view, features = frame.view, frame.instances.features
        assert view is not None
        assert features is not None
        finest = captured[0][i]  # stride 8, over the whole padded batch tensor
        boxes = view.to_view(frame.instances.boxes)
        wide = ((boxes[:, 2:] - boxes[:, :2]) > 4).all(1).nonzero()[:5, 0]  # clipping leaves some without width
        assert len(wide) == 5
        for box, row in zip(boxes[wide], features[wide], strict=True):
            expected = naive_pool(finest, box, (finest.shape[1] * 8, finest.shape[2] * 8))
            assert torch.allclose(row[: len(finest)].double(), expected, atol=1e-3)


def test_replaced_part_is_unknown_not_wrong(faster: Subject, caplog: pytest.LogCaptureFixture) -> None:
    predictor = faster.model.roi_heads.box_predictor
    with attach(faster.model, Monitor()), torch.no_grad():
        faster.model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(1024, 5)
        try:
            outputs = faster.run()
        finally:
            faster.model.roi_heads.box_predictor = predictor
    assert all(output["reliability"].isnan().all() for output in outputs)
    assert "attach again" in caplog.text


def test_tracing_is_left_alone(ssdlite: nn.Module) -> None:
    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ssdlite

        def forward(self, image: Tensor) -> Tensor:
            found: Tensor = self.model([image])[0]["boxes"]
            return found

    recorder, image = Recorder(), torch.rand(3, 64, 64)
    with attach(ssdlite, recorder, strict=True), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's own, about sizes becoming constants
        traced = torch.jit.trace(Boxes().eval(), image, check_trace=False)
        assert recorder.frames == []
        assert traced(image).shape[1] == 4


def test_subclass_and_keys(faster: Subject) -> None:
    class Mine(detection.FasterRCNN):  # type: ignore[misc]
        pass

    mine = object.__new__(Mine)
    mine.__dict__ = faster.model.__dict__
    with attach(mine, Monitor(), strict=True), torch.no_grad():
        output = mine([torch.from_numpy(faster.images[0]).permute(2, 0, 1) / 255])[0]
    assert list(output)[:3] == ["boxes", "labels", "scores"]
    assert set(output) - {"boxes", "labels", "scores"} == {*ADDED, "instances"}
    assert output["reliability"].shape == output["verdict"].shape == output["expected_iou"].shape
    assert {k: v.to("cpu") for k, v in output.items()}.keys() == output.keys()  # torchvision's own evaluation does this


def test_only_detectors() -> None:
    from torchvision.models import resnet18

    with pytest.raises(TypeError, match="ResNet is no detection model"):
        find_host(resnet18(weights=None))


def test_predict(faster: Subject) -> None:
    with attach(faster.model, Monitor(), strict=True) as handle:
        everything = handle.predict(faster.images)
        threshold = float(everything[0].scores.median())
        some = handle.predict(faster.images, conf=threshold)
        flipped = handle.predict([faster.images[0][:, ::-1]])
        for bad in (IMAGE[..., 0], IMAGE.astype(np.float32), np.concatenate([IMAGE, IMAGE], 2)):
            with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
                handle.predict([bad])
        with pytest.raises(TypeError, match="unknown option 'iou'"):
            handle.predict([IMAGE], iou=0.5)
    assert [len(i) for i in some] == [int((i.scores >= threshold).sum()) for i in everything]
    assert 0 < len(some[0]) < len(everything[0])
    assert flipped[0].image_size == faster.images[0].shape[:2]
    with pytest.raises(RuntimeError, match="not hooked"):
        find_host(faster.model).predict([IMAGE])


def test_gray_detectors_have_no_view(ssdlite: nn.Module) -> None:
    host = find_host(ssdlite)
    image = torch.rand(1, 30, 40)
    transform = detection.transform.GeneralizedRCNNTransform(32, 64, [0.5], [0.5]).eval()
    capture: Any = {"transform": (([image], None), transform([image]))}
    from reliability_hooks.hosts import torchvision as module

    assert module._view(transform, capture, 0) is None
    assert host.module() is ssdlite


# Loading ------------------------------------------------------------------------------------------------------------


def test_names(ssdlite: nn.Module) -> None:
    host = find_host(ssdlite)
    assert host.class_names() == {0: "class 0", 1: "class 1", 2: "class 2", 3: "class 3"}
    plain = host.fingerprint()
    named = load(f"torchvision:{NAME}", allow_random=True, num_classes=2, names=["__background__", "raccoon"])
    assert find_host(named).class_names() == {0: "__background__", 1: "raccoon"}
    ssdlite.class_names = {1: "a", 2: "b", 3: "c"}  # type: ignore[assignment]
    try:
        assert host.class_names() == {1: "a", 2: "b", 3: "c"}
        assert {k for k, v in host.fingerprint().items() if v != plain[k]} == {"classes"}
    finally:
        del ssdlite.class_names


def test_coco_names() -> None:
    model = load(f"torchvision:{NAME}", allow_random=True)
    names = find_host(model).class_names()
    assert (len(names), names[1], names[90]) == (91, "person", "toothbrush")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", "nested.pth"])
def test_load_reads_classes_from_the_weights(ssdlite: nn.Module, tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    file = tmp_path / f"weights{suffix}"
    state = ssdlite.state_dict()
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"model": state, "epoch": 3} if suffix.startswith("nested") else state, file)
    model = load(f"torchvision:{NAME}:{file}")
    assert not model.training
    assert find_host(model).fingerprint() == find_host(ssdlite).fingerprint()


@pytest.mark.parametrize("name", [case.name.partition("/")[2] for case in STOCK])
def test_classes_are_counted_for_every_family(name: str) -> None:
    from torchvision.models import get_model_builder

    from reliability_hooks.hosts.torchvision_zoo import _count_classes

    builder = get_model_builder(name)
    with torch.device("meta"):
        state = builder(weights=None, weights_backbone=None, num_classes=7).state_dict()
    assert _count_classes(builder, state) == 7
    assert _count_classes(builder, {"other": torch.zeros(3)}) is None


def test_load_errors(ssdlite: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="did you mean 'maskrcnn_resnet50_fpn'"):
        load("torchvision:maskrcnn_resnet50_fnp")
    with pytest.raises(ValueError, match=r"needs weights.*allow_random"):
        load(f"torchvision:{NAME}")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load(f"torchvision:{NAME}:nowhere.pth")
    file = tmp_path / "other.pth"
    torch.save(ssdlite.state_dict(), file)
    with pytest.raises(ValueError, match="does not fit"):
        load(f"torchvision:fcos_resnet50_fpn:{file}")

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    from torchvision.models import _api

    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    with pytest.raises(ConnectionError, match=r"could not download https://.*no network"):
        load(f"torchvision:{NAME}:DEFAULT")


def test_photographs_without_shared_data() -> None:
    images = photographs(None, ((20, 30), (40, 20)))
    assert [i.shape for i in images] == [(20, 30, 3), (40, 20, 3)]
    assert all(i.std() > 10 for i in images)
