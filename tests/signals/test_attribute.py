"""ComCa: its formulas by loops, examples made from crops, and what it learns on a toy encoder."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reliability_hooks.clip.embed import Embed
from reliability_hooks.evaluation.corruptions import corrupt
from reliability_hooks.frame import Frame, View
from reliability_hooks.instances import Instances
from reliability_hooks.reliability.state import pack, unpack
from reliability_hooks.signals.attribute import (
    AN_IMAGE,
    DEFAULT,
    DEGRADATIONS,
    SHOTS,
    Attribute,
    cached,
    reading,
    soft_labels,
)

from .clip_fake import FakeEncoder, seen, unit


def scene(seed: int, condition: str = "clean", encoder: FakeEncoder | None = None, score: float = 1.0) -> Frame:
    """Six objects of 64 px on a textured picture."""
    g = torch.Generator().manual_seed(seed)
    octaves = [interpolate(torch.rand(1, 3, s, s, generator=g), size=(128, 192), mode="bicubic") for s in (4, 12, 32)]
    picture = (torch.cat(octaves).mean(0).sub(0.5).mul(1.6).add(0.5).clamp(0, 1) * 255).to(torch.uint8)
    pixels = corrupt(picture, condition, 0.6, seed).float() / 255
    corners = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0)).flip(1) * 64
    found = Instances(torch.cat([corners, corners + 64], 1), torch.full((6,), score),
                      torch.zeros(6, dtype=torch.int64), image_size=(128, 192))
    view = View(pixels)
    return Frame(found, view, names={0: "dog"}, embed=Embed(encoder or FakeEncoder(), view, found))  # type: ignore[arg-type]


def taught(encoder: FakeEncoder, attributes: dict[str, list[str]] | None = None, **options) -> Attribute:
    signal = Attribute(attributes, **options)
    for seed in range(5):
        signal.update(scene(seed, encoder=encoder))
    signal.finish()
    return signal


class Blind(FakeEncoder):
    """Its words say nothing: all texts are alike."""

    def texts(self, prompts: list[str]) -> Tensor:
        return torch.nn.functional.normalize(torch.ones(len(prompts), self.dim), dim=1)


@pytest.fixture(scope="module")
def blind() -> tuple[Blind, Attribute]:
    encoder = Blind()
    return encoder, taught(encoder)


def test_columns() -> None:
    assert tuple(Attribute().columns) == tuple(f"attribute/{name}" for name in DEFAULT)
    signal = Attribute({"rusty": ["a rusty {label}"], "old_car": ["an old car"]})
    assert signal.columns == {"attribute/rusty": ("not rusty", "rusty"),
                              "attribute/old_car": ("not old car", "old car")}


def test_soft_labels_against_a_loop() -> None:
    keys, texts, whose = unit(6), unit(3, seed=1), torch.tensor([0, 0, 1, 1, 2, 2])
    cosines = (keys @ texts.T).numpy()
    for s, row in enumerate(soft_labels(keys, texts, whose)):
        mixed = [0.6 * cosines[s][a] + 0.4 * (whose[s] == a) for a in range(3)]
        z = (np.array(mixed) - np.mean(mixed)) / np.std(mixed, ddof=1)
        assert row.numpy() == pytest.approx(cosines.mean() + z * cosines.std(ddof=1), abs=1e-5)


def test_cache_against_a_loop() -> None:
    x, keys, values = unit(4), unit(5, seed=1), torch.rand(5, 3)
    given = cached(x, keys, values)
    for i in range(4):
        for a in range(3):
            terms = [math.exp(-(1 - float(x[i] @ keys[s]))) * float(values[s, a]) for s in range(5)]
            assert given[i, a] == pytest.approx(1.17 * sum(terms), abs=1e-4)


def test_whole_signal_against_the_formula() -> None:
    encoder = FakeEncoder()
    signal = taught(encoder, {"blur": ["a blurry {label}"], "rusty": ["a rusty {label}"]})
    assert signal.keys is not None
    frame = scene(50, encoder=encoder)
    x = frame.embed()  # type: ignore[misc]
    clean = encoder.average([["a photo of a dog", "a clear photo of a dog"]])[0]
    blur, rusty = encoder.texts(["a blurry dog", "a rusty dog"])
    cache = cached(x, signal.keys, signal.values)
    given = signal(frame)
    odds = x @ (blur - clean) + cache[:, 1] - cache[:, 0]
    torch.testing.assert_close(
        given["attribute/blur"], (signal.scale[0] * (odds - signal.center[0])).sigmoid(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(given["attribute/rusty"], (20 * (x @ (rusty - clean))).sigmoid())  # words alone


def test_reading() -> None:
    """Means of clean and of degraded examples are told apart; without a gap the encoder's own scale is left."""
    low, high = torch.tensor([5.0, 0.1, 0.3]), torch.tensor([9.0, 0.15, 0.2])
    center, scale = reading(low, high, 20.0)
    assert scale.tolist() == pytest.approx([1.0, 20.0, 20.0])
    torch.testing.assert_close((scale * (low - center)).sigmoid()[0], torch.tensor(-2.0).sigmoid())
    torch.testing.assert_close((scale * (high - center)).sigmoid()[0], torch.tensor(2.0).sigmoid())
    assert center[1] == pytest.approx(0.125)


def test_reading_of_the_examples_against_a_loop(blind: tuple[Blind, Attribute]) -> None:
    """The mean of the clean examples, none of which is judged by its own versions; the words say nothing here."""
    _, signal = blind
    keys, values = signal.keys, signal.values
    assert keys is not None
    means = []
    for group in (0, 1):  # clean, blur
        odds = []
        for i in range(SHOTS):
            others = [s for s in range(len(keys)) if s % SHOTS != i]
            cache = cached(keys[group * SHOTS + i][None], keys[others], values[others])[0]
            odds.append(float(cache[1] - cache[0]))
        means.append(np.mean(odds))
    assert float(signal.center[0]) == pytest.approx(np.mean(means), abs=1e-4)


def test_examples_are_the_same_objects_under_each_degradation(blind: tuple[Blind, Attribute]) -> None:
    encoder, signal = blind
    assert signal.keys is not None
    assert signal.keys.shape == (SHOTS * (1 + len(DEFAULT)), encoder.dim)
    assert signal.values.shape == (len(signal.keys), 1 + len(DEFAULT))
    clean, *degraded = signal.keys.split(SHOTS)
    for name in ("blur", "low_resolution", "compression"):  # which leave the colours
        nearest = (degraded[DEFAULT.index(name)] @ clean.T).argmax(1)
        assert (nearest == torch.arange(SHOTS)).float().mean() > 0.5


def test_a_seed_makes_it_the_same() -> None:
    encoder, fog = FakeEncoder(), {"fog": ["a foggy {label}"]}
    first, again, other = (taught(encoder, fog, seed=seed).keys for seed in (3, 3, 4))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["noise", "low_light", "fog", "compression"])
def test_learns_what_words_do_not_say(name: str, blind: tuple[Blind, Attribute]) -> None:
    """Where the texts say nothing, examples alone tell degraded from clean objects of other pictures."""
    encoder, signal = blind
    clean, degraded = (
        torch.cat([signal(scene(seed, condition, encoder))[f"attribute/{name}"] for seed in range(20, 23)])
        for condition in ("clean", DEGRADATIONS[name])
    )
    assert (degraded[:, None] > clean).float().mean() > 0.85


def test_takes_only_known_and_large_objects() -> None:
    encoder = FakeEncoder()
    signal, given = Attribute(), scene(0, encoder=encoder)
    signal.update(scene(0, encoder=encoder, score=0.3))
    boxes = given.instances.boxes.clone()
    boxes[:, 2:] = boxes[:, :2] + 40
    signal.update(with_instances(given, given.instances.replace(boxes=boxes)))
    signal.update(with_instances(given, Instances.empty((128, 192))))
    assert len(signal._shots) == 0
    wrong = given.instances.with_columns({"truth": torch.tensor([1, 1, 1, 1, 0, 0])})
    signal.update(with_instances(given, wrong))
    torch.testing.assert_close(signal._shots[:, 0].sort(0).values, given.embed()[4:].sort(0).values)  # type: ignore[misc]
    signal.update(given)
    assert len(signal._shots) == 2 + AN_IMAGE


def with_instances(frame: Frame, instances: Instances) -> Frame:
    embed = replace(frame.embed, instances=instances, _made={})  # type: ignore[type-var]
    return replace(frame, instances=instances, embed=embed)


def test_examples_are_a_uniform_sample_and_cost_nothing_where_they_do_not_stay() -> None:
    encoder, signal, calls = FakeEncoder(), Attribute({"fog": ["a foggy {label}"]}), []
    images = encoder.images
    encoder.images = lambda crops: (calls.append(len(crops)), images(crops))[1]  # type: ignore[method-assign]
    frame = scene(0, encoder=encoder)
    for _ in range(40):
        signal.update(frame)
    assert len(signal._shots) == SHOTS
    assert 2 * SHOTS < sum(calls) < 2 * 40 * AN_IMAGE / 2  # about 2 x 16 (1 + ln 10)


def test_no_example_at_all(caplog: pytest.LogCaptureFixture) -> None:
    encoder, signal = FakeEncoder(), Attribute()
    signal.update(scene(0, encoder=encoder, score=0.1))
    with caplog.at_level(logging.WARNING):
        signal.finish()
    assert "by words alone" in caplog.text
    assert all(column.isfinite().all() for column in signal(scene(1, encoder=encoder)).values())


def test_state_makes_it_the_same() -> None:
    encoder = FakeEncoder()
    signal = taught(encoder, {"noise": ["a noisy {label}"], "red": ["a red {label}", "a {label}, all red"]})
    again = Attribute()
    again.load_state(*unpack(pack({"attribute": signal.state()}), "attribute"))
    frame = scene(30, encoder=encoder)
    assert again.columns == signal.columns
    torch.testing.assert_close(again(frame), signal(frame), rtol=0, atol=0)


def test_small_objects_and_none(blind: tuple[Blind, Attribute]) -> None:
    signal = blind[1]
    given = signal(seen(unit(3), small=[False, True, False]))
    assert all(column.isnan().tolist() == [False, True, False] for column in given.values())
    none = signal(seen(unit(0)))
    assert all(column.shape == (0,) and column.dtype == torch.float32 for column in none.values())


def test_not_learnt_and_bad_prompts() -> None:
    with pytest.raises(ValueError, match="has not learnt yet"):
        Attribute()(scene(0))
    with pytest.raises(ValueError, match="has seen no frame"):
        Attribute().finish()
    with pytest.raises(ValueError, match=r"attribute 'red': .*unknown placeholder \{name\}"):
        Attribute({"red": ["a red {name}"]})
    with pytest.raises(ValueError, match="attribute 'red': must be a list of texts"):
        Attribute({"red": []})
