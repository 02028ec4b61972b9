from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import log, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reliability_hooks import Monitor, attach
from reliability_hooks.frame import Candidates, Frame, View
from reliability_hooks.hosts.base import Host, Process, Removable, find_host, load
from reliability_hooks.images import read_image
from reliability_hooks.instances import Instances
from reliability_hooks.signals.ood import ensemble
from reliability_hooks.signals.ood.ensemble import Ensemble

torch.set_num_threads(1)
MI, VARIANCE, FOUND = Ensemble.columns
IMAGE = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)


class Made(Host):
    """A detector that finds what it is told to."""

    name = "made"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.process: Process | None = None
        self.images: list[np.ndarray] = []

    def class_names(self) -> dict[int, str]:
        return {0: "a", 1: "b", 2: "c"}

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        self.process = process
        return [self]

    def remove(self) -> None:
        self.process = None

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        assert self.process is not None
        self.images += images
        if isinstance(self.model, Exception):
            raise self.model
        none = Instances.empty()
        return [self.process(lambda: Frame(none, candidates=self.model), lambda: none)]


def raw(*rows: tuple[list[float], float, int]) -> Candidates:
    boxes, scores, labels = zip(*rows, strict=True)
    return Candidates(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))


def frame(head: str = "sigmoid", background: int | None = None) -> Frame:
    """Two objects; a view of two pixels for each of the image's, ten further to the right."""
    boxes = torch.tensor([[5.0, 5, 15, 15], [30, 30, 40, 40]])
    found = Instances(boxes, torch.tensor([0.8, 0.6]), torch.tensor([1, 2]), logits=torch.zeros(2, 3),
                      head=head, background=background)  # type: ignore[arg-type]
    own = raw(([5, 5, 15, 15], 0.8, 1), ([30, 30, 40, 40], 0.6, 2))
    return Frame(found, View(torch.rand(3, 100, 110), (2.0, 2.0), (10.0, 0.0)), own)


def expected(p: np.ndarray, exclusive: bool) -> float:
    """(members, K) -> entropy of the mean minus mean entropy."""

    def entropy(q: np.ndarray) -> float:
        parts = [*q, max(1 - q.sum(), 0)] if exclusive else [*q, *(1 - q)]
        return -sum(x * log(x) for x in parts if x > 0)

    p = p / np.maximum(p.sum(1, keepdims=True), 1) if exclusive else p
    return entropy(p.mean(0)) - float(np.mean([entropy(q) for q in p]))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "find_host", Made)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(("head", "background"), [("sigmoid", None), ("softmax", None), ("softmax+background", 0)])
def test_columns(head: str, background: int | None) -> None:
    box, near, away = [20, 10, 40, 30], [22, 10, 42, 30], [50, 10, 70, 30]
    b = raw((box, 0.2, 1), (near, 0.3, 1), (box, 0.5, 2), (away, 1.0, 1))
    signal, given = Ensemble([b, Candidates.empty()]), frame(head, background)
    out = signal(given)
    # (object, member, class)
    p = np.array([[[0, 0.8, 0], [0, 0.3, 0.5], [0, 0, 0]], [[0, 0, 0.6], [0, 0, 0], [0, 0, 0]]])
    for n in range(2):
        assert out[MI][n].item() == pytest.approx(expected(p[n], head != "sigmoid"), abs=1e-5)
        classes = p[n][:, 1:] if background == 0 else p[n]
        assert out[VARIANCE][n].item() == pytest.approx(classes.var(0).mean(), abs=1e-6)
    assert out[FOUND].tolist() == pytest.approx([2 / 3, 1 / 3])
    image = signal.hosts[0].images[0]  # type: ignore[attr-defined]
    assert image.shape == (100, 110, 3)
    assert image.dtype == np.uint8
    assert given.view is not None
    assert abs(image / 255 - given.view.pixels.permute(1, 2, 0).numpy()).max() < 0.51 / 255
    assert all(host.process is None for host in signal.hosts)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("made")
def test_members_that_agree_and_what_is_not_finite() -> None:
    same = raw(([20, 10, 40, 30], 0.8, 1), ([70, 60, 90, 80], 0.6, 2))
    out = Ensemble([same])(frame())
    assert out[MI].abs().max() < 1e-6
    assert out[VARIANCE].max() < 1e-9
    assert out[FOUND].tolist() == [1, 1]
    given = frame()
    boxes = given.instances.boxes.clone()
    boxes[0, 2] = nan
    broken = Ensemble([same])(given.with_instances(given.instances.replace(boxes=boxes)))
    for column in broken.values():
        assert column[0].isnan()
        assert column[1].isfinite()


@pytest.mark.usefixtures("made")
def test_nothing_detected_costs_nothing() -> None:
    signal = Ensemble([Candidates.empty()])
    given = frame()
    out = signal(given.with_instances(given.instances[:0]))
    assert list(out) == list(Ensemble.columns)
    assert all(column.shape == (0,) for column in out.values())
    assert not signal.hosts[0].images  # type: ignore[attr-defined]


@pytest.mark.usefixtures("made")
def test_faults() -> None:
    failing = Ensemble([ArithmeticError("broken")])
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            failing(frame())
        assert failing.hosts[0].process is None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="gives no candidates"):
        Ensemble([None])(frame())
    with pytest.raises(ValueError, match="no candidates"):
        Ensemble([Candidates.empty()])(Frame(frame().instances, frame().view))
    assert failing.missing(Frame(frame().instances)) == ["image", "candidates"]


def test_what_an_ensemble_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="no host"):
        Ensemble([object()])
    monkeypatch.setattr(ensemble, "find_host", Made)
    for members in ([], [same := object(), same]):
        with pytest.raises(ValueError, match="each given once"):
            Ensemble(members)
    monkeypatch.setattr(Made, "class_names", lambda self: {0: self.model})
    with pytest.raises(ValueError, match="other class names"):
        Ensemble(["cat", "dog"])


def detector(seed: int) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(seed)
    model: nn.Module = models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None, num_classes=5, min_size=96,
        max_size=128, rpn_post_nms_top_n_test=60, box_detections_per_img=8,
    )
    return model.eval()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Keeping(Ensemble):
    """Remembers the frames."""

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        self.frame = frame
        return super().__call__(frame)


def test_torchvision_detectors() -> None:
    """Against members run one by one, and a loop over raw boxes; the members stay as they were."""
    from torchvision.ops import box_iou

    a, b, c = (detector(seed) for seed in range(3))
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1) / 255
    with torch.no_grad():
        before = [m([tensor])[0] for m in (a, b, c)]
    signal = Keeping([b, c])
    with attach(a, Monitor([signal]), strict=True) as handle:
        (found,) = handle.predict([IMAGE])
    view, own = signal.frame.view, signal.frame.candidates
    assert view is not None
    assert own is not None
    pixels = (view.rgb() * 255).round().byte().permute(1, 2, 0).numpy()
    passes = [Candidates(view.to_view(own.boxes), own.scores, own.labels)]
    for member in (b, c):
        only = Keeping([detector(9)])
        with attach(member, Monitor([only]), strict=True) as handle:
            handle.predict([pixels])
        assert only.frame.candidates is not None
        passes.append(only.frame.candidates)
    assert len(found) > 0
    for n in range(len(found)):
        p = np.zeros((3, 5))
        for m, raw_boxes in enumerate(passes):
            iou = box_iou(view.to_view(found.boxes[n : n + 1]), raw_boxes.boxes)[0]
            for i in (iou >= 0.5).nonzero()[:, 0].tolist():
                label = int(raw_boxes.labels[i])
                p[m, label] = max(p[m, label], float(raw_boxes.scores[i]))
        assert found.columns[MI][n].item() == pytest.approx(expected(p[:, 1:], True), abs=1e-5)
        assert found.columns[VARIANCE][n].item() == pytest.approx(p[:, 1:].var(0).mean(), abs=1e-6)
        assert found.columns[FOUND][n].item() == pytest.approx((p[:, found.labels[n]] >= 0.25).mean())
    with torch.no_grad():
        after = [m([tensor])[0] for m in (a, b, c)]
    for first, second in zip(before, after, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert [hooks(m) for m in (a, b, c)] == [0, 0, 0]


def test_a_failing_member_makes_the_answer_unknown() -> None:
    a, b = detector(0), detector(1)
    b.train()  # returns losses, and no detections
    with attach(a, Monitor([Ensemble([b])])) as handle:
        (found,) = handle.predict([IMAGE])
        assert len(found) > 0
        assert found.reliability.isnan().all()
        assert not set(Ensemble.columns) & set(found.columns)
    with attach(a, Monitor([Ensemble([b])]), strict=True) as handle, pytest.raises(RuntimeError, match="training mode"):
        handle.predict([IMAGE])
    assert (hooks(a), hooks(b)) == (0, 0)
    with attach(a, Monitor([Ensemble([a])]), strict=True) as handle, pytest.raises(ValueError, match="detector itself"):
        handle.predict([IMAGE])
    assert hooks(a) == 0


def test_yolos_on_a_photograph(shared: Path) -> None:
    """Two published detectors find the same sure objects; what one alone believes in is less agreed on."""
    pytest.importorskip("ultralytics")
    a, b = (load(str(shared / "weights" / name)) for name in ("yolo11n-seg.pt", "yolov8n.pt"))
    assert find_host(a).class_names() == find_host(b).class_names()
    images = [read_image(p) for p in sorted((shared / "data/coco/val2017").glob("*.jpg"))[:4]]
    bare = [r.boxes.data.clone() for r in b.predict([i[..., ::-1].copy() for i in images], verbose=False)]
    with attach(a, Monitor([Ensemble([b])]), strict=True) as handle:
        found = Instances.cat([i.replace(masks=None, image_size=None) for i in handle.predict(images, conf=0.1)])
    sure = found.scores >= 0.6
    share, mutual = found.columns[FOUND], found.columns[MI]
    assert sure.sum() > 3
    assert (~sure).sum() > 3
    assert share[sure].mean() > 0.9
    assert share[~sure].mean() < share[sure].mean()
    assert (mutual >= 0).all()
    assert set((share * 2).tolist()) <= {0.0, 1.0, 2.0}
    again = b.predict([i[..., ::-1].copy() for i in images], verbose=False)
    assert all(torch.equal(x, r.boxes.data) for x, r in zip(bare, again, strict=True))
    assert not any(hasattr(r, "instances") for r in again)
