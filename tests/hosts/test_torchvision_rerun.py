"""What torchvision models give beside their rows: feature maps and further passes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reliability_hooks import Monitor, attach
from reliability_hooks.frame import MAPS, Frame
from reliability_hooks.hosts.torchvision_inside import trunk
from reliability_hooks.signals.base import Signal

from .case import Recorder, Subject
from .test_conformance import alive, same
from .test_torchvision import subject
from .torchvision_cases import CASES, STOCK

detection = pytest.importorskip("torchvision.models.detection")
ALL = {case.name.partition("/")[2]: cases for cases in (CASES, STOCK) for case in cases}
MOBILENET, LITE = "fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"
LAST = {  # the modules of the backbone that the strides 4, 8 and 16 end with
    MOBILENET: ("body.3", "body.6", "body.12"),
    "retinanet_resnet50_fpn": ("body.layer1", "body.layer2", "body.layer3"),
    "RetinaNet": ("body.layer1", "body.layer2", "body.layer3"),
    "SSD": ("layer1", "layer2", "layer3"),
    "ssd300_vgg16": ("features.15", "features", "extra.0"),
    LITE: ("features.0.3", "features.0.6", "features.0"),
}


@cache
def built(name: str) -> Subject:
    return subject(ALL[name], name)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Eye(Signal):
    """A signal that has no columns, and remembers what it saw."""

    name = "eye"
    requires = ("image", "maps")

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        self.frames.append(frame)
        return {}


def frames(own: Subject, images: list[np.ndarray] | None = None) -> list[Frame]:
    eye = Eye()
    with attach(own.model, Monitor([eye]), strict=True):
        own.run(images)
    return eye.frames


@pytest.mark.parametrize("name", LAST)
def test_maps_are_the_ends_of_the_stages(name: str) -> None:
    own = built(name)
    seen: dict[str, Tensor] = {}
    handles = [
        own.model.backbone.get_submodule(path).register_forward_hook(lambda m, a, out, k=k: seen.update({k: out}))
        for k, path in zip(MAPS, LAST[name], strict=True)
    ]
    try:
        found = frames(own)
    finally:
        for handle in handles:
            handle.remove()
    for i, frame in enumerate(found):
        assert frame.view is not None
        assert frame.maps is not None
        assert tuple(frame.maps) == MAPS
        for stride, (level, values) in zip((4, 8, 16), frame.maps.items(), strict=True):
            height, width = (-(-n // stride) for n in frame.view.pixels.shape[1:])
            assert values.shape[1:] == (height, width)
            assert torch.equal(values, seen[level][i, :, :height, :width])


def test_maps_of_a_batch_are_those_of_its_images() -> None:
    own = built("RetinaNet")
    together = frames(own)
    assert len({f.view.pixels.shape for f in together}) == 2  # type: ignore[union-attr]
    for image, one in zip(own.images, together, strict=True):
        (alone,) = frames(own, [image])
        assert one.maps is not None
        assert alone.maps is not None
        assert [m.shape for m in one.maps.values()] == [m.shape for m in alone.maps.values()]
        # layer1 sees 43 px: 6 cells from an edge nothing is known of what lies beyond
        assert torch.allclose(one.maps["early"][:, :-6, :-6], alone.maps["early"][:, :-6, :-6], atol=1e-4)


def test_maps_cost_nothing_where_nobody_needs_them() -> None:
    own, recorder = built("RetinaNet"), Recorder()
    with attach(own.model, recorder, strict=True):
        assert not any(m._forward_hooks for m in own.model.backbone.modules())
        own.run()
    assert all(frame.maps is None and frame.rerun is not None for frame in recorder.frames)


def test_no_maps_where_a_stride_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 8, 4, 4))
    backbone.out_channels = 8  # type: ignore[assignment]
    anchors = detection.anchor_utils.AnchorGenerator(((32,),), ((1.0,),))
    model = detection.FasterRCNN(backbone, 3, rpn_anchor_generator=anchors, box_score_thresh=0.0, min_size=64,
                                 max_size=64, box_roi_pool=detection.faster_rcnn.MultiScaleRoIAlign(["0"], 7, 2))
    eye = Eye()
    with attach(model.eval(), Monitor([eye]), strict=True):
        assert len(model([torch.rand(3, 64, 64)])[0]["scores"]) > 0
    assert eye.frames == []
    assert "this detector gives no maps" in caplog.text


def test_stages_are_found_in_a_wrapped_network() -> None:
    from torchvision.models import resnet18

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet18(weights=None)

    wrapper = Wrapper()
    found = {id(m) for m in trunk(wrapper)}
    assert {id(wrapper.net.get_submodule(p)) for p in ("layer1", "layer2", "layer3.1", "maxpool")} <= found
    assert id(wrapper.net.layer2[0].conv1) not in found  # stride 4, but the next stage's


@pytest.mark.parametrize("name", [MOBILENET, "retinanet_resnet50_fpn", "fcos_resnet50_fpn", LITE, "ssd300_vgg16"])
def test_unchanged_pixels_give_the_kept_boxes_again(name: str) -> None:
    own, recorder = built(name), Recorder()
    with attach(own.model, recorder, strict=True):
        bare = own.run()
        for frame in recorder.frames:
            kept, view = frame.instances, frame.view
            assert view is not None
            assert frame.rerun is not None
            before = view.pixels.clone()
            answers = frame.rerun(torch.stack([view.pixels, view.pixels.flip(2)]))
            assert torch.equal(view.pixels, before)
            assert len(answers) == 2
            boxes, found = view.to_view(kept.boxes), answers[0]
            near = (boxes[:, None] - found.boxes).abs().amax(-1) < 0.05
            near &= (kept.scores[:, None] - found.scores).abs() < 1e-4
            near &= kept.labels[:, None] == found.labels
            assert len(kept) > 0
            assert near.any(1).all()
            assert frame.candidates is not None
            assert abs(len(found) - len(frame.candidates)) <= 0.01 * len(found)  # the same floor and maximum
            assert not torch.equal(answers[1].scores, found.scores)
        same(own.case, own.bare, bare)
        same(own.case, own.bare, own.run())


def test_a_frame_outlives_the_hooks_but_not_its_passes() -> None:
    own, recorder = built("FasterRCNN"), Recorder()
    with attach(own.model, recorder, strict=True):
        own.run()
    frame = recorder.frames[0]
    assert frame.view is not None
    assert frame.rerun is not None
    with pytest.raises(RuntimeError, match="attach again"):
        frame.rerun(frame.view.pixels[None])


@pytest.mark.parametrize("name", ["FasterRCNN", "MaskRCNN", "RetinaNet", "FCOS", "SSD"])
def test_signals_with_passes_of_their_own_disturb_nothing(name: str) -> None:
    own, recorder = built(name), Recorder()
    with attach(own.model, recorder, strict=True):
        own.run()
    monitor = Monitor(["consistency", "activations"])
    flags = [m.training for m in own.model.modules()]
    state = {k: v.clone() for k, v in own.model.state_dict().items()}
    with attach(own.model, monitor, strict=True):
        with monitor.learning():
            own.run()
        hooked = own.run()
        before = alive()
        own.run(own.images[:1])
        assert alive() <= before
    same(own.case, own.bare, hooked)
    for output, frame in zip(hooked, recorder.frames, strict=True):
        instances = output["instances"]
        # the rows of the image's own pass, not of the changed views
        assert torch.equal(instances.logits, frame.instances.logits)
        assert torch.equal(instances.features, frame.instances.features)
        columns = instances.columns
        assert all(columns[c].isfinite().all() for s in monitor.signals for c in s.columns)
        assert columns["consistency/brightened_score"].max() > 0
    assert [m.training for m in own.model.modules()] == flags
    assert all(torch.equal(v, state[k]) for k, v in own.model.state_dict().items())
