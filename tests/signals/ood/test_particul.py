from __future__ import annotations

import warnings
from math import nan

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks.frame import Frame, View
from reliability_hooks.instances import Head, Instances
from reliability_hooks.signals.base import create
from reliability_hooks.signals.ood.balanced import BalancedSample, balanced
from reliability_hooks.signals.ood.base import Rows
from reliability_hooks.signals.ood.particul import ENOUGH, PARTS, Particul, confidence, weighted
from reliability_hooks.signals.ood.parts import (
    calibrate,
    deviation,
    locality,
    part_maps,
    strongest,
    train_parts,
    unicity,
)

D = 32
torch.set_num_threads(1)  # tiny maps: a second thread costs more than it gives, above all on a busy machine
COLUMN = "ood/particul/score"


def planted(n: int, kind: int = 0, seed: int = 0, patterns: int = PARTS) -> tuple[Tensor, Tensor]:
    """(n, D, 7, 7) noise with patterns, orthogonal to each other and to those of other kinds, each once somewhere.

    Also (n, patterns): where, of 49 places.
    """
    every = 6 * torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9)))[0]
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(n, D, 49, generator=g) / 2
    at = torch.rand(n, 49, generator=g).topk(patterns).indices
    for k in range(patterns):
        maps[torch.arange(n), :, at[:, k]] += every[PARTS * kind + k]
    return maps.view(n, D, 7, 7), at


def rows(maps: Tensor, classes: Tensor | int, logits: Tensor | None = None, head: Head | None = None) -> Rows:
    which = torch.full((len(maps),), classes) if isinstance(classes, int) else classes
    return Rows(which, logits, head, features=maps.flatten(1))


@pytest.fixture(scope="module")
def taught() -> Particul:
    """Class 3 shows the patterns of kind 0, class 7 those of kind 1; class 5 is rare and shows those of kind 2."""
    signal = Particul()
    for seed in range(8):
        for label, kind, n in ((3, 0, 10), (7, 1, 10), (5, 2, 3)):
            signal.learn(rows(planted(n, kind, 100 * seed + kind)[0], label))
    signal.finish()
    return signal


def frame(n: int = 6, labels: Tensor | None = None, logits: Tensor | None = None, maps: Tensor | None = None) -> Frame:
    g = torch.Generator().manual_seed(n)
    boxes = torch.rand(n, 2, generator=g).repeat(1, 2) * 60 + torch.tensor([0.0, 0, 60, 60])
    found = Instances(boxes, torch.ones(n), torch.full((n,), 3) if labels is None else labels, logits=logits,
                      head=None if logits is None else "sigmoid")
    level = torch.randn(D, 20, 20, generator=g) if maps is None else maps
    return Frame(found, View(torch.zeros(3, 160, 160)), maps={"early": level, "middle": level, "late": level})


def test_losses_are_those_of_the_formula() -> None:
    g = torch.Generator().manual_seed(0)
    maps, weight = torch.randn(5, D, 7, 7, generator=g), torch.randn(3, D, generator=g)
    weight[1] = weight[0]  # two on one place
    active = part_maps(maps, weight)
    f, w = maps.double().numpy(), weight.double().numpy()
    near, over = [], []
    for n in range(5):
        a = np.zeros((3, 7, 7))
        for p in range(3):
            raw = np.array([[w[p] @ f[n, :, y, x] for x in range(7)] for y in range(7)])
            a[p] = np.exp(raw) / np.exp(raw).sum()
            around = [a[p, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].sum() for y in range(7) for x in range(7)]
            near.append(max(around))
        assert active[n].numpy() == pytest.approx(a, rel=1e-4)
        over.append(max(a.sum(0).max() - 1, 0))
    assert max(over) > 0.1
    assert float(locality(active)) == pytest.approx(-np.mean(near), rel=1e-4)
    assert float(unicity(active)) == pytest.approx(np.mean(over), rel=1e-4)


def test_planted_parts_are_found() -> None:
    """Some detector peaks at each of the two patterns, on maps that it has not seen too."""
    weight = train_parts(planted(200, patterns=2)[0], PARTS)
    maps, at = planted(50, seed=1, patterns=2)
    peaks = part_maps(maps, weight).flatten(2).argmax(2)
    hits = (peaks[:, :, None] == at[:, None]).float().mean(0)  # (detector, pattern)
    assert hits.amax(0).min() > 0.9
    assert hits[:, 0].argmax() != hits[:, 1].argmax()
    assert torch.equal(weight, train_parts(planted(200, patterns=2)[0], PARTS))


def test_the_scale_of_a_channel_is_of_no_account() -> None:
    maps, _ = planted(60)
    scale = torch.logspace(-2, 3, D)
    scale[4] = 0
    first, other = train_parts(maps * (scale > 0)[:, None, None], 3), train_parts(maps * scale[:, None, None], 3)
    assert (other[:, 4] == 0).all()
    assert torch.allclose(other * scale, first, rtol=0.05, atol=0.05)
    assert torch.allclose(deviation(maps), maps.transpose(0, 1).flatten(1).std(1, correction=0), rtol=1e-4)


def test_calibration() -> None:
    """The maximum likelihood of the location makes the mean confidence 1/2 exactly; scale by torch's own density."""
    g = torch.Generator().manual_seed(0)
    maxima = torch.rand(300, 2, generator=g).logit() * torch.tensor([0.5, 4.0]) + torch.tensor([3.0, -20.0])
    location, scale = calibrate(maxima)
    z = (maxima - location) / scale
    assert z.sigmoid().mean(0).numpy() == pytest.approx(0.5, abs=1e-4)

    def likelihood(s: Tensor) -> Tensor:
        x = (maxima - location) / s
        return (-x - s.log() - 2 * (1 + (-x).exp()).log()).sum(0)

    assert (likelihood(scale) > likelihood(scale * 1.03)).all()
    assert (likelihood(scale) > likelihood(scale * 0.97)).all()


@pytest.mark.parametrize("n", [1, 2, 40])
def test_calibration_of_what_never_varies(n: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        location, scale = calibrate(torch.tensor([[2.0, 0.0]]).expand(n, -1))
    assert location.tolist() == [2, 0]
    assert (scale > 0).all()
    assert calibrate(torch.tensor([[1.0], [3.0]]))[0].item() == pytest.approx(2, abs=1e-3)


def test_confidence_and_its_weights() -> None:
    g = torch.Generator().manual_seed(0)
    maps, sets = torch.randn(5, D, 7, 7, generator=g), torch.randn(3, 2, D, generator=g)
    location, scale = torch.randn(3, 2, generator=g) + 10, torch.rand(3, 2, generator=g) + 3
    each = confidence(maps, sets, location, scale)
    for n in range(5):
        for s in range(3):
            top = [(sets[s, p] @ maps[n].flatten(1)).max() for p in range(2)]
            z = [float((t - location[s, p]) / scale[s, p]) for p, t in enumerate(top)]
            assert each[n, s].item() == pytest.approx(np.mean([1 / (1 + np.exp(-x)) for x in z]), rel=1e-4)
    classes, own, logits = torch.tensor([-1, 1, 3]), torch.tensor([0, 1, 2, 1, 1]), torch.randn(5, 4, generator=g)
    assert torch.equal(weighted(each, own, classes, None, None), each[torch.arange(5), own])
    assert torch.equal(weighted(each[:, :1], own * 0, classes[:1], logits, "sigmoid"), each[:, 0])
    for head in ("sigmoid", "softmax", "softmax+background"):
        p = logits.sigmoid() if head == "sigmoid" else logits.softmax(1)
        mixed = (p[:, 1] * each[:, 1] + p[:, 3] * each[:, 2]) / (p[:, 1] + p[:, 3])
        expected_all = torch.where(own > 0, mixed, each[:, 0])
        assert torch.allclose(weighted(each, own, classes, logits, head), expected_all, rtol=1e-4)  # type: ignore[arg-type]
    assert weighted(each, own, classes, torch.full((5, 4), -200.0), "sigmoid").isfinite().all()


def test_known_parts_are_trusted_and_foreign_ones_not(taught: Particul) -> None:
    assert taught.tensors["classes"].tolist() == [-1, 3, 7]  # class 5 has too few
    known, foreign = planted(60, 0, 999)[0], planted(60, 3, 999)[0]
    own, other = taught.score(rows(known, 3)), taught.score(rows(foreign, 3))
    assert float(own.mean()) == pytest.approx(0.5, abs=0.15)
    assert float((other[:, None] > own).float().mean()) > 0.95  # AUROC
    as_seven = taught.score(rows(known, 7))  # the patterns of another class are foreign to this one
    assert float((as_seven[:, None] > own).float().mean()) > 0.95
    sure = torch.full((60, 9), -9.0)
    sure[:, 3] = 9
    assert torch.allclose(taught.score(rows(known, 3, sure, "softmax")), own, atol=1e-4)


def test_rare_classes_have_the_common_set(taught: Particul) -> None:
    maps = planted(20, 2, 999)[0]
    common = confidence(maps, *(taught.tensors[k][:1] for k in ("detectors", "location", "scale")))[:, 0]
    for label in (5, 0, -1):
        assert torch.allclose(taught.score(rows(maps, label)), 1 - common)
    assert torch.allclose(taught.score(rows(maps, 5, torch.arange(180.0).view(20, 9), "softmax")), 1 - common)


def test_mean_confidence_of_what_was_learnt_is_a_half() -> None:
    signal, maps = Particul(), planted(ENOUGH, 0)[0].half().float()
    signal.learn(rows(maps, 2))
    signal.finish()
    assert signal.tensors["classes"].tolist() == [-1, 2]
    assert float(signal.score(rows(maps, 2)).mean()) == pytest.approx(0.5, abs=1e-3)
    assert strongest(maps, signal.tensors["detectors"][1]).shape == (ENOUGH, PARTS)


def test_part_maps_of_a_frame(taught: Particul) -> None:
    """The pattern of class 3 at one place of the box: a part map of the set of class 3 peaks in that cell."""
    level = torch.zeros(D, 28, 28)
    pattern = planted(1)[0]  # for its patterns alone
    at = planted(1)[1][0, 0]
    level[:, 16:20, 8:12] = pattern.flatten(2)[0, :, at][:, None, None]  # cell (4, 2) of 7 x 7
    given = frame(2, torch.tensor([3, 5]), maps=level)
    boxes = torch.tensor([[0.0, 0, 160, 160], [nan, 0, 10, 10]])
    given = given.with_instances(given.instances.replace(boxes=boxes))
    maps = taught.part_maps(given)
    assert maps.shape == (2, PARTS, 7, 7)
    assert maps[0].sum((1, 2)).numpy() == pytest.approx(1, abs=1e-5)
    assert 4 * 7 + 2 in maps[0].flatten(1).argmax(1).tolist()
    assert maps[1].isnan().all()
    assert taught.part_maps(frame(0)).shape == (0, PARTS, 7, 7)
    with pytest.raises(ValueError, match="not learnt"):
        Particul().part_maps(given)
    with pytest.raises(ValueError, match="no feature maps"):
        taught.part_maps(Frame(given.instances))


def test_frames_and_state(taught: Particul) -> None:
    again = Particul()
    again.load_state(*taught.state())
    for given in (frame(6), frame(6, logits=torch.arange(54.0).view(6, 9) / 9), frame(0)):
        assert torch.equal(again(given)[COLUMN], taught(given)[COLUMN])
    assert all(t.dtype in (torch.float32, torch.int64) for t in taught.tensors.values())
    assert taught(frame(0))[COLUMN].shape == (0,)
    broken = frame(6, logits=torch.full((6, 9), nan))
    assert taught(broken)[COLUMN].isnan().all()


def test_learning_again_replaces_and_needs_objects() -> None:
    signal = Particul()
    with pytest.raises(ValueError, match="more images"):
        signal.finish()
    for _ in range(2):  # in either mode, as hosts and tests run
        with torch.inference_mode():
            signal.update(frame(1))
        signal.update(frame(2))
        assert len(signal.sample) == 3
        signal.finish()
        learnt = signal.tensors
        assert len(signal.sample) == 0
    assert learnt["classes"].tolist() == [-1]
    signal.update(frame(1))
    signal.finish()
    assert not torch.equal(signal.tensors["detectors"], learnt["detectors"])
    assert signal(frame(4))[COLUMN].isfinite().all()


def test_layers() -> None:
    first, late, early = create(["ood/particul", "ood/particul@late", "ood/particul@early"])
    assert isinstance(first, Particul)
    assert (first.layer, first.name) == ("late", "ood/particul")
    assert late.name == "ood/particul@late"
    assert early.requires == late.requires == first.requires == ("maps", "image")
    with pytest.raises(ValueError, match="@early, @middle or @late"):
        create(["ood/particul@box"])


def test_a_balanced_sample() -> None:
    g = torch.Generator().manual_seed(0)
    classes = torch.tensor([0] * 500 + [1] * 40 + [2] * 7)[torch.randperm(547, generator=g)]
    data = torch.arange(547.0)[:, None].repeat(1, 3)
    at_once, by_parts = BalancedSample(60, 1 << 20), BalancedSample(60, 1 << 20)
    at_once.update(data, classes)
    for i in range(0, 547, 13):
        by_parts.update(data[i : i + 13], classes[i : i + 13])
    for sample in (at_once, by_parts):
        counts = sample.classes.bincount().tolist()
        assert counts[2] == 7
        assert sorted(counts[:2]) == [26, 27]
        assert torch.equal(classes[sample.rows[:, 0].long()], sample.classes)
    assert sorted(at_once.rows[:, 0].tolist()) == sorted(by_parts.rows[:, 0].tolist())
    small = BalancedSample(60, 60)
    small.update(torch.full((20, 3), 1e9), classes[:20])
    assert len(small) == 10  # 60 bytes of 2 x 3 each
    assert small.rows.isfinite().all()
    assert balanced(classes, torch.rand(547, generator=g), 0).sum() == 0
    with pytest.raises(ValueError, match=r"\(n, 3\)"):
        small.update(torch.zeros(1, 4), classes[:1])
