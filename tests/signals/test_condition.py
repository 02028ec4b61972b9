"""Named conditions: the formula by a loop, prompts of one's own, and what a typo says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from reliability_hooks.clip.embed import Embed
from reliability_hooks.frame import Frame, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.base import create
from reliability_hooks.signals.condition import Condition, words_of
from reliability_hooks.signals.prompts import conditions

from .clip_fake import FakeEncoder, seen, unit

NAMES = {0: "dog", 1: "traffic_light", 7: "zorblax"}
CONDITIONS = ("blur", "motion_blur", "noise", "low_light", "over_exposure", "fog", "low_resolution", "compression",
              "occlusion", "truncation", "clutter")


def expected(encoder: FakeEncoder, x: torch.Tensor, label: str, name: str) -> float:
    sides = []
    for prompts in (conditions()[name].high, conditions()[name].low):
        mean = sum(encoder.texts([p.replace("{label}", label)])[0] for p in prompts) / len(prompts)
        sides.append(float(x @ (mean / mean.norm())))
    return float(torch.sigmoid(torch.tensor(encoder.logit_scale * (sides[0] - sides[1]))))


def test_columns_are_the_conditions() -> None:
    assert tuple(Condition().columns) == (*(f"condition/{c}" for c in CONDITIONS), "condition/too_small")


def test_words_are_those_of_the_conditions_asked() -> None:
    words = words_of([*create(["geometry"]), Condition()])
    assert tuple(words) == tuple(f"condition/{c}" for c in CONDITIONS)  # too small to judge is not one
    assert words["condition/blur"] == Condition().columns["condition/blur"]
    assert words_of(create(["geometry"])) == {}


def test_against_the_formula_one_by_one() -> None:
    x, labels = unit(5), [0, 1, 0, 7, 3]
    encoder = FakeEncoder(unknown=["zorblax"])
    given = Condition()(seen(x, labels, NAMES, encoder=encoder))
    for i, label in enumerate(["dog", "traffic light", "dog", "object", "object"]):  # never learnt; without a name
        for name in CONDITIONS:
            assert given[f"condition/{name}"][i] == pytest.approx(expected(encoder, x[i], label, name), abs=1e-5)


@pytest.mark.parametrize("name", CONDITIONS)
def test_high_means_more_of_it(name: str) -> None:
    encoder = FakeEncoder()
    high, low = (encoder.average([[p.format(label="dog") for p in side]])[0]
                 for side in (conditions()[name].high, conditions()[name].low))
    column = Condition()(seen(torch.stack([high, low]), [0, 0], NAMES))[f"condition/{name}"]
    assert column[0] > 0.7
    assert column[1] < 0.3


def test_too_small_is_nan_and_flagged() -> None:
    given = Condition()(seen(unit(3), small=[False, True, False]))
    assert given["condition/too_small"].tolist() == [0, 1, 0]
    assert given["condition/blur"].isnan().tolist() == [False, True, False]


def test_texts_are_embedded_once() -> None:
    signal, encoder = Condition(), FakeEncoder()
    signal(seen(unit(4), [0, 1, 0, 1], NAMES, encoder=encoder))
    encoder.average = encoder.texts = None  # type: ignore[method-assign, assignment]
    signal(seen(unit(6), [1, 1, 0, 0, 1, 0], NAMES, encoder=encoder))


def test_another_encoder_gets_texts_of_its_own() -> None:
    signal, x = Condition(), unit(2)
    first = signal(seen(x))["condition/blur"]
    other = FakeEncoder()
    other._texts = {p.format(label="object"): normalize(unit(1, seed=i), dim=1)[0]
                    for i, p in enumerate(conditions()["blur"].high)}
    assert not torch.allclose(first, signal(seen(x, encoder=other))["condition/blur"])
    torch.testing.assert_close(first, signal(seen(x))["condition/blur"])


def test_prompts_that_the_encoder_cannot_read(caplog: pytest.LogCaptureFixture) -> None:
    """One paraphrase less changes the value, none left makes it NaN and is said once."""
    x = unit(2)
    own = {"rain": {"high": ["a rainy photo of a {label}", "a photo of a {label} in rain"], "low": ["a dry {label}"]}}
    fewer = Condition(own)(seen(x, encoder=FakeEncoder(unknown=["rainy"])))["condition/rain"]
    one = Condition({"rain": {**own["rain"], "high": own["rain"]["high"][1:]}})(seen(x))["condition/rain"]
    torch.testing.assert_close(fewer, one)
    with caplog.at_level(logging.WARNING):
        signal, encoder = Condition(own), FakeEncoder(unknown=["dry"])
        given = [signal(seen(x, encoder=encoder)) for _ in range(2)]
    assert given[0]["condition/rain"].isnan().all()
    assert given[0]["condition/blur"].isfinite().all()
    assert [r.getMessage() for r in caplog.records] == ["the encoder fake knows the words of no prompt of: rain"]


def test_two_lines_add_a_condition_and_null_removes_one(tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    rain = "rain: {high: ['a {label} in the rain'],\n       low: ['a dry {label}']}\n"
    mine.write_text(rain + "fog: null\nblur: {words: [a, b]}\n")
    signal = Condition(mine)
    assert set(signal.columns) == {
        *(f"condition/{c}" for c in CONDITIONS if c != "fog"), "condition/rain", "condition/too_small"
    }
    assert signal.columns["condition/rain"] == ("no rain", "rain")
    assert signal.columns["condition/blur"] == ("a", "b")
    assert signal.antonyms["blur"].high == conditions()["blur"].high
    mine.unlink()
    again = Condition()
    again.load_state(*signal.state())
    assert again.columns == signal.columns
    frame = seen(unit(3))
    torch.testing.assert_close(again(frame), signal(frame))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("blur: {hihg: [a]}", "condition 'blur': unknown key 'hihg'; did you mean 'high'?"),
        ("rain: {high: [a]}", "condition 'rain': 'low' is missing"),
        ("rain: {high: a, low: [b]}", "condition 'rain': high: must be a list of texts, not 'a'"),
        ("rain: {high: [], low: [b]}", "must be a list of texts, not []"),
        ("rain: {high: [1], low: [b]}", "must be a list of texts, not [1]"),
        ("rain: {high: ['{lable}'], low: [b]}", "unknown placeholder {lable}; did you mean {label}?"),
        ("rain: {high: ['a {label'], low: [b]}", "write the class name as {label}"),
        ("rain: {high: ['a {label:>3}'], low: [b]}", "unknown placeholder"),
        ("rain: {high: [a], low: [b], words: [c, c]}", "words must be two different phrases"),
        ("blurr: null", "there is none to remove; did you mean 'blur'?"),
        ("rain: [a, b]", "must hold `high: [...]` and `low: [...]`"),
        ("worst: {high: [a], low: [b]}", "none of ['too_small', 'worst']"),
        ("on: {high: [a], low: [b]}", "condition True"),
        ("- a", "must hold `key: value` lines"),
        ("a: [", "no valid YAML"),
    ],
)
def test_typos(tmp_path: Path, text: str, says: str) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text(text)
    with pytest.raises(ValueError) as caught:
        Condition(mine)
    assert says in str(caught.value)
    assert str(mine) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.yaml"):
        Condition(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", ["condition", "agreement", "typographic", "ood/vision_language"])
def test_what_is_kept_from_inference_mode_serves_gradients(name: str) -> None:
    (signal,), encoder = create([name]), FakeEncoder()
    with torch.inference_mode():
        first = signal(seen(unit(2), [0, 1], NAMES, encoder=encoder))
    x = unit(2).requires_grad_()
    given = signal(seen(x, [0, 1], NAMES, encoder=encoder))
    next(iter(given.values())).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    torch.testing.assert_close({k: v.detach() for k, v in given.items()}, first, equal_nan=True)


@pytest.mark.parametrize("boxes", [[], [[0, 0, 1, 1]], [[900, 900, 990, 990]], [[float("nan")] * 4]])
def test_boxes_without_a_picture(boxes: list[list[float]]) -> None:
    found = Instances(torch.tensor(boxes).reshape(-1, 4), torch.ones(len(boxes)),
                      torch.zeros(len(boxes), dtype=torch.int64), image_size=(60, 80))
    view = View(torch.rand(3, 60, 80))
    given = Condition()(Frame(found, view, embed=Embed(FakeEncoder(), view, found)))  # type: ignore[arg-type]
    assert all(column.shape == (len(boxes),) and column.dtype == torch.float32 for column in given.values())
    assert given["condition/too_small"].eq(1).all()
    assert given["condition/blur"].isnan().all()
