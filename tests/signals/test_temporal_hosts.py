"""Tracks of real trackers on a video made from a photograph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.evaluation.datasets import read_coco
from reliability_hooks.evaluation.videos import moving_crop
from reliability_hooks.hook import Handle
from reliability_hooks.images import read_image
from reliability_hooks.signals.temporal import Tracks
from reliability_hooks.signals.track_ids import track_ids_of

ENERGY = "ood/logits/energy"


@pytest.fixture(scope="module")
def video(shared: Path) -> list[np.ndarray]:
    coco = shared / "data/coco"
    records = read_coco(coco / "instances_val2017.json", coco / "val2017")
    record = max(records, key=lambda r: ((r.truth.boxes[:, 2:] - r.truth.boxes[:, :2]).min(1) > 90).sum())
    made = moving_crop(read_image(record.path), record.truth.boxes, frames=12, size=(240, 320))
    return [frame.image for frame in made]


@pytest.fixture(scope="module")
def handle(shared: Path) -> Iterator[Handle]:
    ultralytics = pytest.importorskip("ultralytics")
    if not (shared / "weights/yolov8n.pt").is_file():
        pytest.skip("no weights of yolov8n")
    with attach(ultralytics.YOLO(shared / "weights/yolov8n.pt"), Monitor(["ood/logits"]), strict=True) as attached:
        yield attached


def check(frames: list[Instances]) -> None:
    """Age and means against a loop over the rows, with a dictionary for each track."""
    seen: dict[int, list[tuple[float, float]]] = {}
    rows = 0
    for found in frames:
        ids = found.track_ids if found.track_ids is not None else torch.full((len(found),), -1)
        for i, track in enumerate(ids.tolist()):
            if track < 0:
                assert found.columns["track/age"][i] == 0
                continue
            past = seen.setdefault(track, [])
            past.append((float(found.columns[ENERGY][i]), float(found.scores[i])))
            usual = np.average(past, axis=0, weights=[0.9**k for k in range(len(past))][::-1])
            assert found.columns["track/age"][i] == len(past)
            assert float(found.columns[f"track/{ENERGY}/mean"][i]) == pytest.approx(usual[0], rel=1e-4)
            assert float(found.columns["track/score_smoothed"][i]) == pytest.approx(usual[1], rel=1e-4)
            rows += 1
    assert rows >= 12
    assert max(len(past) for past in seen.values()) >= 8


def test_tracks_of_ultralytics(handle: Handle, video: list[np.ndarray]) -> None:
    tracks, model, frames = Tracks([ENERGY]), handle.host.model, []
    for image in video:
        result = model.track(np.ascontiguousarray(image[..., ::-1]), persist=True, imgsz=320, verbose=False,
                             tracker="bytetrack.yaml")[0]
        frames.append(tracks.update(result.instances))
        assert torch.equal(frames[-1].columns["track/score_raw"], result.instances.scores)
    check(frames)


@pytest.mark.parametrize("which", ["trackers", "supervision"])
def test_tracks_of_a_tracker_over_supervision(handle: Handle, video: list[np.ndarray], which: str) -> None:
    package = pytest.importorskip(which)
    pytest.importorskip("supervision")
    if which == "supervision" and not hasattr(package, "ByteTrack"):
        pytest.skip(f"supervision {package.__version__} has no ByteTrack any more")
    if which == "trackers":
        tracker = package.ByteTrackTracker(track_activation_threshold=0.25, high_conf_det_threshold=0.25)
    else:
        tracker = package.ByteTrack()
    tracks, frames = Tracks([ENERGY]), []
    assert len(track_ids_of(tracker, Instances.empty())) == 0
    for image in video:
        found = handle.predict([image], imgsz=320)[0]
        given = track_ids_of(tracker, found)
        assert torch.equal(given.boxes, found.boxes)
        frames.append(tracks.update(given))
    check(frames)


def test_what_is_no_tracker_is_refused() -> None:
    pytest.importorskip("supervision")
    with pytest.raises(TypeError, match="neither"):
        track_ids_of(object(), Instances.empty())
