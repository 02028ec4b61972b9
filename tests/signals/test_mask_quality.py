"""Statistics of mask logits against the formulas written out, and against segment_anything's own stability score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reliability_hooks.frame import Frame
from reliability_hooks.instances import Instances
from reliability_hooks.signals.mask_quality import MaskQuality

from .prompted_fake import ellipses


def columns(logits: Tensor) -> dict[str, Tensor]:
    n = len(logits)
    found = Instances(torch.zeros(n, 4), torch.ones(n), torch.zeros(n, dtype=torch.int64))
    named = MaskQuality()(Frame(found, mask_logits=lambda: logits))
    return {key.partition("/")[2]: value for key, value in named.items()}


def masks(seed: int, n: int = 4) -> Tensor:
    """Smooth random logits."""
    coarse = torch.randn(n, 1, 5, 6, generator=torch.Generator().manual_seed(seed)) * 4
    return torch.nn.functional.interpolate(coarse, size=(24, 30), mode="bicubic")[:, 0]


def test_stability_is_segment_anythings() -> None:
    amg = pytest.importorskip("segment_anything.utils.amg", reason="segment_anything is not installed")
    for seed in range(5):
        logits = masks(seed)
        torch.testing.assert_close(columns(logits)["stability"], amg.calculate_stability_score(logits, 0.0, 1.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_every_column_by_loops(seed: int) -> None:
    logits = masks(seed)
    found = columns(logits)
    for i, mask in enumerate(logits.double().numpy()):
        inside = [(y, x) for y, x in np.ndindex(*mask.shape) if mask[y, x] > 0]
        if not inside:
            assert math.isnan(found["inside"][i])
            continue
        p = 1 / (1 + np.exp(-mask))
        within = sum(p[at] for at in inside)
        edges = [
            mask[at] - mask[y, x]
            for at in inside
            for y, x in ((at[0] + 1, at[1]), (at[0] - 1, at[1]), (at[0], at[1] + 1), (at[0], at[1] - 1))
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] <= 0
        ]
        expected = {
            "undecided": math.log1p((np.abs(mask) < 1).sum() / len(inside)),
            "inside": np.mean([mask[at] for at in inside]),
            "sure": np.mean([mask[at] > 3 for at in inside]),
            "soft_iou": within / (len(inside) + p.sum() - within),
            "sharpness": np.mean(edges) if edges else math.nan,
            "share": len(inside) / mask.size,
        }
        for name, value in expected.items():
            assert float(found[name][i]) == pytest.approx(value, rel=1e-4, nan_ok=True), name


def drawn(picture: str) -> Tensor:
    return torch.tensor([[4.0 if c == "#" else -4.0 for c in line] for line in picture.split()])[None]


@pytest.mark.parametrize(("picture", "pieces", "largest", "holes"), [
    ("..... .###. .###. .....", 1, 1.0, 0),
    ("##### #...# #...# #####", 1, 1.0, 1),
    ("##..# ##..# ##... ....#", 3, 6 / 9, 0),
    ("#.... .#... ..... .....", 2, 0.5, 0),  # corners do not hold together
    ("..#.. .#.#. ..#.. .....", 4, 0.25, 0),  # nor do they enclose: the gap leaks over the corners
    ("###.. #.### ###.# ..###", 1, 1.0, 2),
    ("#...# #...# #...# #####", 1, 1.0, 0),  # open to the rim
])  # fmt: skip
def test_pieces_and_holes(picture: str, pieces: int, largest: float, holes: int) -> None:
    found = columns(drawn(picture))
    assert float(found["pieces"].exp()) == pytest.approx(pieces)
    assert float(1 - found["fragmented"]) == pytest.approx(largest)
    assert float(found["holes"].expm1()) == pytest.approx(holes)


def test_masks_do_not_touch_each_other() -> None:
    """A stack of masks gives what each gives alone."""
    pictures = torch.cat([drawn("##### #...# ##### ....."), drawn("##... ..... ...## ...##"), drawn("..... " * 4)])
    together = columns(pictures)
    for i in range(3):
        for name, value in columns(pictures[i : i + 1]).items():
            torch.testing.assert_close(together[name][i : i + 1], value, equal_nan=True)


def test_padding_does_not_count() -> None:
    logits = masks(3)
    padded = torch.full((4, 30, 41), -torch.inf)
    padded[:, :24, :30] = logits
    plain, found = columns(logits), columns(padded)
    for name in found:
        torch.testing.assert_close(found[name], plain[name], equal_nan=True, msg=name)


def test_unknown_rows_are_nan_and_harm_no_other() -> None:
    logits = masks(5)
    spoilt = logits.clone()
    spoilt[1] = torch.nan
    plain, found = columns(logits), columns(spoilt)
    others = torch.tensor([0, 2, 3])
    for name, values in found.items():
        assert values[1].isnan()
        torch.testing.assert_close(values[others], plain[name][others], equal_nan=True)


def test_a_softer_mask_is_less_stable() -> None:
    sharp = ellipses(torch.tensor([[30.0, 30.0, 110.0, 90.0]]))
    soft, hard = columns(sharp / 3), columns(sharp * 3)
    assert soft["stability"] < hard["stability"]
    assert soft["sharpness"] < hard["sharpness"]
    assert soft["undecided"] > hard["undecided"]
    assert soft["soft_iou"] < hard["soft_iou"]
