"""MCM, GL-MCM and NegLabel: against pytorch-ood and loops over the formulas; the choice of negative labels."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from reliability_hooks.clip.embed import Embed
from reliability_hooks.frame import Frame, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.ood.vision_language import (
    GROUP,
    TEMPLATE,
    VisionLanguage,
    gl_mcm,
    grouped,
    mcm,
    mine,
    neg_label,
)

from ..clip_fake import FakeEncoder, seen, unit

NAMES = {0: "cat", 1: "dog", 2: "traffic_light"}
KEYS = [f"ood/vision_language/{name}" for name in ("mcm", "gl_mcm", "neg_label")]


def text(encoder: FakeEncoder, *words: str) -> torch.Tensor:
    return encoder.texts([TEMPLATE.replace("{label}", w) for w in words])


def test_mcm_against_pytorch_ood() -> None:
    reference = pytest.importorskip("pytorch_ood.detector")
    x, texts = unit(30), unit(80, seed=1)
    expected = reference.MCM(None, texts).predict_features(x)
    torch.testing.assert_close(mcm(x @ texts.T), expected)
    encoder = FakeEncoder()
    signal = VisionLanguage()(seen(x, names=NAMES, encoder=encoder))
    texts = text(encoder, "cat", "dog", "traffic light")
    torch.testing.assert_close(signal[KEYS[0]], reference.MCM(None, texts).predict_features(x))


def test_gl_mcm_against_a_loop() -> None:
    whole, parts = torch.rand(4, 6) * 2 - 1, torch.rand(4, 9, 6) * 2 - 1
    for i in range(4):
        softmax = [math.exp(whole[i].max()) / sum(math.exp(v) for v in whole[i])]
        local = max(math.exp(cell.max()) / sum(math.exp(v) for v in cell) for cell in parts[i])
        assert gl_mcm(whole, parts)[i] == pytest.approx(-softmax[0] - local, abs=1e-6)


def test_neg_label_against_a_loop() -> None:
    known, negative, scale = torch.rand(5, 4) - 0.5, torch.rand(5, 3, 7) - 0.5, 20.0
    for i in range(5):
        mass = []
        for group in negative[i]:
            pos, neg = (sum(math.exp(scale * v) for v in side) for side in (known[i], group))
            mass.append(pos / (pos + neg))
        assert neg_label(known, negative, scale)[i] == pytest.approx(1 - np.mean(mass), abs=1e-5)


def test_neg_label_keeps_digits_where_everything_is_known() -> None:
    sure = neg_label(torch.tensor([[0.6], [0.5]]), torch.full((2, 1, 3), -0.4), 50.0)
    assert 0 < sure[0] < sure[1] < 1e-15


def test_mining_takes_the_least_similar() -> None:
    known, candidates = unit(40, seed=1), unit(60, seed=2)
    near = np.quantile((candidates @ known.T).numpy(), 0.95, axis=1)
    assert mine(candidates, known).tolist() == sorted(np.argsort(near)[:30].tolist())
    assert len(mine(candidates[:1], known)) == 1


def test_groups_hold_every_label_once() -> None:
    held = grouped(torch.arange(250.0)[:, None])
    assert held.shape == (2, GROUP, 1)
    assert len(set(held.flatten().tolist())) == 200
    assert grouped(torch.arange(7.0)[:, None]).flatten().sort().values.tolist() == list(range(7))


def test_unknown_things_score_higher() -> None:
    encoder = FakeEncoder()
    words = ["abacus", "volcano", "tarantula", "cello", "geyser", "agaric", "wok", "yurt"]
    candidates = text(encoder, *words)
    chosen = candidates[mine(candidates, text(encoder, "cat", "dog", "traffic light"))]
    x = torch.cat([text(encoder, "cat", "dog"), chosen])
    given = VisionLanguage(words)(seen(x, names=NAMES, encoder=encoder))
    for key in (KEYS[0], KEYS[2]):
        assert given[key][:2].max() < given[key][2:].min()


def test_whole_signal_against_loops() -> None:
    encoder, x = FakeEncoder(unknown=["cello"]), unit(6)
    cells = normalize(torch.randn(6, x.shape[1], 2, 3, generator=torch.Generator().manual_seed(3)), dim=1)
    words = ["abacus", "cello", "volcano", "Dog", "tarantula", "abacus"]  # one never learnt, one known, one twice
    given = VisionLanguage(words)(seen(x, names=NAMES, encoder=encoder, cells=cells))
    known = text(encoder, "cat", "dog", "traffic light")
    candidates = text(encoder, "abacus", "volcano", "tarantula")
    chosen = candidates[mine(candidates, known)]
    assert len(chosen) == 2
    torch.testing.assert_close(given[KEYS[1]], gl_mcm(x @ known.T, cells.flatten(2).transpose(1, 2) @ known.T))
    torch.testing.assert_close(given[KEYS[2]], neg_label(x @ known.T, (x @ chosen.T)[:, None], encoder.logit_scale))


def test_default_negatives() -> None:
    signal = VisionLanguage()
    assert len(signal.negatives) > 900
    assert {"tench", "toilet tissue"} <= set(signal.negatives)
    assert signal.scores == tuple(signal.columns) == tuple(KEYS)


def test_parts_only_where_the_encoder_gives_them() -> None:
    found = Instances(torch.tensor([[0.0, 0, 60, 50], [5, 5, 9, 9]]), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    view = View(torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0)))
    signal, defined = VisionLanguage(), []
    for parts in (True, False):
        embed = Embed(FakeEncoder(parts=parts), view, found)  # type: ignore[arg-type]
        given = signal(Frame(found, view, names=NAMES, embed=embed))
        assert all(given[key][1].isnan() for key in KEYS)  # too small
        defined.append([bool(given[key][0].isfinite()) for key in KEYS])
    assert defined == [[True, True, True], [True, False, True]]


def test_an_encoder_that_knows_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    encoder = FakeEncoder(unknown=["abacus"])
    with caplog.at_level(logging.WARNING):
        signal, frame = VisionLanguage(["abacus"]), seen(unit(2), names=NAMES, encoder=encoder)
        given = [signal(frame), signal(frame)][1]
    assert given[KEYS[0]].isfinite().all()
    assert given[KEYS[2]].isnan().all()
    assert len(caplog.records) == 1
    none = VisionLanguage()(seen(unit(2), names={0: "cat"}, encoder=FakeEncoder(unknown=["cat"])))
    assert all(column.isnan().all() for column in none.values())


def test_texts_are_embedded_once_and_state_is_kept() -> None:
    encoder, x = FakeEncoder(), unit(3)
    signal = VisionLanguage(["abacus", "volcano"], ratio=1.2)
    first = signal(seen(x, names=NAMES, encoder=encoder))
    count = encoder.encoded
    again = VisionLanguage()
    again.load_state(*signal.state())
    torch.testing.assert_close(again(seen(x, names=NAMES, encoder=encoder)), first, equal_nan=True)
    assert again.state() == signal.state()
    assert encoder.encoded == count == 5


@pytest.mark.parametrize("n", [0, 1])
def test_few_objects(n: int) -> None:
    given = VisionLanguage()(seen(unit(n), names=NAMES))
    assert list(given) == KEYS
    assert all(column.shape == (n,) and column.dtype == torch.float32 for column in given.values())


def test_bad_negatives() -> None:
    with pytest.raises(ValueError, match="negatives: must be a list of texts"):
        VisionLanguage([])
