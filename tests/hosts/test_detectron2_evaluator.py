"""`ReliabilityEvaluator`: metrics by hand, files that COCO reads, several processes."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes
from detectron2.structures import Instances as Theirs

from reliability_hooks import Instances
from reliability_hooks.detectron2 import ReliabilityEvaluator
from reliability_hooks.hosts.detectron2 import _add

SIZE = (40, 60)
OBJECTS = [[(5, 5, 20, 20, 7), (30, 10, 20, 20, 9)], [(5, 5, 10, 10, 9)], []]
"""Of each image: x, y, width, height, category."""


def found(image: int) -> dict[str, Any]:
    """On each object a detection that is right, and beside it one that is wrong with the same score."""
    boxes = [(x, y, x + w, y + h) for x, y, w, h, _ in OBJECTS[image]]
    boxes += [(x + 25, y + 15, x + 30, y + 20) for x, y, *_ in OBJECTS[image]]
    labels = torch.tensor([{7: 0, 9: 1}[o[4]] for o in OBJECTS[image]] * 2, dtype=torch.int64)
    n = len(OBJECTS[image])
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    right = torch.tensor([0.9] * n + [0.2] * n)
    columns = {"reliability": right, "reliability_interval": torch.stack([right - 0.1, right], 1),
               "verdict": torch.tensor([1] * n + [-1] * n), "expected_iou": right, "odd": right}  # fmt: skip
    ours = Instances(corners, torch.full((2 * n,), 0.6), labels, columns=columns, image_size=SIZE,
                     masks=torch.zeros(2 * n, *SIZE, dtype=torch.bool))  # fmt: skip
    theirs = Theirs(SIZE, pred_boxes=Boxes(corners.clone()), scores=ours.scores, pred_classes=labels)
    _add(theirs, ours)
    return {"instances": theirs}


@pytest.fixture
def name(tmp_path: Path) -> Any:
    """A registered COCO data set."""
    images = [{"id": k + 10, "file_name": f"{k}.jpg", "height": SIZE[0], "width": SIZE[1]} for k in range(3)]
    objects = [{"image_id": k + 10, "bbox": list(o[:4]), "category_id": o[4], "iscrowd": 0, "area": o[2] * o[3]}
               for k, image in enumerate(OBJECTS) for o in image]  # fmt: skip
    file = tmp_path / "coco.json"
    file.write_text(json.dumps({"images": images, "annotations": [{"id": i + 1, **o} for i, o in enumerate(objects)],
                                "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]}))  # fmt: skip
    register_coco_instances("reliability_test", {}, str(file), str(tmp_path))
    yield "reliability_test"
    DatasetCatalog.remove("reliability_test")
    MetadataCatalog.remove("reliability_test")


def filled(name: str, images: list[int], **options: Any) -> ReliabilityEvaluator:
    evaluator = ReliabilityEvaluator(name, draws=20, **options)
    evaluator.reset()
    for k in images:
        evaluator.process([{"image_id": k + 10}], [found(k)])
    return evaluator


def check(results: Any) -> None:
    ours, score = results["reliability"], results["confidence"]
    assert ours["brier"] == pytest.approx(((1 - 0.9) ** 2 + 0.2**2) / 2)
    assert score["brier"] == pytest.approx((0.4**2 + 0.6**2) / 2)
    assert ours["d_ece"] == pytest.approx((0.1 + 0.2) / 2)
    assert (ours["auroc"], score["auroc"]) == (1.0, 0.5)
    assert (ours["accept_share"], ours["accept_precision"]) == (0.5, 1.0)
    assert (ours["reject_share"], ours["reject_precision"], ours["unknown_share"]) == (0.5, 0.0, 0.0)


def test_metrics_and_files(name: str, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    evaluator = filled(name, [0, 1, 2, 1], output_dir=tmp_path / "out")  # an image that a sampler repeats counts once
    check(evaluator.evaluate())
    assert len(evaluator.pairs) == 3
    assert all(i.masks is None for i, _ in evaluator.pairs)
    rows = json.loads((tmp_path / "out/reliability_instances_results.json").read_text())
    assert len(rows) == 6
    assert {r["category_id"] for r in rows} == {7, 9}
    assert rows[0]["score"] == pytest.approx(0.6)
    assert rows[0]["reliability"] == pytest.approx(0.9)
    assert (rows[0]["verdict"], rows[0]["columns"].keys()) == ("accept", {"odd"})
    loaded = COCO(str(tmp_path / "coco.json")).loadRes(rows)
    assert [a["reliability"] for a in loaded.loadAnns(loaded.getAnnIds([11]))] == pytest.approx([0.9, 0.2])
    report = json.loads((tmp_path / "out/reliability_metrics.json").read_text())
    assert report["images"] == 3
    assert report["metrics"]["reliability"]["brier"]["protocol"]["iou_threshold"] == 0.5


def test_nothing_detected_and_nothing_known(name: str) -> None:
    results = filled(name, [2]).evaluate()
    assert results is not None
    assert results["confidence"] == {}
    assert np.isnan(results["reliability"]["accept_share"])
    evaluator, answer = filled(name, []), found(0)
    assert evaluator.evaluate() == {}
    ours = answer["instances"].evidence
    answer["instances"].evidence = ours.with_columns({"reliability": torch.full((4,), torch.nan)})
    evaluator.process([{"image_id": 10}], [answer])
    results = evaluator.evaluate()
    assert results is not None
    assert results["confidence"] == {}  # what is not known of one is not held against the other


def test_errors(name: str) -> None:
    evaluator, answer = filled(name, []), found(0)
    with pytest.raises(ValueError, match="not in the data set"):
        evaluator.process([{"image_id": 99}], [answer])
    answer["instances"].remove("evidence")
    with pytest.raises(RuntimeError, match="attach"):
        evaluator.process([{"image_id": 10}], [answer])


def run(rank: int, name: str, address: str, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    evaluator = filled(name, [0, 2] if rank == 0 else [1, 0])
    queue.put((rank, evaluator.evaluate()))
    torch.distributed.destroy_process_group()


def test_processes_gather_in_the_main_one(name: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # the data set is registered in them too
    queue = context.Queue()
    address = f"file://{tmp_path}/meet"
    workers = [context.Process(target=run, args=(k, name, address, queue)) for k in range(2)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(30)
    assert results[1] is None
    check(results[0])
