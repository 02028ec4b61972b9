"""What every registered signal keeps: a new one is tested here by being registered."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from reliability_hooks.clip.embed import Embed
from reliability_hooks.frame import MAPS, Candidates, Classifier, Frame, Glance, Pool, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.base import FAMILIES, REQUIREMENTS, Signal, create

from .clip_fake import FakeEncoder
from .prompted_fake import Prompting

NAMES = dict(enumerate(["cat", "dog", "car", "traffic_light", "cup"]))
ENCODER = FakeEncoder()


def embedded(given: Frame) -> Frame:
    """With the class names, and with embeddings of its own objects."""
    assert given.view is not None
    return replace(given, names=NAMES, embed=Embed(ENCODER, given.view, given.instances))  # type: ignore[arg-type]


HEADS = ("sigmoid", "softmax", "softmax+background")


def boxes(n: int, generator: torch.Generator) -> torch.Tensor:
    center = torch.rand(n, 2, generator=generator) * torch.tensor([160.0, 120.0])
    size = torch.rand(n, 2, generator=generator) * 90 + 30
    return torch.cat([center - size / 2, center + size / 2], 1)


def frame(n: int, head: str = "sigmoid", candidates: int = 200, seed: int = 0) -> Frame:
    """A frame with all evidence: 160 x 120 px, letterboxed into 160 x 160."""
    g = torch.Generator().manual_seed(seed)
    kept = boxes(n, g)
    known = classifier(n, 5 if head == "softmax+background" else 6, g)
    logits = (known.weight[known.which] @ known.inputs[:, :, None]).squeeze(2) + known.bias[known.which]
    if head == "softmax+background":
        logits = torch.cat([logits, torch.randn(n, 1, generator=g)], 1)
    around = torch.randint(n, (candidates,), generator=g) if n else torch.zeros(0, dtype=torch.int64)
    instances = Instances(
        kept,
        torch.rand(n, generator=g),
        torch.randint(5, (n,), generator=g),
        masks=torch.rand(n, 30, 40, generator=g) > 0.5,
        logits=logits,
        head=head,  # type: ignore[arg-type]
        background=5 if head == "softmax+background" else None,
        features=torch.randn(n, 8, generator=g),
        track_ids=torch.arange(n),
        image_size=(120, 160),
    )
    raw = Candidates(
        kept[around] + torch.randn(len(around), 4, generator=g) * 3,
        torch.rand(len(around), generator=g),
        torch.randint(5, (len(around),), generator=g),
    )
    around_logits = torch.randn(len(around), 6, generator=g)
    view = View(torch.rand(3, 160, 160, generator=g), offset=(0.0, 20.0))
    maps = {name: torch.randn(8, 160 // s, 160 // s, generator=g) for name, s in zip(MAPS, (4, 8, 16), strict=True)}
    look = Look(view.pixels, logits, maps, torch.arange(n))
    return asked(embedded(Frame(instances, view, raw, maps, lambda pixels, dropout=False: [raw] * len(pixels), True,
                                look, known, lambda: Pool(raw.boxes, around_logits))))


def asked(given: Frame) -> Frame:
    """As a promptable segmenter gives it, its objects prompted with their boxes."""
    prompting = Prompting(given.instances.boxes)
    return replace(given, prompted=prompting, mask_logits=prompting.logits)


@dataclass(frozen=True)
class Look:
    """Logits and maps move with the pixels' means over a grid, from what they are in the frame's own pixels.

    Each object reads the colours of a cell of its own, and those of the next one.
    """

    pixels: Tensor
    logits: Tensor
    maps: dict[str, Tensor]
    rows: Tensor

    def __call__(self, pixels: Tensor) -> Glance:
        change = pixels.float() - self.pixels.float()
        cells = adaptive_avg_pool2d(change, 4).flatten(2)  # (B, 3, 16)
        own = (cells[:, :, self.rows % 16] + cells[:, :, (self.rows + 1) % 16]).sum(1)  # (B, n)
        slope = torch.linspace(-5, 5, self.logits.shape[1])
        moved = {name: level.float() + 3 * adaptive_avg_pool2d(change, level.shape[1:]).mean(1, keepdim=True)
                 for name, level in self.maps.items()}
        return Glance(self.logits[self.rows] + own.sin()[..., None] * slope, moved)


def classifier(n: int, classes: int, generator: torch.Generator) -> Classifier:
    """Of two levels, whose weights do not depend on the image."""
    own = torch.Generator().manual_seed(99)
    return Classifier(
        torch.randn(n, 12, generator=generator).relu(),
        torch.randn(2, classes, 12, generator=own),
        torch.randn(2, classes, generator=own),
        torch.randint(2, (n,), generator=generator),
    )


def chosen(given: Frame, rows: Tensor) -> Frame:
    """Some of the instances, with what the frame knows of each."""
    known = given.classifier
    assert known is not None
    known = replace(known, inputs=known.inputs[rows], which=known.which[rows])
    assert isinstance(given.look, Look)
    look = replace(given.look, rows=given.look.rows[rows])
    return asked(embedded(replace(given, instances=given.instances[rows], classifier=known, look=look)))


def cast(given: Classifier, dtype: torch.dtype) -> Classifier:
    return Classifier(given.inputs.to(dtype), given.weight.to(dtype), given.bias.to(dtype), given.which)


def fitted(name: str, head: str = "sigmoid") -> Signal:
    (signal,) = create([name])
    if signal.learns:
        for seed in range(3):
            signal.update(frame(12, head, seed=seed))
        signal.finish()
    return signal


def tensors(value: object) -> dict[str, torch.Tensor]:
    """Every tensor inside a frame by its path."""
    found: dict[str, torch.Tensor] = {}
    for f in fields(value):  # type: ignore[arg-type]
        item = getattr(value, f.name)
        if isinstance(item, torch.Tensor):
            found[f.name] = item
        elif hasattr(item, "__dataclass_fields__"):
            found |= {f"{f.name}.{k}": v for k, v in tensors(item).items()}
    return found


@pytest.mark.parametrize("name", FAMILIES)
class TestEverySignal:
    def test_declares_itself(self, name: str) -> None:
        (signal,) = create([name])
        assert signal.name == name
        assert set(signal.requires) <= set(REQUIREMENTS)
        assert signal.columns
        assert all(column.startswith(f"{name}/") for column in signal.columns)
        for low, high in signal.columns.values():
            assert low != high
            assert 0 < len(low) < 60
            assert 0 < len(high) < 60

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("n", [0, 1, 7])
    def test_gives_the_columns_that_it_declares(self, name: str, head: str, n: int) -> None:
        signal = fitted(name, head)
        given = signal(frame(n, head))
        assert list(given) == list(signal.columns)
        for column in given.values():
            assert column.dtype == torch.float32
            assert column.shape == (n,)
        frame(n, head).instances.with_columns(given)

    def test_defined_on_ordinary_data(self, name: str) -> None:
        """No infinity anywhere, and each column is a number for most of the instances."""
        for key, column in fitted(name)(frame(20)).items():
            assert not column.isinf().any(), key
            assert column.isfinite().float().mean() > 0.5, key

    def test_no_candidates_at_all(self, name: str) -> None:
        given = fitted(name)(frame(4, candidates=0))
        assert all(len(column) == 4 for column in given.values())

    def test_changes_nothing(self, name: str) -> None:
        signal, given = fitted(name), frame(7)
        before = copy.deepcopy(tensors(given))
        signal(given)
        after = tensors(given)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)

    def test_deterministic_and_of_fresh_memory(self, name: str) -> None:
        signal, given = fitted(name), frame(7)
        first = signal(given)
        kept = {key: column.clone() for key, column in first.items()}
        second = signal(given)
        torch.testing.assert_close(second, kept, rtol=0, atol=0, equal_nan=True)
        for column in second.values():
            column.zero_()
        torch.testing.assert_close(first, kept, rtol=0, atol=0, equal_nan=True)

    def test_half_precision(self, name: str) -> None:
        signal, full = fitted(name), frame(7)
        half = asked(embedded(Frame(
            full.instances.to(torch.float16),
            View(full.view.pixels.half(), full.view.scale, full.view.offset),  # type: ignore[union-attr]
            Candidates(full.candidates.boxes.half(), full.candidates.scores.half(), full.candidates.labels),  # type: ignore[union-attr]
            {key: level.half() for key, level in full.maps.items()},  # type: ignore[union-attr]
            full.rerun,
            full.dropout,
            full.look,
            cast(full.classifier, torch.float16),  # type: ignore[arg-type]
            full.pool,
        )))
        # the reference reads the same rounded numbers, as float32
        again = asked(embedded(Frame(
            half.instances.to(torch.float32),
            View(half.view.pixels.float(), full.view.scale, full.view.offset),  # type: ignore[union-attr]
            Candidates(half.candidates.boxes.float(), half.candidates.scores.float(), half.candidates.labels),  # type: ignore[union-attr]
            {key: level.float() for key, level in half.maps.items()},  # type: ignore[union-attr]
            full.rerun,
            full.dropout,
            full.look,
            cast(half.classifier, torch.float32),  # type: ignore[arg-type]
            full.pool,
        )))
        given = signal(half)
        assert all(column.dtype == torch.float32 for column in given.values())
        torch.testing.assert_close(given, signal(again), rtol=1e-4, atol=1e-5, equal_nan=True)

    def test_order_of_instances_does_not_matter(self, name: str) -> None:
        signal, given = fitted(name), frame(7)
        order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
        turned = signal(chosen(given, order))
        straight = {key: column[order] for key, column in signal(given).items()}
        torch.testing.assert_close(turned, straight, rtol=1e-4, atol=1e-5, equal_nan=True)

    def test_a_broken_box_or_score_harms_no_other(self, name: str) -> None:
        signal, given = fitted(name), frame(7)
        broken = given.instances.boxes.clone()
        broken[2] = torch.tensor([float("nan"), 0, float("inf"), 10])
        logits = given.instances.logits.clone()  # type: ignore[union-attr]
        logits[2] = float("nan")
        spoilt = embedded(given.with_instances(given.instances.replace(boxes=broken, logits=logits)))
        others = torch.tensor([0, 1, 3, 4, 5, 6])
        without = signal(chosen(given, others))
        for key, column in signal(spoilt).items():
            assert not column[others].isinf().any(), key
            if key.rpartition("/")[2] not in ("count", "rank"):  # these count the instances
                torch.testing.assert_close(column[others], without[key], rtol=1e-4, atol=1e-5, equal_nan=True, msg=key)

    def test_missing_evidence_is_named(self, name: str) -> None:
        (signal,) = create([name])
        bare = Frame(Instances(torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)))
        assert signal.missing(bare) == list(signal.requires)
