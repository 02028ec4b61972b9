from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability_hooks.instances import Instances
from reliability_hooks.reliability import exchangeability
from reliability_hooks.reliability.drift import DriftState, DriftTest, Evidence, summarise
from reliability_hooks.reliability.state import load_state, save_state

PHRASES = {"light": ("dark", "bright"), "blur": ("sharp", "blurred")}


def image(rng: np.random.Generator, shift: float = 0.0, n: int | None = None) -> Instances:
    """Objects of one image: they share a common part; `light` falls by `shift`."""
    n = int(rng.poisson(4)) if n is None else n
    columns = {
        "light": torch.from_numpy(rng.normal() - shift + 0.5 * rng.normal(size=n)).float(),
        "blur": torch.from_numpy(rng.normal() + 0.5 * rng.normal(size=n)).float(),
        "reliability": torch.from_numpy(rng.random(n)).float(),
    }
    return Instances(torch.zeros(n, 4), torch.from_numpy(rng.random(n)).float(), torch.zeros(n).long(), columns=columns)


def run(test: DriftTest, images: list[Instances]) -> list[DriftState]:
    return [test.update(i) for i in images]


def alarms(
    n: int, length: int, streams: int, level: float, endless: bool = False, signals: int = 1, seed: int = 0
) -> np.ndarray:
    """(streams,) index of the first alarm of clean streams, -1 for none: all streams as one big `Evidence`.

    The signals of a stream are functions of one number and noise, some discrete with ties, some often undefined.
    """
    rng = np.random.default_rng(seed)

    def draw(size: int) -> np.ndarray:
        base = rng.normal(size=(size, streams, 1))
        x = base * np.linspace(-1, 1, signals) + rng.normal(size=(size, streams, signals))
        x[..., ::3] = x[..., ::3].round()
        x[..., 1::3][rng.random(x[..., 1::3].shape) < 0.4] = np.nan
        return x.reshape(size, -1)

    evidence = Evidence(draw(n), math.log(level), endless=endless, seed=seed)
    for values in draw(length):
        evidence.update(values)
    at = evidence.at.reshape(streams, signals)
    first = np.where(at < 0, length, at).min(1)
    return np.where(first == length, -1, first)


def upper(rate: float, trials: int) -> float:
    """What a binomial share with this chance stays below but once in 3000."""
    return rate + 3.4 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("n", [3, 50, 200])
@pytest.mark.parametrize("signals", [1, 8])
def test_no_more_false_alarms_than_promised(n: int, signals: int) -> None:
    alpha, streams = 0.1, 300
    at = alarms(n, 200, streams, signals / alpha, signals=signals, seed=n)
    assert (at >= 0).mean() <= upper(alpha, streams)


@pytest.mark.parametrize("n", [3, 50, 200])
def test_endless_run_length(n: int) -> None:
    run_length, signals, streams, length = 30, 4, 300, 300
    at = alarms(n, length, streams, 2 * signals * run_length, True, signals, seed=n)
    runs = np.where(at < 0, length, at + 1)
    assert runs.mean() >= run_length  # cut short at `length`, so the true mean is longer still
    for t in (10, 30, 50):
        assert (runs <= t).mean() <= upper(t / (2 * run_length), streams)
    assert (at >= 0).mean() > 0.5  # it does not last for ever either: this is the other promise


def test_the_simulation_would_show_a_fixed_reference_breaking_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Evidence.update

    def forgetful(self: Evidence, values: np.ndarray) -> None:
        update(self, values)
        self.counts = self.mass.copy()

    monkeypatch.setattr(Evidence, "update", forgetful)
    assert (alarms(50, 200, 300, 10) >= 0).mean() > upper(0.1, 300)


@pytest.mark.parametrize("bins", [2, 3, 128])
def test_the_urn_gives_the_exact_chance_of_every_sequence_of_bins(bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all 720 orders of six numbers, three of them for calibration: equally likely if exchangeable."""
    monkeypatch.setattr(exchangeability, "BINS", bins)
    found: Counter[tuple[int, ...]] = Counter()
    chance: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(6)):
        evidence = Evidence(np.array(order[:3], float)[:, None], 1.0)
        hit, product = [], 1.0
        for value in order[3:]:
            b = int(evidence.bins(np.array([float(value)]), np.zeros(1))[0])
            product *= evidence.counts[0, b] / evidence.counts[0].sum()
            evidence.update(np.array([float(value)]))
            hit.append(b)
        found[tuple(hit)] += 1
        chance[tuple(hit)] = product
    assert len(found) == min(bins, 4) ** 3
    for sequence, count in found.items():
        assert count / 720 == pytest.approx(chance[sequence], abs=1e-12)


def naive(p: list[float], endless: bool) -> float:
    """The module's formulas, as a sum over all beginnings of products of bets."""
    weight = [1.0 if endless else 1 / math.log2(t + 2) - 1 / math.log2(t + 3) for t in range(len(p))]
    total = 0.0
    for power in exchangeability.POWERS:
        for side in (lambda q: q, lambda q: 1 - q):
            bets = [power * side(q) ** (power - 1) for q in p]
            total += sum(w * math.prod(bets[j:]) for j, w in enumerate(weight))
    return total / (2 * len(exchangeability.POWERS)) + (0.0 if endless else 1 / math.log2(len(p) + 2))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 20), endless=st.booleans())
def test_evidence_against_the_sum_over_beginnings(seed: int, n: int, endless: bool) -> None:
    """An urn kept by hand, and every beginning and bet multiplied out."""
    rng = np.random.default_rng(seed)
    calibration, stream = np.sort(rng.normal(size=n)), rng.normal(size=8)
    evidence, p, hits = Evidence(calibration[:, None], 1.0, endless=endless, seed=seed), [], np.ones(n + 1)
    for t, value in enumerate(stream):
        theta = np.random.default_rng([seed, t + 1]).random((2, 1))[1, 0]
        gap = np.searchsorted(calibration, value)
        p.append((hits[gap + 1 :].sum() + (1 - theta) * hits[gap]) / hits.sum())
        hits[gap] += 1
        evidence.update(np.array([value]))
    assert float(evidence.log_evidence()[0]) == pytest.approx(math.log(naive(p, endless)), abs=1e-6)


def test_p_values_are_uniform_and_independent_even_with_ties() -> None:
    """The first bet of each image, turned back into its p-value, over 4000 clean streams with 5 calibration values."""
    rng = np.random.default_rng(3)
    evidence = Evidence(rng.integers(0, 3, (5, 4000)).astype(float), 1.0)
    p = []
    for _ in range(3):
        before = evidence.cusum.clip(0)
        evidence.update(rng.integers(0, 3, 4000).astype(float))
        gain = (evidence.cusum - before)[:, 0]
        p.append(np.exp((gain - math.log(exchangeability.POWERS[0])) / (exchangeability.POWERS[0] - 1)))
    grid = np.linspace(0.1, 0.9, 9)
    for values in p:
        assert np.abs((values[:, None] <= grid).mean(0) - grid).max() < 1.95 / math.sqrt(4000)  # Kolmogorov, .001
    assert np.abs(np.corrcoef(p)[np.triu_indices(3, 1)]).max() < 0.06


@pytest.mark.parametrize("shift", [3.0, -3.0])
def test_a_shift_is_noticed_named_and_dated(shift: float) -> None:
    rng = np.random.default_rng(0)
    calibration = [image(rng) for _ in range(100)]
    test = DriftTest.fit(calibration, phrases=PHRASES)
    states = run(test, [image(rng) for _ in range(60)] + [image(rng, shift) for _ in range(40)])
    last = states[-1]
    assert not states[59].alarm
    assert states[59].since is None
    assert last.alarm
    assert last.alarm_at is not None
    assert 60 <= last.alarm_at < 85
    assert last.since is not None
    assert abs(last.since - 60) <= 3
    assert [m.signal for m in last.moved] == ["light"]
    assert last.moved[0].direction == ("lower" if shift > 0 else "higher")
    assert last.moved[0].phrase == ("dark" if shift > 0 else "bright")
    assert states[last.alarm_at].alarm
    assert not states[last.alarm_at - 1].alarm
    assert states[last.alarm_at].evidence >= last.threshold == pytest.approx(100)
    assert states[last.alarm_at].p_value <= 0.01 < states[last.alarm_at - 1].p_value
    assert (np.diff([state.p_value for state in states]) <= 0).all()  # it bounds the most evidence so far
    assert "light lower (dark)" in str(last) or "light higher (bright)" in str(last)
    assert "no drift in 60 images" in str(states[59])


@pytest.mark.parametrize(("options", "level"), [({"alpha": 0.02}, 6 / 0.02), ({"run_length": 50}, 2 * 6 * 50)])
def test_the_level_counts_the_signals(options: dict[str, Any], level: float) -> None:
    rng = np.random.default_rng(0)
    test = DriftTest.fit([image(rng) for _ in range(10)], **options)
    assert len(test.signals) == 6
    assert math.exp(test.evidence.log_threshold) == pytest.approx(level)


def test_a_shift_is_noticed_in_an_endless_stream() -> None:
    rng = np.random.default_rng(1)
    test = DriftTest.fit([image(rng) for _ in range(60)], run_length=1000)
    states = run(test, [image(rng) for _ in range(40)] + [image(rng, 3) for _ in range(40)])
    assert not states[39].alarm
    assert [m.signal for m in states[-1].moved] == ["light"]
    at = states[-1].alarm_at or 0
    assert states[at - 1].evidence < 1000 <= states[at].evidence
    assert states[at].threshold == 1000
    assert states[at].p_value == pytest.approx((at + 1) / (2 * states[at].evidence))
    assert abs((states[-1].since or 0) - 40) <= 3


def test_a_gradual_shift_is_noticed() -> None:
    rng = np.random.default_rng(2)
    test = DriftTest.fit([image(rng) for _ in range(100)])
    states = run(test, [image(rng) for _ in range(40)] + [image(rng, 4 * k / 60) for k in range(60)])
    assert not states[39].alarm
    assert states[-1].moved[0].signal == "light"
    assert 40 <= (states[-1].since or 0) < 75


def test_detections_that_vanish_are_noticed_by_their_count() -> None:
    rng = np.random.default_rng(0)
    test = DriftTest.fit([image(rng, n=int(k)) for k in rng.integers(0, 6, 60)])
    assert "count" in test.signals
    states = run(test, [Instances.empty((10, 10)) for _ in range(60)])
    assert [(m.signal, m.direction, m.phrase) for m in states[-1].moved] == [("count", "lower", "fewer detections")]


def test_values_that_become_undefined_are_noticed() -> None:
    rng = np.random.default_rng(0)
    test = DriftTest.fit([image(rng) for _ in range(60)])
    broken = [image(rng, n=4) for _ in range(40)]
    broken = [i.with_columns({"light": i.columns["light"] * torch.nan, "blur": i.columns["blur"] / 0}) for i in broken]
    states = run(test, broken)
    assert [(m.signal, m.direction) for m in states[-1].moved] == [("undefined", "higher")]
    assert np.isfinite(states[-1].evidence)


def test_a_constant_signal_is_no_evidence_until_it_changes() -> None:
    rng = np.random.default_rng(0)

    def fixed(value: float) -> Instances:
        i = image(rng, n=3)
        return i.with_columns({"light": torch.full((3,), value)})

    test = DriftTest.fit([fixed(1.0) for _ in range(40)])
    states = run(test, [fixed(1.0) for _ in range(40)] + [fixed(1.001) for _ in range(40)])
    assert not states[39].alarm
    assert ("light", "higher") in {(m.signal, m.direction) for m in states[-1].moved}


def test_few_calibration_images() -> None:
    rng = np.random.default_rng(0)
    test = DriftTest.fit([image(rng, n=2) for _ in range(2)])
    states = run(test, [image(rng, 100, n=2) for _ in range(5)])
    assert not states[-1].alarm  # two images prove little
    with pytest.raises(ValueError, match="at least 2 calibration images"):
        DriftTest.fit([image(rng)])


def test_only_images_without_detections() -> None:
    empty = [Instances.empty() for _ in range(30)]
    test = DriftTest.fit(empty)
    assert test.signals == ("count",)
    assert set(test.dropped) == {"score", "undefined"}
    states = run(test, empty)
    assert not states[-1].alarm
    rng = np.random.default_rng(0)
    assert run(test, [image(rng, n=3) for _ in range(40)])[-1].moved[0].phrase == "more detections"


def test_summaries_of_an_image() -> None:
    columns = {"a": torch.tensor([1.0, torch.nan, 3.0]), "b": torch.tensor([torch.inf, -torch.inf, torch.nan])}
    i = Instances(torch.zeros(3, 4), torch.tensor([0.25, 0.75, torch.nan]), torch.zeros(3).long(), columns=columns)
    assert summarise(i, ["a", "b"]) == pytest.approx([3, 0.5, 4 / 6, 2, np.nan], nan_ok=True)
    assert summarise(i[:0], ["a", "b"]) == pytest.approx([0, *[np.nan] * 4], nan_ok=True)
    assert summarise(Instances.empty(), ["a", "b"]) == pytest.approx([0, *[np.nan] * 4], nan_ok=True)


@pytest.mark.parametrize("options", [{"alpha": 0.05}, {"run_length": 500}])
def test_resuming_from_disk_equals_one_go(options: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    test = DriftTest.fit([image(rng) for _ in range(40)], phrases=PHRASES, seed=7, **options)
    stream = [image(rng) for _ in range(20)] + [image(rng, 3) for _ in range(30)]
    whole = run(DriftTest.from_state(test.state()), stream)
    parts = []
    for piece in (stream[:13], stream[13:35], stream[35:]):
        save_state(tmp_path, *test.state())
        test = DriftTest.from_state(load_state(tmp_path))
        parts += run(test, piece)
    assert parts == whole
    assert whole[-1].alarm
    assert test.signals == ("count", "score", "undefined", "light", "blur", "reliability")
    test.reset()
    assert test.current().images == 0
    assert run(test, stream) == whole


def test_saving_is_a_snapshot() -> None:
    rng = np.random.default_rng(0)
    test = DriftTest.fit([image(rng) for _ in range(20)])
    state = test.state()
    before = {name: t.clone() for name, t in state[0].items()}
    run(test, [image(rng, 5) for _ in range(20)])
    assert all(torch.equal(state[0][name], t) for name, t in before.items())


def test_seeds() -> None:
    rng = np.random.default_rng(0)
    calibration, stream = [image(rng) for _ in range(30)], [image(rng) for _ in range(10)]
    first, same, other = (run(DriftTest.fit(calibration, seed=s), stream) for s in (0, 0, 1))
    assert first == same
    assert first[-1].evidence != other[-1].evidence


def test_memory_does_not_grow() -> None:
    rng = np.random.default_rng(0)
    evidence = Evidence(rng.normal(size=(1000, 2)), 1.0)
    size = sum(t.numel() for t in evidence.state()[0].values())
    for values in rng.normal(size=(50, 2)):
        evidence.update(values)
    assert sum(t.numel() for t in evidence.state()[0].values()) == size < 5 * 2 * exchangeability.BINS
    assert evidence.counts.sum(1) == pytest.approx([1051, 1051])


def test_evidence_stays_finite_in_a_long_changed_stream() -> None:
    rng = np.random.default_rng(0)
    test = DriftTest.fit([image(rng, n=3) for _ in range(1000)], columns=["light"])
    state = run(test, [image(rng, 50, n=3) for _ in range(400)])[-1]
    assert 1e100 < state.evidence < math.inf
    assert 0 < state.p_value < 1e-100


def test_columns_to_watch() -> None:
    rng = np.random.default_rng(0)

    def wide(i: Instances) -> Instances:
        return i.with_columns({"pair": torch.zeros(len(i), 2), "verdict": torch.zeros(len(i)).long()})

    images = [wide(image(rng, n=2)) for _ in range(5)]
    assert DriftTest.fit([Instances.empty(), *images]).columns == ("light", "blur", "reliability")
    assert DriftTest.fit(images, columns=["blur"]).signals == ("count", "score", "undefined", "blur")
    with pytest.raises(ValueError, match=r"\['pair'\]"):
        DriftTest.fit(images, columns=["pair"])
    with pytest.raises(ValueError, match=r"\['glare'\] are absent"):
        DriftTest.fit(images, columns=["glare"])
    with pytest.raises(ValueError, match=r"\['count'\] are taken"):
        DriftTest.fit(images, columns=["count"])
    with pytest.raises(ValueError, match="are absent: switch on"):
        DriftTest.fit(images).update(Instances(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1).long()))


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 1.0}, {"run_length": 0.5}, {"run_length": math.inf}])
def test_a_promise_that_is_none(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"alpha is a probability|run_length is a finite"):
        DriftTest.fit([image(rng) for _ in range(3)], **options)
