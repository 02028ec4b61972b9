"""Planted cues: the set is what it says, and where a detector's rule is known the right explanation is recognised."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks.evaluation.faithfulness import deletion_insertion
from reliability_hooks.evaluation.localisation import cue_found
from reliability_hooks.evaluation.planted_cues import PLACES, PlantedCue, read_planted_cues
from reliability_hooks.images import read_image

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_planted_cues.py"
GRID = 8


class CueDetector:
    """Scores the object by `weight` x what is left of the sticker + (1 - weight) x what is left of the object.

    What is left of a region is the share of its pixels that still show what they showed: linear in the pixels, so the
    true importance of a pixel is `weight` / sticker area, or (1 - weight) / object area.
    """

    def __init__(self, pixels: Tensor, cue: Tensor, mask: Tensor, weight: float) -> None:
        self.pixels = pixels
        self.importance = weight * cue / cue.sum().clamp(min=1) + (1 - weight) * (mask & ~cue) / (mask & ~cue).sum()

    def __call__(self, pictures: Tensor) -> Tensor:
        kept = (pictures - self.pixels).abs().amax(1) < 1 / 255
        return (kept * self.importance).sum((1, 2))[:, None]


def occlusion(detector: CueDetector) -> Tensor:
    """(1, h, w): the drop of the score while each cell of a grid is grey."""
    h, w = detector.pixels.shape[1:]
    row, column = torch.arange(h) * GRID // h, torch.arange(w) * GRID // w
    cell = row[:, None] * GRID + column
    mean, hidden = detector.pixels.mean((1, 2), keepdim=True), cell == torch.arange(GRID**2)[:, None, None]
    drop = detector(detector.pixels[None]) - detector(torch.where(hidden[:, None], mean, detector.pixels))
    return drop[:, 0][cell][None]


def tensors(cue: PlantedCue) -> tuple[Tensor, Tensor, Tensor]:
    """Picture, sticker and object, every third pixel: the many passes are quick, and colours stay exact."""
    pixels = torch.from_numpy(read_image(cue.path)[::3, ::3]).permute(2, 0, 1).contiguous() / 255
    return pixels, torch.from_numpy(cue.cue[::3, ::3].copy()), torch.from_numpy(cue.mask[::3, ::3].copy())


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_planted_cues", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(tool: ModuleType, shared: Path, out: Path, *more: str) -> int:
    coco = shared / "data" / "coco"
    code: int = tool.main(["--images", str(coco / "val2017"), "--annotations", str(coco / "instances_val2017.json"),
                           "--out", str(out), *more])  # fmt: skip
    return code


@pytest.fixture(scope="module")
def planted(tool: ModuleType, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planted")
    assert make(tool, shared, out, "--count", "3") == 0
    return out


def test_pictures_differ_in_the_sticker_alone(planted: Path) -> None:
    cues = read_planted_cues(planted)
    assert [c.place for c in cues] == ["on", "beside", "absent"] * 3
    assert set(PLACES) == {c.place for c in cues}
    for on, beside, absent in zip(cues[::3], cues[1::3], cues[2::3], strict=True):
        assert on.source == beside.source == absent.source
        plain = read_image(absent.path)
        for one in (on, beside):
            assert one.cue.any()
            assert (read_image(one.path)[~one.cue] == plain[~one.cue]).all()
            assert (read_image(one.path)[one.cue] != plain[one.cue]).any(1).mean() > 0.9
        assert not absent.cue.any()
        assert on.mask[on.cue].all()
        assert not beside.mask[beside.cue].any()
        ys, xs = np.nonzero(beside.mask)
        y, x = np.nonzero(beside.cue)
        side = np.ptp(y) + 1
        assert np.maximum(abs(ys[:, None] - y[::7]), abs(xs[:, None] - x[::7])).min() <= side + 7
        x1, y1, x2, y2 = on.box
        assert abs(np.array([xs.min() - x1, ys.min() - y1, xs.max() + 1 - x2, ys.max() + 1 - y2])).max() < 3


def test_equal_arguments_give_equal_sets(tool: ModuleType, shared: Path, planted: Path, tmp_path: Path) -> None:
    assert make(tool, shared, tmp_path, "--count", "3") == 0
    for file in sorted(planted.rglob("*.*")):
        assert file.read_bytes() == (tmp_path / file.relative_to(planted)).read_bytes()
    other = tmp_path / "other"
    assert make(tool, shared, other, "--count", "1", "--seed", "1") == 0
    assert read_planted_cues(other)[0].source != read_planted_cues(planted)[0].source


def test_occlusion_finds_the_cue_where_it_decides_and_only_there(planted: Path) -> None:
    for cue in read_planted_cues(planted):
        if cue.place == "absent":
            continue
        pixels, sticker, mask = tensors(cue)
        decides = occlusion(CueDetector(pixels, sticker, mask, weight=0.95))
        assert bool(cue_found(decides, sticker[None]).found)
        if cue.place == "beside":
            idle = cue_found(occlusion(CueDetector(pixels, sticker, mask, weight=0.0)), sticker[None])
            assert float(idle.share) < float(cue_found(decides, sticker[None]).share)
            assert not cue_found(mask[None].float(), sticker[None], top=float(mask.float().mean())).found


@pytest.mark.parametrize("fill", ["grey", "blur", "inpaint"])
def test_faithfulness_prefers_the_true_importance(planted: Path, fill: str) -> None:
    cue = next(c for c in read_planted_cues(planted) if c.place == "beside")
    pixels, sticker, mask = tensors(cue)
    g = torch.Generator().manual_seed(0)
    blind = torch.rand((1, *mask.shape), generator=g)
    for weight, better, worse in ((1.0, sticker, mask), (0.0, mask, sticker)):
        detector = CueDetector(pixels, sticker, mask, weight)
        oa = [
            float(deletion_insertion(detector, pixels, m, masks=mask[None], area="object", fill=fill, steps=6).oa)
            for m in (better[None].float(), worse[None].float(), blind)
        ]
        assert oa[0] > max(oa[1:]) + 0.1
    if fill == "grey":  # in a range of twice the sticker the score falls in a straight line, then nothing is left
        found = deletion_insertion(CueDetector(pixels, sticker, mask, 1.0), pixels, sticker[None].float(),
                                   masks=sticker[None], area="object", steps=6)  # fmt: skip
        assert (float(found.deletion), float(found.insertion)) == pytest.approx((0.25, 0.75), abs=2e-3)


def test_what_cannot_be_made_or_read_is_said(
    tool: ModuleType, shared: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--images", str(tmp_path), "--annotations", str(tmp_path / "no.json"), "--out", str(tmp_path)]
    assert tool.main(nowhere) == 2
    assert "no.json" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        read_planted_cues(tmp_path)
    (tmp_path / "cues.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="make_planted_cues"):
        read_planted_cues(tmp_path)
    (tmp_path / "cues.json").write_text((planted / "cues.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"9 picture\(s\) missing"):
        read_planted_cues(tmp_path)
    coco = json.loads((shared / "data/coco/instances_val2017.json").read_text())
    coco["images"] = coco["images"][:1]
    coco["annotations"] = []
    (tmp_path / "empty.json").write_text(json.dumps(coco))
    arguments = ["--images", str(shared / "data/coco/val2017"), "--annotations", str(tmp_path / "empty.json")]
    assert tool.main([*arguments, "--out", str(tmp_path / "none")]) == 1
    assert "only 0 photographs" in capsys.readouterr().err
    assert read_planted_cues(tmp_path / "none") == []
