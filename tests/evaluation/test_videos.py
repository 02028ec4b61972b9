"""Videos of photographs: boxes go where the pixels go, equal arguments give equal videos."""

from __future__ import annotations

import numpy as np
import pytest

from reliability_hooks.evaluation.videos import Stranger, cut_out, moving_crop

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 90, (300, 420, 3), dtype=np.uint8)
BOXES = np.array([[180.0, 120, 240, 190], [10, 10, 60, 50], [0, 250, 30, 300]])


def marked() -> np.ndarray:
    """The photograph with its first box filled in pure red."""
    photo = PHOTO.copy()
    photo[120:190, 180:240] = [255, 0, 0]
    return photo


def red(image: np.ndarray) -> np.ndarray:
    return (image[..., 0].astype(int) > 170) & (image[..., 1] < 60)


def extent(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)


def test_a_marked_object_stays_in_its_moved_box() -> None:
    seen, left = 0, []
    for frame in moving_crop(marked(), BOXES, frames=40, size=(90, 120), seed=3):
        assert frame.image.shape == (90, 120, 3)
        assert frame.image.dtype == np.uint8
        where = np.flatnonzero(frame.object_ids == 0)
        if len(where):
            box = frame.boxes[where[0]]
            assert np.abs(extent(red(frame.image)) - box).max() <= 1.5
            seen += 1
            left.append(box[0])
    assert seen > 20
    assert np.ptp(left) > 5  # the camera moves
    assert np.abs(np.diff(left)).max() < 12  # and smoothly


def test_boxes_are_clipped_and_dropped_when_mostly_out_of_sight() -> None:
    counts = set()
    for frame in moving_crop(PHOTO, BOXES, frames=80, size=(90, 120), zoom=(0.4, 0.6), seed=1):
        assert (frame.boxes >= 0).all()
        assert (frame.boxes <= [120, 90, 120, 90]).all()
        assert len(frame.boxes) == len(frame.object_ids) == len(frame.is_ood)
        assert len(set(frame.object_ids.tolist())) == len(frame.object_ids)
        assert not frame.is_ood.any()
        counts.add(len(frame.boxes))
    assert len(counts) > 1


def test_a_still_whole_view_is_the_photograph() -> None:
    frame = next(moving_crop(PHOTO, BOXES, frames=1, size=(300, 420), zoom=(1, 1), flicker=0))
    assert np.array_equal(frame.image, PHOTO)
    assert np.allclose(frame.boxes, BOXES)


def test_equal_arguments_give_equal_videos_and_another_seed_another() -> None:
    def video(seed: int) -> np.ndarray:
        return np.stack([f.image for f in moving_crop(PHOTO, BOXES, frames=5, size=(60, 80), seed=seed)])

    assert np.array_equal(video(4), video(4))
    assert not np.array_equal(video(4), video(5))


def stranger(**changes: object) -> Stranger:
    photo = np.zeros((80, 100, 3), np.uint8)
    photo[20:60, 30:70] = [255, 0, 0]
    return Stranger(*cut_out(photo, [30, 20, 70, 60]), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("from_left", [True, False])
def test_a_stranger_comes_in_from_its_side_and_its_box_holds_it(from_left: bool) -> None:
    guest = stranger(enters=4, frames=6, height=0.4, place=(0.5, 0.5), from_left=from_left)
    frames = list(moving_crop(PHOTO, BOXES, frames=20, size=(180, 240), flicker=0, stranger=guest, seed=2))
    assert not any(f.is_ood.any() or red(f.image).any() for f in frames[:4])
    boxes = [f.boxes[f.is_ood][0] for f in frames if f.is_ood.any()]
    for f in frames:
        if f.is_ood.any():
            assert f.object_ids[f.is_ood].tolist() == [len(BOXES)]
            assert np.abs(extent(red(f.image)) - f.boxes[f.is_ood][0]).max() <= 2
    assert len(boxes) >= 14
    centre = [(b[0] + b[2]) / 2 for b in boxes]
    assert (centre[0] < centre[-1]) == from_left
    assert centre[-1] == pytest.approx(120, abs=6)
    assert boxes[-1][3] - boxes[-1][1] == pytest.approx(72, abs=2)


def test_a_cut_out_is_opaque_on_its_box_and_fades_out() -> None:
    image, (x1, y1, x2, y2) = cut_out(PHOTO, BOXES[0])
    alpha = image[..., 3]
    assert (alpha[int(y1) : int(y2), int(x1) : int(x2)] >= 230).all()
    assert alpha[0].max() < 40
    assert np.array_equal(image[int(y1) : int(y2), int(x1) : int(x2), :3], PHOTO[120:190, 180:240])


def test_no_objects_and_bad_input() -> None:
    frame = next(moving_crop(PHOTO, np.zeros((0, 4)), frames=1))
    assert frame.boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="uint8"):
        moving_crop(PHOTO.astype(float), BOXES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zoom"):
        moving_crop(PHOTO, BOXES, zoom=(0.5, 2))
    with pytest.raises(ValueError, match="no area"):
        cut_out(PHOTO, [500, 0, 600, 50])
    with pytest.raises(ValueError, match="RGBA"):
        Stranger(PHOTO, (0, 0, 1, 1))
