from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reliability_hooks.images import ImageError, find_images, read_image, read_video


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def test_colour_modes(tmp_path: Path, pixels: np.ndarray) -> None:
    alpha = np.dstack([pixels, np.arange(240, dtype=np.uint8).reshape(12, 20)])
    grey = pixels[..., 0]
    cases = {
        "rgb": (pixels, pixels),
        "rgba": (alpha, pixels),
        "grey": (grey, np.repeat(grey[..., None], 3, 2)),
        "deep": (grey.astype(np.uint16) * 257, np.repeat(grey[..., None], 3, 2)),
    }
    for name, (stored, expected) in cases.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(stored).save(path)
        read = read_image(path)
        assert read.dtype == np.uint8
        assert np.array_equal(read, expected), name


def test_exif_orientation_is_applied(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


def test_files_that_are_no_images(tmp_path: Path, pixels: np.ndarray) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    whole = tmp_path / "whole.jpg"
    Image.fromarray(pixels).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:-200])
    Image.fromarray(np.full((4, 4), -5, dtype=np.int32)).save(tmp_path / "minus.tiff")
    for name in ("text.jpg", "empty.jpg", "cut.jpg", "nowhere.jpg", "minus.tiff"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)


def test_one_pixel(tmp_path: Path) -> None:
    Image.fromarray(np.full((1, 1), 9, np.uint8)).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png").tolist() == [[[9, 9, 9]]]


def test_find_images(tmp_path: Path, pixels: np.ndarray) -> None:
    for name in ("b.jpg", "a.PNG", "note.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in find_images(tmp_path)] == ["a.PNG", "b.jpg"]
    assert [p.name for p in find_images(tmp_path / "*.jpg")] == ["b.jpg"]
    assert [p.name for p in find_images(tmp_path / "note.txt")] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no images"):
        find_images(tmp_path / "empty")
    with pytest.raises(ImageError, match="no file, folder or pattern"):
        find_images(tmp_path / "nothing*")


def test_video_round_trip(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for value in (0, 120, 240):
        writer.write(np.dstack([np.full((48, 64), value if c == 2 else 0, np.uint8) for c in range(3)]))
    writer.release()
    frames = list(read_video(tmp_path / "v.avi"))
    assert [f.shape for f in frames] == [(48, 64, 3)] * 3
    assert [round(float(f[..., 0].mean()) / 60) for f in frames] == [0, 2, 4]  # red came back as red
    (tmp_path / "no.mp4").write_text("no video")
    with pytest.raises(ImageError, match=r"no\.mp4"):
        list(read_video(tmp_path / "no.mp4"))
