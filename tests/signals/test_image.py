"""Image statistics against loops over pixels, and against what is done to a real photograph."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import interpolate

from reliability_hooks.frame import Frame, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.image import EVERY, ImageStatistics

FLOOR = 1e-6
OBJECT = ("sharpness", "detail", "resolution", "noise", "brightness", "contrast", "dark", "bright", "colorfulness")


def statistics(pixels, boxes, image_size=None, **view) -> dict[str, torch.Tensor]:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    n = len(boxes)
    kept = Instances(boxes, torch.ones(n), torch.zeros(n, dtype=torch.int64), image_size=image_size)
    columns = ImageStatistics()(Frame(kept, View(pixels, **view)))
    return {key.removeprefix("image/"): value for key, value in columns.items()}


def naive_cells(rgb: np.ndarray) -> np.ndarray:
    """(3, h, w) -> (6, cells): F, m, R-G, (R+G)/2-B, C, |HH| of 4 x 4 cells 8 pixels apart, one after another."""
    luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    height, width = (luma.shape[0] - 4) // 8 + 1, (luma.shape[1] - 4) // 8 + 1
    cells = np.zeros((6, height, width))
    for y in range(height):
        for x in range(width):
            block = luma[8 * y : 8 * y + 4, 8 * x : 8 * x + 4]
            small = block.reshape(2, 2, 2, 2).mean((1, 3))
            # energy of the details of a level = mean square before it less mean square after it
            fine, coarse = (block**2).mean() - (small**2).mean(), (small**2).mean() - block.mean() ** 2
            diagonal = [
                abs(block[i, j] - block[i, j + 1] - block[i + 1, j] + block[i + 1, j + 1]) / 4
                for i in (0, 2)
                for j in (0, 2)
            ]
            red, green, blue = rgb[:, 8 * y + 2, 8 * x + 2]
            cells[:, y, x] = fine, block.mean(), red - green, (red + green) / 2 - blue, coarse, np.mean(diagonal)
    return cells


def naive_points(cells: np.ndarray, box, inside=None) -> np.ndarray:
    """(6, points) bilinear samples at 8 x 8 points of a box in cells; those outside `inside` only, where given."""
    _, height, width = cells.shape
    found = []
    for a in range(8):
        for b in range(8):
            x = box[0] + (a + 0.5) / 8 * (box[2] - box[0])
            y = box[1] + (b + 0.5) / 8 * (box[3] - box[1])
            if inside is not None and inside[0] <= x <= inside[2] and inside[1] <= y <= inside[3]:
                continue
            u, v = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
            i, j = int(u), int(v)
            p, q = min(i + 1, width - 1), min(j + 1, height - 1)
            s, t = u - i, v - j
            found.append((1 - t) * ((1 - s) * cells[:, j, i] + s * cells[:, j, p])
                         + t * ((1 - s) * cells[:, q, i] + s * cells[:, q, p]))
    return np.array(found).T


def naive_statistics(samples: np.ndarray) -> dict[str, float]:
    fine, mean, rg, yb, coarse, _ = samples.mean(1)
    variance = samples[1].var() + fine + coarse
    return {
        "sharpness": math.log((fine + FLOOR) / (variance + FLOOR)),
        "detail": math.log(fine + FLOOR),
        "resolution": math.log((fine + FLOOR) / (coarse + FLOOR)),
        "noise": 2 * math.sqrt(math.pi / 2) * np.sort(samples[5])[(samples.shape[1] - 1) // 2],
        "brightness": mean,
        "contrast": math.sqrt(variance),
        "dark": (samples[1] < 0.15).mean(),
        "bright": (samples[1] > 0.9).mean(),
        "colorfulness": math.hypot(samples[2].std(), samples[3].std()) + 0.3 * math.hypot(rg, yb),
    }


def clip(box, width, height):
    return [min(max(v, 0), limit) for v, limit in zip(box, (width, height, width, height), strict=True)]


def about(box, factor, width, height):
    """The box (at least one cell each way) enlarged about its centre, clipped."""
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    w, h = (max(b - a, 1) * factor / 2 for a, b in ((box[0], box[2]), (box[1], box[3])))
    return clip([cx - w, cy - h, cx + w, cy + h], width, height)


def test_equals_the_loop() -> None:
    g = torch.Generator().manual_seed(0)
    blobs = interpolate(torch.rand(1, 3, 6, 8, generator=g), (72, 96), mode="bilinear")[0]
    pixels = (blobs * 1.5 - 0.25 + torch.randn(3, 72, 96, generator=g) * 0.05).clamp(0, 1)
    # an image of 44 x 30 px, doubled, at (4, 6) of the view: 88 x 60 px of content
    boxes = [[1, 2, 30, 20], [10, 5, 12, 7], [-20, -9, 15, 12], [5, 3, 43, 29], [30.3, 11.1, 41.9, 20.2]]
    got = statistics(pixels, boxes, (30, 44), scale=(2.0, 2.0), offset=(4.0, 6.0))
    cells = naive_cells(pixels[:, 6:66, 4:92].double().numpy())
    height, width = cells.shape[1:]
    whole = naive_statistics(cells.reshape(6, -1))
    for i, box in enumerate(boxes):
        visible = clip([v * 2 for v in box], 88, 60)
        seen = [(v + 2) / 8 for v in visible]  # the first cell has its centre 2 pixels from the border
        inner, outer = about(seen, 1, width, height), about(seen, 1.5, width, height)
        samples = naive_points(cells, inner)
        ring = naive_points(cells, outer, inner).mean(1)
        expected = naive_statistics(samples) | {f"context_{k}": v for k, v in whole.items()}
        expected["surround_contrast"] = np.linalg.norm(samples.mean(1)[1:4] - ring[1:4])
        expected["surround_detail"] = math.log((samples.mean(1)[0] + FLOOR) / (ring[0] + FLOOR))
        expected["view_size"] = math.log((visible[2] - visible[0]) * (visible[3] - visible[1])) / 2
        assert set(expected) == set(got) - {"context_blockiness"}
        for key, value in expected.items():
            assert got[key][i].item() == pytest.approx(value, abs=2e-4), (i, key)
    assert got["context_blockiness"].isnan().all()  # rescaled: where the grid lay is unknown


def test_blockiness_equals_the_loop() -> None:
    g = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, 80, 64, generator=g)
    got = statistics(pixels, [[0, 0, 30, 30]], (56, 64), offset=(0.0, 12.0))
    luma = np.tensordot([0.299, 0.587, 0.114], pixels[:, 12:68].double().numpy(), 1)
    at, rest = [], []
    for row in range(0, luma.shape[0], EVERY):
        for x in range(luma.shape[1] - 1):
            (at if (x + 1) % 8 == 0 else rest).append(abs(luma[row, x + 1] - luma[row, x]))
    level = 0.25 / 255
    expected = math.log((np.mean(at) + level) / (np.mean(rest) + level))
    assert got["context_blockiness"].item() == pytest.approx(expected, abs=1e-4)


class TestOnAPhotograph:
    """What is done to the whole photograph moves the statistic in the right direction, for objects and image."""

    BOXES = np.array([[0.1, 0.1, 0.5, 0.7], [0.4, 0.3, 0.7, 0.8], [0.03, 0.5, 0.2, 0.9], [0.6, 0.1, 0.95, 0.5]])

    @pytest.fixture(params=["000000000139.jpg", "000000022192.jpg", "000000037777.jpg"])
    def photograph(self, request: pytest.FixtureRequest, shared: Path) -> Image.Image:
        return Image.open(shared / "data" / "coco" / "val2017" / request.param).convert("RGB")

    def read(self, image: Image.Image) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
        return statistics(pixels, self.BOXES * [*image.size, *image.size], (image.height, image.width))

    def assert_rising(self, images: list[Image.Image], *names: str) -> None:
        read = [self.read(image) for image in images]
        for name in names:
            values = torch.stack([r[name] for r in read])
            assert (values[1:] > values[:-1]).all(), (name, values)

    def test_blur_lowers_sharpness(self, photograph: Image.Image) -> None:
        images = [photograph.filter(ImageFilter.GaussianBlur(r)) for r in (3, 1.5, 0.7)] + [photograph]
        self.assert_rising(images, "sharpness", "detail", "context_sharpness", "context_detail")
        self.assert_rising(images[1:], "resolution", "context_resolution")  # a ramp has log(1/4), the least there is

    def test_low_resolution_lowers_effective_resolution(self, photograph: Image.Image) -> None:
        w, h = photograph.size
        small = photograph.resize((w // 3, h // 3), Image.Resampling.BILINEAR).resize((w, h), Image.Resampling.BILINEAR)
        self.assert_rising([small, photograph], "resolution", "context_resolution")

    def test_noise_raises_noise(self, photograph: Image.Image) -> None:
        g = np.random.default_rng(0)
        field = g.normal(size=(photograph.height, photograph.width, 1))  # the same in each channel
        noisy = [
            Image.fromarray((np.asarray(photograph) + s * field).round().clip(0, 255).astype(np.uint8))
            for s in (0, 10, 20, 35)
        ]
        self.assert_rising(noisy, "noise", "context_noise")

    def test_darkening_lowers_brightness(self, photograph: Image.Image) -> None:
        darker = [photograph.point(lambda v, f=f: int(v * f)) for f in (0.25, 0.5, 0.75, 1)]
        self.assert_rising(darker, "brightness", "context_brightness", "contrast", "context_contrast")
        self.assert_rising(darker[::-1][:3], "context_dark")

    def test_grey_lowers_colorfulness(self, photograph: Image.Image) -> None:
        grey = photograph.convert("L").convert("RGB")
        images = [Image.blend(grey, photograph, a) for a in (0.0, 0.3, 0.6, 1.0)]
        self.assert_rising(images, "colorfulness", "context_colorfulness")

    def test_jpeg_raises_blockiness(self, photograph: Image.Image) -> None:
        images = [photograph]
        for quality in (40, 20, 8):
            buffer = io.BytesIO()
            photograph.save(buffer, "JPEG", quality=quality)
            images.append(Image.open(buffer).convert("RGB"))
        self.assert_rising(images, "context_blockiness")

    def test_blurring_one_object_shows_against_its_surroundings(self, photograph: Image.Image) -> None:
        box = tuple((self.BOXES[0] * [*photograph.size, *photograph.size]).astype(int).tolist())
        spoilt = photograph.copy()
        spoilt.paste(photograph.crop(box).filter(ImageFilter.GaussianBlur(3)), box)
        before, after = self.read(photograph)["surround_detail"], self.read(spoilt)["surround_detail"]
        assert after[0] < before[0] - 1


def test_noise_is_measured_in_its_own_unit() -> None:
    g = torch.Generator().manual_seed(0)
    for sigma in (0.01, 0.05, 0.1):
        pixels = 0.5 + (torch.randn(1, 256, 256, generator=g) * sigma).expand(3, -1, -1)
        got = statistics(pixels, [[10, 10, 240, 240]])
        assert got["noise"].item() == pytest.approx(sigma, rel=0.15)
        assert got["context_noise"].item() == pytest.approx(sigma, rel=0.1)
        assert got["contrast"].item() == pytest.approx(sigma, rel=0.05)


def test_standing_out() -> None:
    pixels = torch.full((3, 96, 96), 0.2)
    pixels[:, 32:64, 32:64] = 0.8
    got = statistics(pixels, [[32, 32, 64, 64], [4, 4, 20, 20]])
    assert got["surround_contrast"][0] > 0.4
    assert got["surround_contrast"][1].item() == pytest.approx(0, abs=1e-6)


def test_normalisation_is_undone() -> None:
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2))
    mean, std = (0.48, 0.45, 0.4), (0.22, 0.23, 0.25)
    normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    boxes = [[5, 5, 40, 50], [30, 10, 60, 60]]
    plain, undone = statistics(pixels, boxes), statistics(normalised, boxes, mean=mean, std=std)
    torch.testing.assert_close(undone, plain, rtol=1e-4, atol=1e-5)


def test_padding_is_not_part_of_the_image() -> None:
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3))
    padded = torch.full((3, 96, 80), 114 / 255)
    padded[:, 16:80, 8:72] = pixels
    boxes = [[0, 0, 30, 30], [20, 20, 64, 64]]
    alone = statistics(pixels, boxes, (64, 64))
    torch.testing.assert_close(statistics(padded, boxes, (64, 64), offset=(8.0, 16.0)), alone, rtol=1e-5, atol=1e-6)


def test_which_boxes_are_undefined() -> None:
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(4))
    nan, inf = math.nan, math.inf
    boxes = [[70, 70, 90, 90], [-9, 5, -1, 9], [10, 10, 11, 30], [nan, 0, 9, 9], [0, 0, inf, inf], [30, 30, 20, 20],
             [10, 10, 12.5, 12.5], [0, 0, 64, 64], [-50, -50, 3, 3]]  # fmt: skip
    for key, value in statistics(pixels, boxes).items():
        assert value[:6].isnan().all(), key
        full = key.startswith("surround_")
        assert value[[6, 8]].isfinite().all(), key
        assert value[7].isnan() == full, key


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_pixel_leaves_nothing(bad: float) -> None:
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(5))
    pixels[1, 40, 17] = bad
    for key, value in statistics(pixels, [[1, 1, 20, 20], [30, 30, 60, 60]]).items():
        assert value.isnan().all(), key


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (5, 300), (7, 9)])
def test_tiny_views(shape) -> None:
    pixels = torch.rand(3, *shape, generator=torch.Generator().manual_seed(6))
    got = statistics(pixels, [[0, 0, 3, 3]])
    assert got["brightness"].isfinite().all() == (min(shape) >= 4)


def test_a_flat_image_is_neither_sharp_nor_soft() -> None:
    got = statistics(torch.full((3, 64, 64), 0.5), [[10, 10, 30, 30]])
    for key in ("sharpness", "resolution", "noise", "contrast", "colorfulness", "surround_detail"):
        assert got[key].item() == pytest.approx(0, abs=0.02), key
