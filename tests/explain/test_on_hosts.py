"""Explanations of real detectors: they leave no trace, whatever mode the model is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks import Monitor, attach
from reliability_hooks.explain.explainer import EVIDENCE, explain, explain_frame
from reliability_hooks.hook import Handle
from reliability_hooks.hosts.base import find_host

from ..hosts.test_conformance import alive, same, traces
from ..hosts.test_look import built

pytest.importorskip("torchvision")
HOSTS = ["ultralytics/yolo11n_seg", "ultralytics/yolo26n_end2end", "torchvision/MaskRCNN", "torchvision/FCOS"]
METHODS = {"gradient": {}, "odam": {}, "drise": {"batch": 3}, "drise_boxes": {"batch": 3}}


def settings(name: str) -> dict[str, Any]:
    few = {"conf": 0.3, "max_det": 5, "nms": False} if "end2end" in name else {"conf": 0.05}
    return {"options": {"imgsz": 320, **few}} if name.startswith("ultralytics") else {}


def explained(handle: Handle, image: np.ndarray, name: str, method: str) -> Tensor:
    own = METHODS[method]
    return explain(handle, image, method=method, budget=6, longest=40, **settings(name), **own).maps["joint"]


@pytest.mark.parametrize("name", HOSTS)
def test_the_model_is_as_it_was_and_says_the_same(name: str) -> None:
    own = built(name)
    module = find_host(own.model).module()
    before = traces(own.model)
    wanted, flags = [p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]
    held = []
    with attach(own.model, Monitor([]), strict=True) as handle:
        watched = traces(own.model)
        for _ in range(3):
            for method in METHODS:
                maps = explained(handle, own.images[0], name, method)
                assert len(maps) > 0
                known = ~maps.flatten(1).isnan().any(1)
                assert bool(known.any())
                assert bool(((maps[known] >= 0) & (maps[known] <= 1)).all())
            held.append(alive())
        assert traces(own.model)[1] == watched[1]
        same(own.case, own.bare, own.run())
    assert max(held[1:]) <= held[0] + 5
    assert traces(own.model)[1] == before[1]
    if name.startswith("torchvision"):
        assert traces(own.model) == before
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == wanted
    assert [m.training for m in module.modules()] == flags
    same(own.case, own.bare, own.run())


@pytest.mark.parametrize("name", [HOSTS[0], HOSTS[2]])
@pytest.mark.parametrize("method", ["gradient", "drise"])
def test_frozen_models_and_all_modes_give_the_same_maps(name: str, method: str) -> None:
    own = built(name)
    module = find_host(own.model).module()
    wanted = [p.requires_grad for p in module.parameters()]
    with attach(own.model, Monitor([]), strict=True) as handle:
        found = []
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                found.append(explained(handle, own.images[0], name, method))
        try:
            module.requires_grad_(False)
            found.append(explained(handle, own.images[0], name, method))
        finally:
            for p, flag in zip(module.parameters(), wanted, strict=True):
                p.requires_grad_(flag)
    for other in found[1:]:
        torch.testing.assert_close(other.clone(), found[0], equal_nan=True, rtol=1e-3, atol=1e-4)


def test_frames_gather_evidence_only_while_they_are_open() -> None:
    own = built("torchvision/RetinaNet")
    with attach(own.model, Monitor([]), strict=True) as handle:
        with handle.frames() as bare:
            own.run()
        assert len(bare) == len(own.images)
        assert all(f.look is None and f.maps is None for f in bare)
        with handle.frames(*EVIDENCE) as outer:
            own.run(own.images[:1])
            with handle.frames() as inner:
                own.run(own.images[:1])
            own.run(own.images[:1])
        assert (len(outer), len(inner)) == (2, 1)
        assert all(f.look is not None and f.maps is not None for f in [*outer, *inner])
        with handle.frames() as later:
            own.run(own.images[:1])
        assert later[0].look is None
        same(own.case, own.bare, own.run())
    with pytest.raises(RuntimeError, match="was removed"), handle.frames():
        pass


def test_nothing_found_and_a_fault() -> None:
    own = built("torchvision/FCOS")
    holder, usual = own.model, own.model.score_thresh
    with attach(own.model, Monitor([]), strict=True) as handle:
        holder.score_thresh = 2.0
        try:
            for method in METHODS:
                assert explained(handle, own.images[0], "torchvision/FCOS", method).shape[0] == 0
        finally:
            holder.score_thresh = usual
    with attach(own.model, Monitor([])) as handle:

        def broken(*args: Any) -> Any:
            raise OSError("no evidence")

        handle.host._frame = broken  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match=r"strict=True\) raises the cause"):
            explain(handle, own.images[0])


def test_a_photograph(shared: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    from PIL import Image

    image = np.array(Image.open(shared / "data/coco/val2017/000000017627.jpg").convert("RGB"))
    model = ultralytics.YOLO(str(shared / "weights/yolo11n-seg.pt"))
    with attach(model, Monitor([]), strict=True) as handle:
        found = explain(handle, image, targets=("joint", "class", "mask", "boundary", "box"), rows=[0, 3],
                        method="gradient")
        with handle.frames(*EVIDENCE) as frames:
            handle.predict([image])
            cheap = explain_frame(frames[0], torch.tensor([0, 3]), exact=False, method="gradient")
            masked = explain_frame(frames[0], torch.tensor([0, 3]), method="drise", budget=8)
    assert (found.passes, found.backwards) == (1, 10)
    assert (cheap.passes, cheap.backwards) == (1, 1)
    for maps in [*found.maps.values(), cheap.maps["joint"]]:
        assert maps.shape == (2, *image.shape[:2])
        for map_, (x1, y1, x2, y2) in zip(maps, found.instances.boxes.long().tolist(), strict=True):
            assert map_[y1:y2, x1:x2].mean() > 5 * map_.mean()  # it looks at the object
    assert masked.errors["joint"].isfinite().all()
