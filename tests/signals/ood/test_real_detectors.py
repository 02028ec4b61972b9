"""Every score that pytorch-ood has, on box logits and features of real photographs: a Faster R-CNN and yolo11n-seg.

The Faster R-CNN is untrained, seeded and `spread`. Each detector gives rows as its host collects them, the background's
logit dropped; what was learnt from some photographs judges the others. pytorch-ood knows softmax heads of one level
only: the YOLO's rows are those of its first level, taken as a softmax head's. Its ODIN perturbs the input of a
classifier of whole images, and has no counterpart among boxes: see `test_odin`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from reliability_hooks import Monitor, attach
from reliability_hooks.frame import Frame
from reliability_hooks.hosts.base import load
from reliability_hooks.images import read_image
from reliability_hooks.signals.ood import scores
from reliability_hooks.signals.ood.base import Rows, Score
from reliability_hooks.signals.ood.gradnorm import gradnorm
from reliability_hooks.signals.ood.knn import KNearest
from reliability_hooks.signals.ood.mahalanobis import Mahalanobis, RelativeMahalanobis
from reliability_hooks.signals.ood.nnguide import NNGuide
from reliability_hooks.signals.ood.temperature import temperature_msp
from reliability_hooks.signals.ood.vim import ViM

from ...hosts.case import photographs
from ...hosts.spread import spread
from ...hosts.torchvision_cases import RCNN, custom, run, tensors_of
from .test_distances import judged, taught
from .test_last_layer import SCORES, learnt, of_pytorch_ood, positive
from .test_logit_scores import matched

detector = pytest.importorskip("pytorch_ood.detector")


class Collector(Score):
    """A signal without a column that keeps the rows of every image."""

    name = "ood/collector"
    evidence = ("logits", "features", "classifier")
    columns: ClassVar = {}

    def __init__(self) -> None:
        self.layer, self.requires = "box", self.evidence
        self.seen: list[Rows] = []

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        self.seen.append(self.rows(frame))
        return {}


def faster_rcnn(shared: Path, monitor: Monitor) -> None:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    images = photographs(shared, ((120, 168),) * 10)
    model: Any = custom(shared, "FasterRCNN", **{**RCNN, "box_detections_per_img": 100})
    torch.manual_seed(1)
    model.roi_heads.box_head = TwoMLPHead(64 * 7 * 7, 48)
    model.roi_heads.box_predictor = FastRCNNPredictor(48, 9)
    spread(model.eval(), tensors_of(images[:1]))
    with attach(model, monitor, strict=True), torch.no_grad():
        run(model, images)


def yolo(shared: Path, monitor: Monitor) -> None:
    pytest.importorskip("ultralytics")
    images = [read_image(p) for p in sorted((shared / "data/coco/val2017").glob("*.jpg"))[:10]]
    with attach(load(str(shared / "weights/yolo11n-seg.pt")), monitor, strict=True) as handle:
        handle.predict(images, conf=0.003, imgsz=320, iou=0.9)


@pytest.fixture(scope="module", params=[faster_rcnn, yolo], ids=lambda make: make.__name__)
def halves(shared: Path, request: pytest.FixtureRequest) -> tuple[Rows, Rows]:
    """Rows of the first eight photographs and of the others."""
    collector = Collector()
    request.param(shared, Monitor([collector]))
    parts = collector.seen
    level = [part.which == 0 for part in parts]  # type: ignore[operator]

    def joined(some: slice) -> Rows:
        def cat(name: str) -> Tensor:
            pairs = zip(parts[some], level[some], strict=True)
            return torch.cat([getattr(part, name)[keep] for part, keep in pairs])

        logits = cat("logits")
        own = [parts[0].weight[:1], parts[0].bias[:1]]  # type: ignore[index]
        return Rows(logits.argmax(1), logits, "softmax", cat("features"), cat("inputs"), *own, cat("which"))

    train, test = joined(slice(8)), joined(slice(8, None))
    assert len(train) > 150
    assert len(test) > 30
    assert len(train.classes.unique()) > 3
    torch.testing.assert_close(test.inputs @ test.weight[0].T + test.bias[0], test.logits, rtol=1e-3, atol=1e-3)  # type: ignore[index,operator]
    return train, test


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_scores_of_logits(halves: tuple[Rows, Rows]) -> None:
    (f,) = halves[1].require("logits")
    same(scores.msp(f, "softmax"), detector.MaxSoftmax.score(f))
    same(scores.max_logit(f), detector.MaxLogit.score(f))
    same(scores.energy(f), detector.EnergyBased.score(f))
    same(scores.energy(f, temperature=3), detector.EnergyBased.score(f, t=3))
    same(scores.entropy(f), detector.Entropy.score(f))


def test_gen(halves: tuple[Rows, Rows]) -> None:
    """Theirs is of a mean instead of a sum, and takes no p under 1e-7: rows with such a p are left out."""
    (f,) = halves[1].require("logits")
    f = f[f.softmax(1).amin(1) > 1e-7]
    assert len(f) > 20
    same(scores.gen(f, "softmax"), detector.GEN.score(f) * f.shape[1])
    same(scores.gen(f, "softmax", top=3), detector.GEN.score(f, M=3) * 3)


def test_kl_matching(halves: tuple[Rows, Rows]) -> None:
    train, test = (half.require("logits")[0] for half in halves)
    same(matched(train, test, "softmax"), detector.KLMatching(None).fit_logits(train).predict_logits(test))


def test_temperature(halves: tuple[Rows, Rows]) -> None:
    """At their temperature: their L-BFGS stops early. Labels are drawn, so that one temperature is right."""
    train, test = (half.require("logits")[0] for half in halves)
    labels = (train / 2).softmax(1).multinomial(1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    other = detector.TemperatureScaling(None).fit_logits(train, labels)
    same(temperature_msp(test, "softmax", other.t.item()), other.predict_logits(test).detach())


@pytest.mark.parametrize("kind", SCORES)
def test_scores_of_the_last_layer(kind: type, halves: tuple[Rows, Rows]) -> None:
    train, test = (positive(half) for half in halves)
    same(learnt(kind, train, 1).score(test), of_pytorch_ood(detector, kind, train, test))


def linear(given: Rows) -> torch.nn.Linear:
    weight, bias = given.require("weight", "bias")
    layer = torch.nn.Linear(*reversed(weight[0].shape))
    layer.load_state_dict({"weight": weight[0], "bias": bias[0]})
    return layer


def test_gradnorm(halves: tuple[Rows, Rows]) -> None:
    test = positive(halves[1])
    logits, inputs = test.require("logits", "inputs")
    theirs = detector.GradNorm(linear(test), lambda name: name == "weight").predict(inputs)
    same(gradnorm(logits, inputs, "softmax"), theirs)


def test_nnguide(halves: tuple[Rows, Rows]) -> None:
    """Of the inputs of the last layer, as theirs makes the logits from the features."""
    train, test = (positive(half) for half in halves)
    train, test = (Rows(r.classes, r.logits, "softmax", r.inputs) for r in (train, test))
    layer = linear(halves[0])
    with torch.no_grad():
        theirs = detector.NNGuide(None, layer, k=10).fit_features(train.features, torch.zeros(len(train)))
        same(learnt(NNGuide, train, 1).score(test), theirs.predict_features(test.features))


def test_vim(halves: tuple[Rows, Rows]) -> None:
    """All logits raised alike, so that their largest is above 0 on average as after training with a softmax.

    The YOLO's is not, and makes their alpha negative: the further off, the better known. Ours is 0 then. Their origin
    is given in float64, and so all that follows: in float32 a condition of 700 moves the YOLO's, which is far off.
    """
    weight, bias = halves[0].require("weight", "bias")
    (f,) = halves[0].require("logits")
    train, test = (positive(replace(half, bias=bias + 5 - f.amax(1).mean())) for half in halves)
    dims = weight.shape[2] // 2
    theirs = detector.ViM(None, dims, weight[0], train.bias[0])  # type: ignore[index]
    theirs.u = -torch.linalg.pinv(weight[0].double()) @ train.bias[0].double()  # type: ignore[index]
    theirs.fit_features(train.inputs, torch.zeros(len(train)))
    same(learnt(ViM, train, 1).score(test), theirs.predict_features(test.inputs))


@pytest.mark.parametrize("kind", [Mahalanobis, RelativeMahalanobis, KNearest])
def test_distances(kind: type[Score], halves: tuple[Rows, Rows]) -> None:
    """Theirs is of sums instead of means over the rows, and Mahalanobis halved.

    It inverts any covariance, that of units which are always 0 too, where ours is shrunk: so only the 16 directions in
    which the features vary most are compared. A class of one row has no spread, and is none of ours: it is left out.
    """
    (z,), (x,) = (half.require("features") for half in halves)
    _, y, counts = halves[0].classes.unique(return_inverse=True, return_counts=True)
    z, y = z[counts[y] > 1], y[counts[y] > 1].unique(return_inverse=True)[1]
    if kind is not KNearest:
        axes = torch.linalg.svd(z - z.mean(0), full_matrices=False)[2][:16].T
        z, x = z @ axes, x @ axes
    theirs = {Mahalanobis: detector.Mahalanobis, RelativeMahalanobis: detector.RMD, KNearest: detector.KNN}[kind](None)
    factor = {Mahalanobis: 2 * len(z), RelativeMahalanobis: len(z), KNearest: 1}[kind]
    same(judged(taught(kind(), z, y, 50), x), theirs.fit_features(z, y).predict_features(x) * factor)
