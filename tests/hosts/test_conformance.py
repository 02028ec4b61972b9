"""Every promise that a host keeps, checked for every kind of model. A new host is one more list of cases."""

from __future__ import annotations

import copy
import gc
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.ops import roi_align

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.frame import Frame
from reliability_hooks.hosts.base import find_host
from reliability_hooks.hosts.rows import CANDIDATE_FLOOR, MAX_CANDIDATES
from reliability_hooks.signals.base import Signal

from ..conftest import SHARED
from .case import Case, Recorder, Subject
from .detectron2_cases import CASES as DETECTRON2
from .segment_anything_cases import CASES as SEGMENT_ANYTHING
from .torchvision_cases import CASES as TORCHVISION
from .transformers_cases import CASES as TRANSFORMERS
from .ultralytics_cases import CASES as ULTRALYTICS

CASES = [*TORCHVISION, *ULTRALYTICS, *TRANSFORMERS, *DETECTRON2, *SEGMENT_ANYTHING]


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    folder: Path | None = SHARED if (SHARED / "README.md").is_file() else None
    with torch.no_grad():
        return Subject(request.param, folder)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Broken(Signal):
    """A signal with a fault."""

    name = "broken"

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        raise RuntimeError("broken on purpose")


def same(case: Case, left: list[Any], right: list[Any]) -> None:
    """Bit for bit, with dtypes."""
    assert len(left) == len(right)
    for a, b in zip(map(case.tensors, left), map(case.tensors, right), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            assert torch.equal(a[name], b[name]), name


def traces(model: Any) -> Any:
    """All that an attachment could leave behind: hooks of every module, attributes, callbacks."""
    seen = [
        {name: list(value) if name.endswith(("_hooks", "_kwargs", "_called")) else None
         for name, value in vars(module).items()}
        for module in find_host(model).module().modules()
    ]
    callbacks = {event: list(map(id, fns)) for event, fns in getattr(model, "callbacks", {}).items()}
    return seen, sorted(vars(model)), callbacks


def evidence(instances: Instances) -> list[Tensor]:
    """Logits, where there are classes, and features."""
    assert instances.features is not None
    return [t for t in (instances.logits, instances.features) if t is not None]


# What the detector returns ------------------------------------------------------------------------------------------


def test_there_are_detections(subject: Subject) -> None:
    assert all(len(i) >= 3 for i in subject.recorded[0])


def test_output_is_bit_identical(subject: Subject) -> None:
    before = traces(subject.model)
    with attach(subject.model, Monitor(), strict=True):
        hooked = subject.run()
        same(subject.case, subject.bare, hooked)
    assert all(subject.case.instances(output) is not None for output in hooked)
    after = subject.run()
    same(subject.case, subject.bare, after)
    assert all(subject.case.instances(output) is None for output in after)
    assert traces(subject.model) == before


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_grad_mode(subject: Subject, mode: Callable[[], AbstractContextManager[None]]) -> None:
    with mode():
        bare = subject.run()  # torch's attention takes another path, and rounds otherwise, where gradients are recorded
        with attach(subject.model, Monitor(), strict=True):
            hooked = subject.run()
    same(subject.case, bare, hooked)
    for output in hooked:
        instances = subject.case.instances(output)
        assert instances is not None
        assert not any(t.requires_grad for t in (instances.boxes, *evidence(instances), *instances.columns.values()))


# What stands beside it ----------------------------------------------------------------------------------------------


def test_instances_are_the_detections(subject: Subject) -> None:
    for instances, frame, output, image in zip(*subject.recorded, subject.bare, subject.images, strict=True):
        assert instances.image_size == image.shape[:2]
        assert torch.equal(instances.boxes, frame.instances.boxes)
        tensors = subject.case.tensors(output)
        if "boxes" in tensors:
            assert torch.equal(instances.boxes, tensors["boxes"].float())
            assert torch.equal(instances.scores, tensors["scores"].float())
            assert torch.equal(instances.labels, tensors["labels"])
        assert {"reliability", "verdict", "expected_iou"} <= instances.columns.keys()
        if instances.masks is not None:
            assert instances.masks.dtype == torch.bool


def test_gives_what_it_declares(subject: Subject) -> None:
    for frame in subject.recorded[1]:
        for name in ("logits", "features", "candidates"):
            assert frame.has(name) == getattr(subject.info, name), name
        assert frame.instances.masks is None or subject.info.masks


def test_rows_belong_to_boxes(subject: Subject) -> None:
    """The logits of each box give its score, or those of each mask the mask: no row is lost, and none is swapped."""
    for instances, frame in zip(*subject.recorded, strict=True):
        logits = instances.logits
        if logits is None:
            check_mask_logits(instances, frame)
            continue
        assert not logits.isnan().any(), f"{float(logits.isnan().any(1).float().mean()):.0%} of the rows are unmatched"
        probabilities = instances.probabilities()
        assert probabilities is not None
        own = probabilities[torch.arange(len(instances)), instances.labels]
        if subject.case.score_is_probability:
            assert torch.allclose(own, instances.scores, atol=1e-4)
        else:
            assert (own >= instances.scores**2 - 1e-4).all()  # score^2 = p * centerness <= p
        if subject.case.single_label:
            assert torch.equal(instances.without_background(probabilities).argmax(1), instances.labels)


def check_mask_logits(instances: Instances, frame: Frame) -> None:
    assert frame.mask_logits is not None
    assert instances.image_size is not None
    assert frame.view is not None
    logits = frame.mask_logits()
    assert not logits.isnan().any()
    height, width = ((logits > -torch.inf).any(0).any(axis).sum() for axis in (1, 0))
    small = logits[None, :, :height, :width].clamp(-1e3, 1e3)
    grown = torch.nn.functional.interpolate(small, instances.image_size, mode="bilinear")[0] > 0
    masks = instances.masks_at(instances.image_size)
    overlap = (grown[:, None] & masks).flatten(2).sum(2) / (grown[:, None] | masks).flatten(2).sum(2)
    own = overlap.diagonal()
    assert (own >= overlap.amax(0) - 0.1).all()  # of two like masks, either
    assert own.mean() > 0.6  # the grid is coarse


def test_features(subject: Subject) -> None:
    widths = set()
    for instances in subject.recorded[0]:
        features = evidence(instances)[-1]
        assert features.isfinite().all()
        assert len(features.unique(dim=0)) > 1  # not one and the same vector for all
        widths.add(features.shape[1])
    assert len(widths) == 1


def test_candidates_hold_every_kept_box(subject: Subject) -> None:
    if not subject.info.candidates:
        pytest.skip("the host declares that there are none")
    for frame in subject.recorded[1]:
        found, kept = frame.candidates, frame.instances
        assert found is not None
        assert kept.image_size is not None
        assert 0 < len(found) <= MAX_CANDIDATES
        assert kept.background is None or (found.labels != kept.background).all()
        floor = float(found.scores.min()) if len(found) == MAX_CANDIDATES else CANDIDATE_FLOOR
        h, w = kept.image_size
        boxes, own = (torch.minimum(b.clamp(min=0), torch.tensor([w, h, w, h])) for b in (found.boxes, kept.boxes))
        near = (boxes[None] - own[:, None]).abs().amax(-1) < 0.1
        near &= found.labels[None] == kept.labels[:, None]
        near &= (found.scores[None] - kept.scores[:, None]).abs() < 1e-4
        assert near.any(1)[kept.scores > floor + 1e-4].all()


def test_view_shows_the_image(subject: Subject) -> None:
    """Each pixel of the view is the original's at the place that the mapping says; so is the crop of each box."""
    for frame, image in zip(subject.recorded[1], subject.images, strict=True):
        view = frame.view
        assert view is not None
        original = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        height, width = image.shape[:2]
        seen = view.rgb()[None]
        y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in seen.shape[2:]), indexing="ij")
        points = view.to_image(torch.stack([x, y, x, y], -1).view(-1, 4))[:, :2]
        inside = ((points >= 0) & (points <= points.new_tensor([width, height]))).all(1)
        grid = points / points.new_tensor([width, height]) * 2 - 1
        expected = grid_sample(original, grid[None, None], padding_mode="border", align_corners=False)[0, :, 0]
        assert inside.float().mean() > 0.5
        assert (expected - seen.flatten(2)[0])[:, inside].abs().mean() < 0.01

        w, h = width / 3, height / 3
        boxes = torch.tensor([[i * w, j * h, (i + 1) * w, (j + 1) * h] for i in range(3) for j in range(3)])
        crops = roi_align(original, [boxes], 8, aligned=True)
        error = (roi_align(seen, [view.to_view(boxes)], 8, aligned=True) - crops).abs().mean()
        shifted = (roi_align(seen, [view.to_view(boxes + 6)], 8, aligned=True) - crops).abs().mean()
        assert error < 0.02
        assert error < shifted / 2


def test_indexing_and_devices_keep_rows_together(subject: Subject) -> None:
    for whole in subject.recorded[0]:
        n = len(whole)
        whole = whole.with_columns({"position": torch.arange(n).float()})
        mask = torch.arange(n) % 2 == 0
        parts = [(whole[mask], torch.arange(n)[mask]), (whole[1:], torch.arange(1, n)), (whole[-1], [n - 1]),
                 (whole[[2, 0]], [2, 0]), (whole.to("cpu"), torch.arange(n)), (whole.cpu(), torch.arange(n))]
        for part, rows in parts:
            assert part.columns["position"].tolist() == [float(r) for r in rows]
            for a, b in zip((part.boxes, *evidence(part)), (whole.boxes, *evidence(whole)), strict=True):
                assert torch.equal(a, b[torch.as_tensor(rows)])


# Unusual input ------------------------------------------------------------------------------------------------------


def test_zero_detections(subject: Subject) -> None:
    with attach(subject.model, Monitor(), strict=True) as handle:
        if subject.case.prompts is not None:  # it answers whatever it is asked for
            found: list[Any] = list(handle.predict(subject.images, **subject.case.options(subject.images, True)))
        else:
            found = [subject.case.instances(output) for output in subject.run(nothing=True)]
    for instances, some in zip(found, subject.recorded[0], strict=True):
        assert instances is not None
        assert len(instances) == 0
        assert instances.reliability.shape == (0,)
        assert instances.image_size == some.image_size
        assert [t.shape[1] for t in evidence(instances)] == [t.shape[1] for t in evidence(some)]
        assert len(Instances.cat([instances.replace(columns={}, masks=None),
                                  some.replace(columns={}, masks=None)])) == len(some)


def test_batch_of_different_sizes(subject: Subject) -> None:
    assert len({image.shape for image in subject.images}) > 1
    assert [f.instances.image_size for f in subject.recorded[1]] == [image.shape[:2] for image in subject.images]


def test_one_image(subject: Subject) -> None:
    alone = subject.images[:1]
    bare = subject.run(alone)
    recorder = Recorder()
    with attach(subject.model, recorder, strict=True):
        hooked = subject.run(alone)
    same(subject.case, bare, hooked)
    assert len(recorder.frames) == 1
    assert all(values.isfinite().all() for values in evidence(recorder.frames[0].instances))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(subject: Subject, dtype: torch.dtype) -> None:
    case = subject.case
    if case.cast is None:
        pytest.skip("the host has no half precision here")
    model = case.cast(copy.deepcopy(subject.model), dtype)
    try:
        bare = case.run(model, subject.images)
    except (RuntimeError, NotImplementedError) as e:
        pytest.skip(f"the bare detector does not run: {str(e).splitlines()[0]}")
    with attach(model, Monitor(), strict=True):
        hooked = case.run(model, subject.images)
    same(case, bare, hooked)
    check_rounded([case.instances(output) for output in hooked], case, dtype)


def test_autocast(subject: Subject) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        try:
            bare = subject.run()
        except (RuntimeError, NotImplementedError, TypeError) as e:
            pytest.skip(f"the bare detector does not run: {str(e).splitlines()[0]}")
        with attach(subject.model, Monitor(), strict=True):
            hooked = subject.run()
    same(subject.case, bare, hooked)
    check_rounded([subject.case.instances(output) for output in hooked], subject.case, torch.bfloat16)


def check_rounded(found: list[Instances | None], case: Case, dtype: torch.dtype) -> None:
    """Rounding makes some rows alike, which are left without evidence; the others are the right ones."""
    matched = 0
    for instances in found:
        assert instances is not None
        probabilities = instances.probabilities()
        if probabilities is None:  # no classes: features are all that a row is given
            matched += int(evidence(instances)[-1].isfinite().all(1).sum())
            continue
        known = ~probabilities.isnan().any(1)
        own = probabilities[torch.arange(len(instances)), instances.labels][known]
        if case.score_is_probability:
            assert torch.allclose(own, instances.scores[known], atol=4 * torch.finfo(dtype).eps)
        matched += int(known.sum())
    total = sum(len(i) for i in found if i is not None)
    assert matched >= 0.7 * total, f"{matched} of {total} rows"


# Coming and going ---------------------------------------------------------------------------------------------------


def test_attach_twice(subject: Subject) -> None:
    bare = traces(subject.model)
    first, second = Recorder(), Recorder()
    old = attach(subject.model, first, strict=True)
    once = traces(subject.model)
    handle = attach(subject.model, second, strict=True)
    try:
        assert not old.attached
        assert [[len(v or ()) for v in m.values()] for m in traces(subject.model)[0]] == [
            [len(v or ()) for v in m.values()] for m in once[0]
        ]
        subject.run()
        assert (len(first.frames), len(second.frames)) == (0, len(subject.images))
    finally:
        handle.remove()
    handle.remove()
    old.remove()
    assert traces(subject.model) == bare


def test_copies_run_bare(subject: Subject) -> None:
    recorder, model = Recorder(), subject.model
    try:
        copy.deepcopy(model)
    except TypeError:  # ultralytics: once it has predicted, a lock is in the way
        model = subject.case.build(SHARED if (SHARED / "README.md").is_file() else None)
    with attach(model, recorder, strict=True):
        twin = copy.deepcopy(model)
        outputs = subject.case.run(twin, subject.images)
    same(subject.case, subject.bare, outputs)
    assert all(subject.case.instances(output) is None for output in outputs)
    assert recorder.frames == []


def test_saved_model_runs_bare(subject: Subject) -> None:
    try:
        torch.save(subject.model, io.BytesIO())
    except Exception as e:
        pytest.skip(f"the bare model cannot be saved: {e}")
    recorder, file = Recorder(), io.BytesIO()
    with attach(subject.model, recorder, strict=True):
        torch.save(subject.model, file)
    file.seek(0)
    outputs = subject.case.run(torch.load(file, weights_only=False), subject.images)
    same(subject.case, subject.bare, outputs)
    assert all(subject.case.instances(output) is None for output in outputs)
    assert recorder.frames == []


# Faults -------------------------------------------------------------------------------------------------------------


def test_fault_is_unknown(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reliability_hooks"), attach(subject.model, Monitor(["geometry", Broken()])):
        first, second = subject.run(), subject.run()
    for outputs in (first, second):
        same(subject.case, subject.bare, outputs)
        for output in outputs:
            instances = subject.case.instances(output)
            assert instances is not None
            assert instances.reliability.isnan().all()
            assert (instances.column("verdict") == 0).all()
    assert len(caplog.records) == 1
    assert "broken on purpose" in caplog.text


def test_fault_raises_when_strict(subject: Subject) -> None:
    with attach(subject.model, Monitor([Broken()]), strict=True), pytest.raises(RuntimeError, match="on purpose"):
        subject.run()
    same(subject.case, subject.bare, subject.run())


def alive() -> int:
    """Tensors that anybody still holds."""
    gc.collect()
    kinds = Counter(map(type, gc.get_objects()))
    return sum(count for kind, count in kinds.items() if issubclass(kind, Tensor))


def test_memory_does_not_grow(subject: Subject) -> None:
    counts = []
    with attach(subject.model, Monitor(), strict=True):
        for _ in range(5):
            subject.run(subject.images[:1])
            counts.append(alive())
    assert max(counts[1:]) <= counts[0]


def test_handle_predicts(subject: Subject) -> None:
    with attach(subject.model, Monitor(), strict=True) as handle:
        found = handle.predict(subject.images, **subject.case.options(subject.images))
        assert handle.predict([], **subject.case.options([])) == []
    for instances, image in zip(found, subject.images, strict=True):
        assert instances.image_size == image.shape[:2]
        assert len(instances) > 0
    with pytest.raises(RuntimeError, match="removed"):
        handle.predict(subject.images)
