"""What only ultralytics has: streams, tracking, end-to-end heads, its own conversions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reliability_hooks import Handle, Monitor, attach
from reliability_hooks.hosts.base import load
from reliability_hooks.hosts.ultralytics import UltralyticsHost
from reliability_hooks.images import read_image

ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[np.ndarray]:
    files = sorted((shared / "data/coco/val2017").glob("*.jpg"))
    return [np.ascontiguousarray(read_image(p)[..., ::-1]) for p in files[:4]]


@pytest.fixture(scope="module")
def segmenter(shared: Path) -> Any:
    return load(str(shared / "weights/yolo11n-seg.pt"))


@pytest.fixture
def hooked(segmenter: Any) -> Iterator[Any]:
    with attach(segmenter, Monitor(["geometry", "ood/logits"]), strict=True):
        yield segmenter


def aligned(result: Any) -> None:
    rows = result.instances
    assert len(rows) == len(result)
    if len(rows):
        own = rows.probabilities().gather(1, rows.labels[:, None])[:, 0]
        assert torch.equal(own, rows.scores)
        assert torch.equal(rows.logits.argmax(1), rows.labels)
        assert torch.equal(rows.scores, torch.as_tensor(result.boxes.conf))


def test_stream_and_indexing_and_devices(hooked: Any, photographs: list[np.ndarray]) -> None:
    results = list(hooked.predict(photographs, stream=True, verbose=False, conf=0.1))
    assert len(results) == len(photographs)
    for result in results:
        assert isinstance(result, ultralytics.engine.results.Results)
        for view in (result, result[1:], result[[0]], result[result.boxes.conf > 0.5], result.cpu(), result.to("cpu")):
            aligned(view)
            assert len(view.reliability) == len(view)
        assert isinstance(result.numpy().reliability, np.ndarray)
        keep = (result.boxes.conf > 0.5).numpy()
        assert torch.equal(result[keep].instances.boxes, result.instances.boxes[keep])


def test_masks_lie_on_their_boxes(hooked: Any, photographs: list[np.ndarray]) -> None:
    for options in ({}, {"retina_masks": True}):
        found = [r for r in hooked.predict(photographs, verbose=False, **options) if len(r)]
        assert len(found) >= 3
        for result in found:
            rows = result.instances
            height, width = result.orig_shape
            assert rows.masks.shape[1] / rows.masks.shape[2] == pytest.approx(height / width, rel=0.01)
            for mask, box in zip(rows.masks_at((height, width)), rows.boxes, strict=True):
                y, x = mask.nonzero(as_tuple=True)
                tight = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
                assert (tight - box).abs().max() < 0.12 * max(height, width)  # a mask may fill its box in part
                x1, y1, x2, y2 = box.round().int().tolist()
                inside = mask[max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4].sum()
                assert inside == mask.sum()


def test_results_can_be_pickled(hooked: Any, photographs: list[np.ndarray]) -> None:
    """As between processes; the class is a module's, not a function's."""
    result = hooked.predict(photographs[0], verbose=False)[0]
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again.boxes.data, result.boxes.data)
    aligned(again)
    aligned(copy.deepcopy(result)[:1])


def test_tables_carry_the_reliability(hooked: Any, photographs: list[np.ndarray]) -> None:
    result = hooked.predict(photographs[0], verbose=False)[0]
    rows = result.summary()
    assert len(rows) == len(result) > 0
    assert all("reliability" in row for row in rows)
    pytest.importorskip("polars")
    assert "reliability" in result.to_df().columns


def test_tracking_keeps_rows_and_gives_ids(hooked: Any, photographs: list[np.ndarray]) -> None:
    pytest.importorskip("lap", reason="the trackers of ultralytics need lap")
    scene = np.pad(photographs[0], ((0, 0), (0, 40), (0, 0)), mode="edge")
    seen: list[set[int]] = []
    for step in range(5):
        frame = np.ascontiguousarray(scene[:, 8 * step : 8 * step + photographs[0].shape[1]])
        result = hooked.track(frame, persist=True, verbose=False, tracker="bytetrack.yaml")[0]
        rows = result.instances
        assert len(rows) == len(result)
        if rows.track_ids is None:
            continue
        assert rows.track_ids.tolist() == result.boxes.id.int().tolist()
        own = rows.probabilities().gather(1, rows.labels[:, None])[:, 0]
        assert torch.equal(own, rows.scores)
        assert torch.equal(rows.labels, result.boxes.cls.long())
        # the tracker smooths boxes; ours stay the detector's, near them
        assert (rows.boxes - result.boxes.xyxy).abs().max() < 60
        seen.append(set(rows.track_ids.tolist()))
    assert len(seen) >= 3
    assert set.intersection(*seen)


@pytest.mark.parametrize("nms", [True, False])
@pytest.mark.parametrize("task", ["yolo26n.yaml", "yolo26n-seg.yaml"])
def test_end_to_end_heads(task: str, nms: bool) -> None:
    torch.manual_seed(0)
    model = ultralytics.YOLO(task)
    head = model.model.model[-1]
    for branch in (*head.cv3, *head.one2one_cv3):  # random heads give near-constant scores
        torch.nn.init.normal_(branch[-1].weight, std=0.6)
        torch.nn.init.normal_(branch[-1].bias, std=1.0)
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    options = {"verbose": False, "imgsz": 160, "conf": 0.2, "max_det": 20, "nms": nms}
    bare = model.predict(noise, **options)[0]
    with attach(model, Monitor(["ood/logits", "candidates"]), strict=True):
        result = model.predict(noise, **options)[0]
    assert model.predictor.model.end2end is not nms
    assert torch.equal(bare.boxes.data, result.boxes.data)
    rows = result.instances
    assert len(rows) == 20
    found = ~rows.logits.isnan().any(1)
    assert found.float().mean() > 0.5  # what a random head repeats exactly is left without logits, not guessed
    own = rows.probabilities().gather(1, rows.labels[:, None])[:, 0]
    assert torch.equal(own[found], rows.scores[found])


def test_augmented_passes_give_no_logits_but_instances(hooked: Any, photographs: list[np.ndarray]) -> None:
    result = hooked.predict(photographs[0], verbose=False, augment=True)[0]
    assert len(result.instances) == len(result) > 0
    assert result.instances.logits is None


def test_other_tasks_pass_untouched() -> None:
    model = ultralytics.YOLO("yolo11n-cls.yaml")
    with attach(model, strict=True) as handle:
        noise = np.zeros((64, 64, 3), np.uint8)
        assert model.predict(noise, imgsz=64, verbose=False)[0].probs is not None
        with pytest.raises(RuntimeError, match="only detection and segmentation"):
            handle.predict([noise], imgsz=64)


def test_attaching_after_a_first_predict_and_removing_mid_way(shared: Path, photographs: list[np.ndarray]) -> None:
    model = load(str(shared / "weights/yolov8n.pt"))
    model.predict(photographs[0], verbose=False)  # adds callbacks of its own
    before = {event: list(entries) for event, entries in model.callbacks.items()}
    handle: Handle = attach(model, Monitor(["ood/logits"]), strict=True)
    aligned(model.predict(photographs[0], verbose=False)[0])
    handle.remove()
    assert not hasattr(model.predict(photographs[0], verbose=False)[0], "instances")
    assert model.callbacks == before
    network = model.predictor.model.model
    assert not network._forward_pre_hooks
    assert not network.model[-1]._forward_hooks


def test_load_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights file"):
        UltralyticsHost.load(str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="unknown options"):
        UltralyticsHost.load("x.pt", num_classes=3)


def test_a_half_precision_predictor(shared: Path, photographs: list[np.ndarray]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("ultralytics runs half precision on a GPU only")
    model = load(str(shared / "weights/yolov8n.pt"))
    with attach(model, strict=True):
        result = model.predict(photographs[0], verbose=False, half=True, device=0)[0]
    assert not result.instances.logits.isnan().any()


def test_dropout_in_a_head() -> None:
    """No stock model has any; here it sits before the class layer of each level."""
    from .case import Recorder
    from .ultralytics_cases import seeded

    model = seeded(None, "yolo26n.yaml")
    head = model.model.model[-1]
    for branch in (*head.cv3, *head.one2one_cv3):
        branch[-1] = torch.nn.Sequential(torch.nn.Dropout(0.3), branch[-1]).eval()
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    options = {"verbose": False, "imgsz": 160, "conf": 0.3, "max_det": 20, "nms": True}
    bare = model.predict(noise, **options)[0]
    generator, flags = torch.get_rng_state(), [m.training for m in model.predictor.model.model.modules()]
    with attach(model, Monitor(["dropout"]), strict=True):
        first, second = (model.predict(noise, **options)[0] for _ in range(2))
    assert torch.equal(bare.boxes.data, first.boxes.data)
    assert [m.training for m in model.predictor.model.model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(first.instances) > 0
    assert (first.instances.columns["dropout/mutual_information"] > 0).any()
    for name, column in first.instances.columns.items():
        assert torch.equal(column.nan_to_num(), second.instances.columns[name].nan_to_num())
        assert column.isfinite().all() or not name.startswith("dropout/")

    recorder = Recorder()
    with attach(model, recorder, strict=True):
        model.predict(noise, **options)
    assert recorder.frames[0].has("dropout")
    other = ultralytics.YOLO("yolo26n.yaml")
    with attach(other, recorder, strict=True):
        other.predict(noise, **options)
    assert recorder.frames[1].has("model")
    assert not recorder.frames[1].has("dropout")
