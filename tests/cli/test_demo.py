"""`demo`: what befalls a photograph, what is found again, what is counted; and the whole of it on two pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reliability_hooks import Instances
from reliability_hooks.cli import demo
from reliability_hooks.cli.demo import CLEAN, STRANGE, Line, again, named_right, summary
from reliability_hooks.cli.demo_pictures import CONDITIONS, LONGEST, occluded, photographs, small, versions


def instances(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Instances:
    return Instances(torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))


def test_photographs_come_from_packages() -> None:
    found = list(photographs())
    assert len(found) >= 2  # those of scikit-learn are always there
    assert len({p.name for p in found}) == len(found)
    for p in found:
        assert p.pixels.dtype == np.uint8
        assert p.pixels.ndim == 3
        assert max(p.pixels.shape) <= LONGEST


def test_versions_are_told_apart_and_repeat() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    boxes = np.array([[10.0, 10, 50, 50]])
    first, second = (dict(versions(image, boxes, seed=3)) for _ in range(2))
    assert first.keys() == CONDITIONS.keys()
    for name, picture in first.items():
        assert picture.shape == image.shape
        assert (picture != image).any()
        assert (picture == second[name]).all()


def test_an_occluder_hides_the_lower_part_alone() -> None:
    image = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    hidden = (occluded(image, np.array([[20.0, 20, 60, 80]]), 0) != image).any(0)
    assert hidden[50:80, 20:60].all()
    assert not hidden[:46].any()
    assert not hidden[:, 70:].any()
    assert (occluded(image, np.zeros((0, 4)), 0) == image).all()
    assert (occluded(image, np.array([[200.0, 20, 260, 80]]), 0) == image).all()  # beside the picture


def test_small_keeps_the_shape() -> None:
    assert small(np.zeros((1000, 500, 3), np.uint8)).shape == (640, 320, 3)
    assert small(np.zeros((10, 20, 3), np.uint8)).shape == (10, 20, 3)


def test_the_same_object_is_of_the_same_class_in_the_same_place() -> None:
    objects = instances([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.9], [1, 2])
    found = instances([[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30]], [0.5, 0.7, 0.9], [1, 1, 3])
    assert again(objects, found).tolist() == [1, -1]
    assert again(objects, instances([], [], [])).tolist() == [-1, -1]
    assert again(instances([], [], []), found).tolist() == []


def test_counting() -> None:
    lines = [
        Line("cat", CLEAN, 2, 2, 0.8, ["", ""]),
        Line("cat", "blurred", 2, 2, 0.4, ["blur", "noise"]),
        Line("cat", "dark", 2, 0, float("nan"), []),
        Line("bus", "blurred", 3, 1, 0.1, ["low_light"]),
        Line("rocket", STRANGE, 1, 1, 0.2, [""]),
    ]
    assert summary(lines) == pytest.approx({CLEAN: 0.8, "blurred": 0.3, STRANGE: 0.2})
    assert named_right(lines) == (1, 2)


@pytest.mark.parametrize("names", [("street", "flower"), ("flower",)])
def test_the_whole_of_it(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    chosen = [p for p in photographs() if p.name in names]
    monkeypatch.setattr(demo, "photographs", lambda: chosen)
    assert demo.main(["--out", str(tmp_path)]) == 0
    said, page = capsys.readouterr().out, (tmp_path / "report.html").read_text(encoding="utf-8")
    for p in chosen:
        assert p.name in said
        assert p.name in page
    if "street" in names and any(p.name == "street" for p in chosen):
        assert "street, dark" in page


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise ImportError("pip install 'reliability_hooks[report]'")

    monkeypatch.setattr(demo, "check_installed", missing)
    assert demo.main([]) == 2
    assert "reliability_hooks[report]" in capsys.readouterr().err
