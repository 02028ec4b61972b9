"""Zero-shot agreement: against a loop over the classes, synonyms, unknown names, label sets of any length."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch.nn.functional import normalize

from reliability_hooks.signals.agreement import TEMPLATES, Agreement, Vocabulary, at_label

from .clip_fake import FakeEncoder, seen, unit

NAMES = {3: "tv", 5: "dog", 6: "traffic_light", 9: "cat"}
SAID = {3: ["tv", "television", "screen"], 5: ["dog"], 6: ["traffic light"], 9: ["cat", "kitten"]}
SYNONYMS = {"tv": ["television", "screen", "Dog"], "cat": ["kitten"], "dog": None, "traffic_light": None}


def naive(encoder: FakeEncoder, x: torch.Tensor, label: int, said: dict[int, list[str]]) -> list[float]:
    best = {}
    for i, words in said.items():
        texts = [normalize(encoder.texts([t.replace("{label}", w) for t in TEMPLATES]).mean(0), dim=0) for w in words]
        best[i] = encoder.logit_scale * max(float(x @ t) for t in texts)
    total = sum(math.exp(v) for v in best.values())
    p = {i: math.exp(v) / total for i, v in best.items()}
    others = [v for i, v in best.items() if i != label]
    return [p[label], sum(v > best[label] for v in others) / len(others), best[label] - max(others),
            -sum(v * math.log(v) for v in p.values()) / math.log(len(p))]


def given(frame, **options) -> torch.Tensor:
    return torch.stack(list(Agreement(SYNONYMS, **options)(frame).values()), 1)


def test_against_a_loop() -> None:
    """A synonym that is itself one of the classes ("dog" of the tv) counts for that class alone."""
    encoder, x, labels = FakeEncoder(), unit(40), [3, 5, 6, 9] * 10
    found = given(seen(x, labels, NAMES, encoder=encoder))
    expected = torch.tensor([naive(encoder, x[i], label, SAID) for i, label in enumerate(labels)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert 0 < found[:, 1].mean() < 1


def test_a_synonym_is_as_good_as_the_name() -> None:
    encoder = FakeEncoder()
    x = encoder.average([[t.format(label="television") for t in TEMPLATES]])
    frame = seen(x, [3], NAMES, encoder=encoder)
    p, rank, margin, entropy = given(frame)[0]
    assert p > 0.9
    assert rank == 0
    assert margin > 1
    assert entropy < 0.5
    assert Agreement({"tv": None})(frame)["agreement/p"][0] < p


def test_names_that_the_encoder_does_not_know(caplog: pytest.LogCaptureFixture) -> None:
    encoder, x = FakeEncoder(unknown=["dog", "cat"]), unit(4)
    signal, frame = Agreement(SYNONYMS), seen(x, [3, 5, 6, 9], NAMES, encoder=encoder)
    with caplog.at_level(logging.WARNING):
        found = torch.stack(list(signal(frame).values()), 1)
        signal(frame)
    assert [r.getMessage() for r in caplog.records] == ["the encoder fake does not know the classes: dog"]
    said = {3: SAID[3], 6: SAID[6], 9: ["kitten"]}  # its synonym is known
    for i, label in [(0, 3), (2, 6), (3, 9)]:
        torch.testing.assert_close(found[i], torch.tensor(naive(encoder, x[i], label, said)), rtol=1e-4, atol=1e-5)
    assert found[1].isnan().all()


def test_knows_no_class_at_all() -> None:
    encoder = FakeEncoder(unknown=["dog"])
    assert given(seen(unit(2), [0, 1], {0: "dog", 1: "dog"}, encoder=encoder)).isnan().all()


def test_one_class() -> None:
    found = given(seen(unit(2), [0, 0], {0: "person"}))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, float("nan"), 0.0]] * 2), equal_nan=True)


def test_labels_without_a_class_and_small_objects() -> None:
    """Places of the label list that stand for no class are no class."""
    names = {**NAMES, 0: "__background__", 12: "N/A"}
    frame = seen(unit(4), [0, 5, 77, 5], names, small=[False, False, False, True])
    assert given(frame).isnan().all(1).tolist() == [True, False, True, True]
    alike = seen(unit(4), [0, 5, 77, 5], NAMES)
    torch.testing.assert_close(given(frame)[1], given(alike)[1])


def test_1200_names() -> None:
    names = {i: f"thing{i}" for i in range(1200)}
    encoder = FakeEncoder()
    x = encoder.average([[t.format(label="thing700") for t in TEMPLATES]]).repeat(2, 1)
    signal, frame = Agreement(), seen(x, [700, 3], names, encoder=encoder)
    found = signal(frame)
    assert found["agreement/rank"][0] == 0
    assert found["agreement/rank"][1] > 0
    assert found["agreement/margin"][0] > 0 > found["agreement/margin"][1]
    count = encoder.encoded
    signal(frame)
    assert encoder.encoded == count == 1200 * len(TEMPLATES)


def test_another_label_set_is_embedded_anew() -> None:
    signal, x = Agreement(), unit(3)
    signal(seen(x, [0, 1, 0], {0: "cup", 1: "fork"}))
    names = {0: "cat", 1: "dog"}
    torch.testing.assert_close(signal(seen(x, [0, 1, 0], names)), Agreement()(seen(x, [0, 1, 0], names)))


def test_state_keeps_what_was_asked() -> None:
    signal = Agreement({"dog": ["hound"]}, templates=["a {label}"], ratio=1.5, masked=True)
    assert signal.requires == ("image", "clip", "names", "masks")
    again = Agreement()
    again.load_state(*signal.state())
    assert again.state() == signal.state()
    assert again.requires == signal.requires
    frame = seen(unit(3), [5, 5, 3], NAMES)
    torch.testing.assert_close(again(frame), signal(frame))
    assert frame.embed.asked == [(1.5, True)] * 2  # type: ignore[union-attr]


def test_default_synonyms_belong_to_one_class_each() -> None:
    vocabulary = Agreement().vocabulary
    assert vocabulary.synonyms["tv"][0] == "television"
    assert isinstance(vocabulary, Vocabulary)
    assert all(name not in others for name, others in vocabulary.synonyms.items())


@pytest.mark.parametrize("bad", [{"dog": "hound"}, {"dog": []}, {"dog": [3]}])
def test_bad_synonyms(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"dog: must be a list of texts"):
        Agreement(bad)


def test_bad_template() -> None:
    with pytest.raises(ValueError, match=r"unknown placeholder \{name\}"):
        Agreement(templates=["a {name}"])


def test_no_objects() -> None:
    assert given(seen(unit(0), [], NAMES)).shape == (0, 4)
    assert at_label(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (4, 0)
