"""A place that one class rests on is found and no other; what is filled is an equal area on the other side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reliability_hooks.evaluation.shortcuts import company, drops, holes, holm, suspects, words

CELLS = 12


def scene(seed: int, images: int = 20, classes: int = 4, cue: float = 0.0) -> tuple[np.ndarray, ...]:
    """Skewed noise in every cell; class 0 has `cue` more to the right of its box."""
    rng = np.random.default_rng(seed)
    image, label = np.repeat(np.arange(images), classes), np.tile(np.arange(classes), images)
    frames = rng.exponential(0.01, (len(image), CELLS, CELLS))
    frames[label == 0, 5:7, 9:11] += cue
    return frames, np.ones_like(frames), label, image, rng.integers(0, 3, len(image))


def test_the_place_is_found() -> None:
    best, *rest = suspects(*scene(0, cue=0.05), draws=500)
    assert (best.label, best.images) == (0, 20)
    assert best.p < 0.01
    assert words(best.rect) == "to the right of it"
    assert best.rect == pytest.approx((1.25, 0.25, 1.75, 0.75))
    assert best.share > 3 * best.others
    assert best.top > 0.9
    assert all(s.p > 0.05 for s in rest)


def test_chance_makes_few() -> None:
    found = [min(s.p for s in suspects(*scene(seed, images=8), draws=200, seed=seed)) for seed in range(60)]
    assert sum(p <= 0.05 for p in found) <= 8  # of 60 at 5 %: more than 8 have a probability below .01


def test_many_detections_of_one_image_are_no_evidence() -> None:
    frames, covers, label, image, bins = scene(0, images=6)
    same = np.flatnonzero((image == 0) & (label == 0)).repeat(50)
    frames[same[0], 0, 0] = 1.0
    more = [np.concatenate([x, x[same]]) for x in (frames, covers, label, image, bins)]
    assert min(s.p for s in suspects(*more, draws=200)) > 0.05


def test_too_few_images_one_class_and_nothing() -> None:
    assert suspects(*scene(0, images=4)) == []
    assert suspects(*scene(0, classes=1)) == []
    none = np.zeros((0, CELLS, CELLS))
    assert suspects(none, none, np.zeros(0, int), np.zeros(0, int), np.zeros(0, int)) == []
    frames, *rest = scene(0)
    assert suspects(np.full_like(frames, np.nan), *rest) == []


def test_cells_outside_of_the_picture_say_nothing() -> None:
    frames, covers, *rest = scene(0, cue=0.05)
    covers = covers.copy()
    covers[:, :, 9:] = 0
    frames = frames * covers
    assert min(s.p for s in suspects(frames, covers, *rest, draws=200)) > 0.05


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("rect", "said"), [
    ((0, 1, 1, 1.5), "below it"), ((0, -1, 1, 0), "above it"), ((-1, 0.2, 0, 0.6), "to the left of it"),
    ((1, 1, 2, 2), "below and to the right of it"), ((0.2, 0.2, 0.4, 0.4), "in its box beside its mask"),
    ((-1, -1, 2, 2), "all about it"), ((0, -0.5, 1, 0.75), "in its box beside its mask, above it"),
])  # fmt: skip
def test_words(rect: tuple[float, float, float, float], said: str) -> None:
    assert words(rect) == said


def test_region_and_mirror_are_equal_free_and_apart() -> None:
    box, taken = torch.tensor([40.0, 40, 60, 60]), torch.zeros(100, 100, dtype=torch.bool)
    taken[40:60, 40:60] = True
    rng = np.random.default_rng(0)
    middle = torch.zeros_like(taken)
    middle[40:45, 40:60] = True  # a mask that leaves most of its box free
    region, moved = holes((0, 0, 1, 1), box, middle)  # type: ignore[misc]
    assert region.sum() == moved.sum() >= 0.2 * 300
    assert not (region & moved).any()
    compared = 0
    for _ in range(60):
        x, y = rng.uniform(-1, 1.5, 2)
        found = holes((x, y, x + rng.uniform(0.3, 1), y + rng.uniform(0.3, 1)), box, taken)
        if found is not None:
            compared += 1
            region, mirror = found
            assert region.sum() == mirror.sum() > 0
            assert not (region & mirror).any()
            assert not ((region | mirror) & taken).any()
    assert compared > 40
    region, mirror = holes((1.2, 0.2, 1.8, 0.8), box, taken)  # type: ignore[misc]
    assert torch.equal(mirror, region.flip(1))
    taken[:, :40] = True  # beside the picture: the left cannot be compared, and top and bottom are the same place
    region, moved = holes((1.2, 0.2, 1.8, 0.8), box, taken)  # type: ignore[misc]
    assert torch.equal(moved, region.roll(13, 1)) or torch.equal(moved, region.roll(-13, 0))
    assert holes((0, 0, 1, 1), box, taken) is None  # nothing but the object
    taken[:, 60:] = True
    assert holes((1.2, 0.2, 1.8, 0.8), box, taken) is None


@pytest.mark.parametrize("fills", [("grey",), ("inpaint", "grey")])
def test_drops_are_shares_of_the_score(fills: tuple[str, ...]) -> None:
    pixels = torch.zeros(3, 20, 20)
    region, mirror = torch.zeros(2, 20, 20, dtype=torch.bool)
    region[5:8, 5:8], mirror[5:8, 12:15] = True, True
    pixels[:, region] = 1.0
    found = drops(lambda p: p[:, 0][:, region].mean(1, keepdim=True) * 0.8, pixels, region, mirror, fills)
    assert found.shape == (len(fills), 2)
    assert (found[:, 0] > 0.9).all()
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-6)
    nothing = drops(lambda p: p.new_zeros(len(p), 1), pixels, region, mirror, fills)
    assert np.isnan(nothing).all()


def test_company() -> None:
    rects = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], float)
    gt = np.array([[0, 0, 10, 10], [0, 0, 3, 10], [0, 0, 2, 10], [5, 0, 10, 10]], float)
    found = company(rects, [0, 1], [0, -1], gt, [7, 3, 4, 3], [0, 0, 0, 1])
    assert dict(found) == {3: 1.0}  # its own object, and what covers less than a quarter, do not count
    assert company(np.zeros((0, 4)), [], [], gt, [7, 3, 4, 3], [0, 0, 0, 1]) == {}
    assert company(rects, [0, 1], [-1, -1], np.zeros((0, 4)), [], []) == {}
