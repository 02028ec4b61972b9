from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from reliability_hooks import Instances
from reliability_hooks.report.pictures import LONGEST, heat_png, jpeg, outlines, signed_png


def opened(raw: bytes) -> Image.Image:
    return Image.open(io.BytesIO(raw))


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3), (30, 40, 4), (1, 1, 3)])
def test_pictures_of_every_kind(shape: tuple[int, ...]) -> None:
    picture = opened(jpeg(np.full(shape, 90, np.uint8)))
    assert picture.mode == "RGB"
    assert picture.size == shape[1::-1]
    assert abs(np.asarray(picture).astype(int) - 90).max() < 4


def test_a_huge_image_is_scaled_down() -> None:
    image = np.zeros((6000, 50, 3), np.uint8)
    assert opened(jpeg(image)).size == (9, LONGEST)
    assert opened(jpeg(image[:LONGEST])).size == (50, LONGEST)
    assert opened(jpeg(image, longest=100)).size == (1, 100)


@pytest.mark.parametrize("image", [np.zeros((3, 4)), np.zeros((0, 4, 3), np.uint8), np.zeros((3, 4, 2, 1), np.uint8)])
def test_what_is_no_picture(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        jpeg(image)


def with_masks(masks: torch.Tensor, size: tuple[int, int]) -> Instances:
    n = len(masks)
    return Instances(torch.zeros(n, 4), torch.zeros(n), torch.zeros(n, dtype=torch.int64), masks=masks, image_size=size)


def filled(path: str, size: tuple[int, int]) -> np.ndarray:
    """The path, drawn by another library: rings toggle (even-odd)."""
    out = np.zeros(size, bool)
    for ring in re.findall(r"M([^Z]+)Z", path):
        canvas = Image.new("1", size[::-1])
        points = [tuple(float(v) for v in point.split(",")) for point in ring.split("L")]
        ImageDraw.Draw(canvas).polygon(points, fill=1)
        out ^= np.asarray(canvas)
    return out


def test_an_outline_is_that_of_its_mask() -> None:
    y, x = np.mgrid[:120, :160]
    disc = (x - 80) ** 2 + (y - 60) ** 2
    shapes = np.stack([disc < 50**2, (disc < 50**2) & (disc > 20**2), x < 40, (x - 20) ** 2 + (y - 100) ** 2 < 30**2])
    for path, mask in zip(outlines(with_masks(torch.from_numpy(shapes), (240, 320))), shapes, strict=True):
        truth = mask.repeat(2, 0).repeat(2, 1)
        drawn = filled(path, (240, 320))
        assert (drawn & truth).sum() / (drawn | truth).sum() > 0.95
        assert len(path) < 1500


def test_masks_that_are_empty_tiny_or_absent() -> None:
    masks = torch.zeros(3, 20, 20, dtype=torch.bool)
    masks[1, 4, 5] = True
    masks[2, 2:12, 2:12] = True
    masks[2, 18, 18] = True  # a speck beside it
    none, one, two = outlines(with_masks(masks, (20, 20)))
    assert none == ""
    assert one.count("M") == two.count("M") == 1
    bare = Instances(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, dtype=torch.int64), image_size=(9, 9))
    assert outlines(bare) == ["", ""]
    assert outlines(Instances.empty((9, 9))) == []


def test_maps_are_clear_where_low_and_small() -> None:
    values = np.zeros((400, 600))
    values[:200, :300] = 1
    values[300, 500] = np.nan
    picture = opened(heat_png(values)).convert("RGBA")
    assert max(picture.size) == 240
    pixels = np.asarray(picture).astype(int)
    assert pixels[10, 10, 3] > 200
    assert pixels[-10, -10, 3] < 60
    assert pixels[10, 10, :3].sum() > pixels[-10, -10, :3].sum()


def test_signed_maps_tell_sign_and_what_is_sure() -> None:
    values, sure = np.array([[-1.0, 0.0, 1.0, 1.0]]), np.array([[True, True, True, False]])
    down, zero, up, faint = np.asarray(opened(signed_png(values, sure, 1.0)).convert("RGBA"))[0].astype(int)
    assert down[0] > down[2]
    assert up[2] > up[0]
    assert zero[:3].min() > 250
    assert up[3] > 200 > 40 > faint[3]
