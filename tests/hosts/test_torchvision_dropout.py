"""Monte-Carlo dropout in torchvision models: none of the stock ones has dropout, so that it is put in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from reliability_hooks import Monitor, attach

from .case import Recorder, Subject
from .test_conformance import same
from .test_torchvision import subject
from .torchvision_cases import CASES, STOCK


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def dropper() -> Subject:
    """A two-stage model with dropout before its box predictor."""
    own = subject(STOCK, "fasterrcnn_mobilenet_v3_large_320_fpn")
    head = own.model.roi_heads.box_head
    head.fc7 = nn.Sequential(head.fc7, nn.Dropout(0.3)).eval()
    return own


def test_dropout(dropper: Subject) -> None:
    flags, generator = [m.training for m in dropper.model.modules()], torch.get_rng_state()
    with attach(dropper.model, Monitor(["dropout"]), strict=True):
        first, second = dropper.run(), dropper.run()
    same(dropper.case, dropper.bare, first)
    same(dropper.case, dropper.bare, second)
    assert [m.training for m in dropper.model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), generator)
    for a, b in zip(first, second, strict=True):
        columns = {k: v for k, v in a["instances"].columns.items() if k.startswith("dropout/")}
        assert all(v.isfinite().all() for v in columns.values())
        assert (columns["dropout/mutual_information"] > 0).any()
        assert (columns["dropout/variance"] > 0).any()
        assert all(torch.equal(v, b["instances"].columns[k]) for k, v in columns.items())


def test_dropout_is_in_training_for_one_pass_only(dropper: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, model = Recorder(), dropper.model
    dropout = model.roi_heads.box_head.fc7[1]
    seen: list[list[nn.Module]] = []

    def training(*args: Any) -> None:
        seen.append([m for m in model.modules() if m.training])

    model.roi_heads.register_forward_pre_hook(training)
    with attach(model, recorder, strict=True):
        dropper.run()
        (frame,) = recorder.frames
        assert frame.view is not None
        assert frame.rerun is not None
        assert frame.has("dropout")
        pixels = frame.view.pixels[None]
        plain, dropped, again = frame.rerun(pixels), frame.rerun(pixels, dropout=True), frame.rerun(pixels)
        assert seen == [[], [], [dropout], []]
        assert torch.equal(plain[0].scores, again[0].scores)
        assert not torch.equal(plain[0].scores, dropped[0].scores)

        def failing(*args: Any) -> None:
            raise ArithmeticError

        monkeypatch.setattr(model.roi_heads, "postprocess_detections", failing)
        with pytest.raises(ArithmeticError):
            frame.rerun(pixels, dropout=True)
        monkeypatch.undo()
        assert not any(m.training for m in model.modules())
        same(dropper.case, dropper.bare, dropper.run())


def test_no_dropout_is_said(caplog: pytest.LogCaptureFixture) -> None:
    own, recorder = subject(CASES, "SSD"), Recorder()
    with attach(own.model, recorder, strict=True):
        own.run()
    assert not recorder.frames[0].has("dropout")
    assert recorder.frames[0].has("model")
    with attach(own.model, Monitor(["dropout"]), strict=True):
        own.run()
    assert "signal dropout is skipped: this detector gives no dropout" in caplog.text
