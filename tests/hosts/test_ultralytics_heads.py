"""Heads of ultralytics that are not YOLO's own: RT-DETR, YOLO-World, YOLOE, and one that nobody knows."""

from __future__ import annotations

import logging
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reliability_hooks import Monitor, attach
from reliability_hooks.frame import MAPS, Frame

from ..conftest import SHARED
from .case import Recorder, Subject, photographs
from .spread import spread
from .test_conformance import same
from .test_look import watch
from .ultralytics_cases import case, last

ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
FOLDER = SHARED if (SHARED / "README.md").is_file() else None
HEADS = {
    "rtdetr": ("RTDETR", "tiny-rtdetr.yaml", ("dec_score_head.1",), ("dec_bbox_head.1.layers.2",)),
    "world": ("YOLOWorld", "yolov8s-worldv2.yaml", last("cv3"), last("cv2")),
    "yoloe": ("YOLOE", "yoloe-11s.yaml", last("cv3"), last("cv2")),
    "yoloe_seg": ("YOLOE", "yoloe-11s-seg.yaml", last("cv3"), last("cv2")),
}
TINY = """
nc: 5
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [[2, 3, 4], 1, RTDETRDecoder, [nc, 32, 30, 4, 4, 2, 64]]
"""


def seeded(folder: Any, name: str) -> Any:
    kind, config, classes, boxes = HEADS[name]
    torch.manual_seed(0)
    with TemporaryDirectory() as place:
        (Path(place) / "tiny-rtdetr.yaml").write_text(TINY)
        model = getattr(ultralytics, kind)(str(Path(place) / config) if name == "rtdetr" else config)
    if kind == "YOLOE":  # without prompts all its scores are alike
        model.set_classes([f"class {i}" for i in range(8)], nn.functional.normalize(torch.randn(1, 8, 512), dim=-1))
    image = torch.from_numpy(photographs(folder, ((160, 160),))[0]).permute(2, 0, 1)[None] / 255
    spread(model.model.eval(), image, classes=classes, boxes=boxes)
    head = model.model.model[-1]
    if name != "rtdetr":
        with torch.no_grad():  # spread over the sigmoid's middle: no two scores are alike, none is rounded to 1
            for contrast, box in zip(head.cv4, head.cv2, strict=True):
                contrast.bias.zero_()
                box[-1].bias += 3
            largest = model.model(image)[1]["scores"].abs().max()
            for contrast in head.cv4:
                contrast.logit_scale += (4 / largest).log()
    return model


@cache
def built(name: str) -> Subject:
    made = case(name, partial(seeded, name=name), single_label=False, conf=0.4, imgsz=160, max_det=20)
    with torch.no_grad():
        return Subject(made, FOLDER)


@pytest.mark.parametrize("name", HEADS)
def test_rows_are_found_and_nothing_changes(name: str) -> None:
    own, recorder = built(name), Recorder()
    with torch.no_grad(), attach(own.model, recorder, strict=True):
        hooked = own.run()
    same(own.case, own.bare, hooked)
    same(own.case, own.bare, own.run())
    for frame in recorder.frames:
        kept = frame.instances
        assert len(kept) >= 3
        assert kept.logits is not None
        assert kept.features is not None
        known = kept.logits.isfinite().all(1)
        assert float(known.float().mean()) >= 0.9
        probabilities: Tensor = kept.logits.sigmoid()[torch.arange(len(kept)), kept.labels]
        torch.testing.assert_close(probabilities[known], kept.scores[known], rtol=1e-4, atol=1e-4)
        assert frame.candidates is not None
        assert frame.view is not None
        assert frame.rerun is not None
        (again,) = frame.rerun(frame.view.pixels[None])
        torch.testing.assert_close(again.scores.sort().values, frame.candidates.scores.sort().values,
                                   rtol=1e-3, atol=1e-3)


def test_rtdetr_is_shown_stretched_pixels_and_can_be_looked_at() -> None:
    def check(frame: Frame) -> None:
        kept, view, look, last = frame.instances, frame.view, frame.look, frame.classifier
        assert view is not None
        assert look is not None
        assert last is not None
        assert kept.logits is not None
        assert kept.image_size is not None
        h, w = kept.image_size
        assert view.pixels.shape == (3, 160, 160)
        assert view.offset == (0, 0)
        assert view.scale == pytest.approx((160 / w, 160 / h))
        torch.testing.assert_close((last.weight[0] @ last.inputs.T).T + last.bias[0], kept.logits, rtol=1e-3, atol=1e-3)
        found = look(view.pixels[None], ("boxes", "layers"))
        torch.testing.assert_close(found.logits[0], kept.logits, rtol=1e-3, atol=1e-2)
        assert found.boxes is not None
        torch.testing.assert_close(view.to_image(found.boxes[0]), kept.boxes, rtol=1e-3, atol=0.5)
        assert frame.maps is not None
        assert found.layers is not None
        assert [frame.maps[name].shape[1:] for name in MAPS] == [(40, 40), (20, 20), (10, 10)]
        pixels = view.pixels.clone()
        with torch.inference_mode(False), torch.enable_grad():
            leaf = pixels.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(look(leaf[None]).logits[0, 0, kept.labels[0]], leaf)
        assert bool(gradient.isfinite().all())
        assert bool((gradient != 0).any())

    own = built("rtdetr")
    same(own.case, own.bare, watch(own, check, "look", "maps", "classifier"))
    same(own.case, own.bare, own.run())


def test_an_unknown_head_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from reliability_hooks.hosts import ultralytics_tap

    own, recorder = built("rtdetr"), Recorder()
    monkeypatch.setattr(ultralytics_tap, "is_rtdetr", lambda head: not isinstance(head, nn.Module))
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(own.model, recorder, strict=True):
        own.run()
        same(own.case, own.bare, own.run())
    assert sum("is not known" in message for message in caplog.messages) == 1
    assert all(f.instances.logits is None and f.view is not None for f in recorder.frames)
    with attach(own.model, Monitor(["geometry", "image"]), strict=True):
        assert len(own.run()[0].instances) == len(own.bare[0].boxes)
