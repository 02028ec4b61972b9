"""Exported ultralytics models: nothing of the network can be seen, so that boxes and pixels are all the evidence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from reliability_hooks import Monitor, attach
from reliability_hooks.hosts.base import find_host, load
from reliability_hooks.monitor import StateError

from .case import photographs
from .ultralytics_cases import run, seeded


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """TorchScript files of two detectors that differ in one weight."""
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    folder, files = tmp_path_factory.mktemp("export"), []
    model = seeded(None, "yolo26n.yaml")
    for k in range(2):
        twin = ultralytics.YOLO("yolo26n.yaml")
        twin.model.load_state_dict(model.model.state_dict())
        with torch.no_grad():
            next(twin.model.parameters()).view(-1)[0] += 0.01 * k
        twin.ckpt_path = str(folder / f"model{k}.pt")
        twin.model.pt_path = twin.ckpt_path
        files.append(Path(twin.export(format="torchscript", imgsz=320)))
    return files


def opened(file: Path) -> Any:
    return load(f"ultralytics:{file}")


def test_image_signals_are_left(exports: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    model, images = opened(exports[0]), photographs(None, ((320, 320),))
    bare = run(model, images, conf=0.01)
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(model, Monitor(), strict=True):
        results = [run(model, images, conf=0.01) for _ in range(2)]
    for (result,) in results:
        assert torch.equal(result.boxes.data, bare[0].boxes.data)
        assert len(result) > 0
        assert result.instances.logits is None
        assert result.instances.column("image/sharpness").isfinite().any()
        assert result.reliability.isnan().all()
    said = [r.getMessage() for r in caplog.records if "an exported model (torchscript)" in r.getMessage()]
    assert len(said) == 1


def test_known_by_its_bytes(exports: list[Path]) -> None:
    one, other = (find_host(opened(file)).fingerprint() for file in exports)
    assert one != other
    assert one == find_host(opened(exports[0])).fingerprint()


def test_monitor_of_another_export_is_refused(exports: list[Path]) -> None:
    monitor = Monitor()
    monitor.fingerprint = find_host(opened(exports[0])).fingerprint()
    with attach(opened(exports[0]), monitor):
        pass
    with pytest.raises(StateError):
        attach(opened(exports[1]), monitor)
