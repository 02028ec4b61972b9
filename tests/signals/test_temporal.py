"""Evidence along tracks: means, the alarm's promise for tracks whose frames depend on each other, and forgetting."""

from __future__ import annotations

from math import log, nan

import numpy as np
import pytest
import torch
from torch import Tensor

from reliability_hooks.instances import Instances
from reliability_hooks.reliability.state import load_state, save_state
from reliability_hooks.signals.temporal import Tracks
from reliability_hooks.signals.track_boundary import Boundary, needed

NAME = "ood/x/score"


def frame(ids: list[int] | None, x: list[float], scores: list[float] | None = None) -> Instances:
    n = len(x)
    return Instances(
        torch.zeros(n, 4), torch.tensor(scores or [0.5] * n), torch.zeros(n, dtype=torch.int64),
        track_ids=None if ids is None else torch.tensor(ids, dtype=torch.int64), columns={NAME: torch.tensor(x)},
    )  # fmt: skip


def lives(n: int, rng: np.random.Generator, shift: float = 0.0) -> list[np.ndarray]:
    """Tracks of 1 to 40 frames whose scores share a level of the track and drift slowly about it."""
    out = []
    for length in rng.integers(1, 41, n):
        noise = np.zeros(length)
        for t in range(1, length):
            noise[t] = 0.9 * noise[t - 1] + 0.3 * rng.standard_normal()
        out.append(shift + 1.5 * rng.standard_t(4) + noise)
    return out


def rows(tracks: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    values = torch.tensor(np.concatenate(tracks))[:, None]
    return values, torch.repeat_interleave(torch.arange(len(tracks)), torch.tensor([len(t) for t in tracks]))


def flagged(boundary: Boundary, tracks: list[np.ndarray]) -> float:
    """Share of the tracks that are flagged at any frame of their lives."""
    values = rows(tracks)[0]
    length = torch.tensor([len(t) for t in tracks])
    first, state, ever = length.cumsum(0) - length, boundary.start(len(tracks)), torch.zeros(len(tracks))
    for age in range(40):
        on = (length > age).nonzero().squeeze(1)
        state[on] = boundary.step(state[on], values[first[on] + age])
        ever = torch.maximum(ever, boundary.alarm(boundary.p_value(state)).nan_to_num())
    return float(ever.mean())


@pytest.mark.parametrize("rule", ["mean", "cusum", "frame"])
def test_false_alarms_of_whole_tracks_are_controlled_and_unknown_ones_found(rule: str) -> None:
    alpha, rng, rates, power = 0.1, np.random.default_rng(0), [], []
    for seed in range(30):
        values, of = rows(lives(40, rng))
        boundary = Boundary.fit(values, of, torch.arange(40), [NAME], alpha=alpha, rule=rule, seed=seed)  # type: ignore[arg-type]
        rates.append(flagged(boundary, lives(40, rng)))
        power.append(flagged(boundary, lives(10, rng, shift=12)))
    error = float(np.std(rates)) / len(rates) ** 0.5
    assert alpha / 3 < np.mean(rates) < alpha + 3 * error
    assert np.mean(power) > 0.8


def test_a_threshold_for_frames_breaks_the_promise_that_the_boundary_keeps() -> None:
    """The naive product of bets too: what the rule is there to avoid happens in this simulation."""
    rng = np.random.default_rng(1)
    reference, tracks = np.sort(np.concatenate(lives(2000, rng))), lives(1000, rng)
    p = [(1 + len(reference) - np.searchsorted(reference, t)) / (len(reference) + 1) for t in tracks]
    product = [np.cumsum(np.log(0.5 * q**-0.5)).max() for q in p]  # power bets, as if frames were independent
    assert np.mean([q.min() <= 0.1 for q in p]) > 0.15
    assert np.mean([g >= log(10) for g in product]) > 0.15


def test_videos_as_units_weigh_by_video() -> None:
    """One odd video with many tracks counts as one of the videos, not as all of its tracks."""
    rng = np.random.default_rng(2)
    video = torch.cat([torch.arange(40), torch.full((200,), 40)])
    tracks = [np.array([x]) for x in [*rng.standard_normal(40), *(50 + rng.standard_normal(200))]]
    values, of = rows(tracks)
    p = {}
    for unit in ("track", "video"):
        boundary = Boundary.fit(values, of, video, [NAME], alpha=0.1, unit=unit, seed=3)  # type: ignore[arg-type]
        p[unit] = float(boundary.p_value(boundary.step(boundary.start(1), torch.tensor([[20.0]]))))
        assert boundary.units == (180 if unit == "track" else 31)
    assert p["track"] > 0.7
    assert p["video"] == pytest.approx(2 / 32) or p["video"] == pytest.approx(1 / 32)


def calibration(n: int = 130, frames: int = 6) -> list[list[Instances]]:
    """Videos of two tracks, with ids that begin anew in each."""
    rng = np.random.default_rng(4)
    return [[frame([1, 2], (level + 0.2 * rng.standard_normal(2)).tolist()) for _ in range(frames)]
            for level in rng.standard_normal((n // 2, 2))]


def test_an_unknown_object_is_flagged_and_stays_flagged() -> None:
    tracks = Tracks.fit(calibration(), [NAME], alpha=0.01)
    seen = [tracks.update(frame([7, 8], [0.0, 9.0 if t >= 3 else 0.0])) for t in range(12)]
    alarm = torch.stack([s.columns["track/alarm"] for s in seen])
    assert not alarm[:3].any()
    assert not alarm[:, 0].any()
    first = int(alarm[:, 1].argmax())
    assert 3 <= first <= 6
    assert bool(alarm[first:, 1].all())
    evidence = torch.stack([s.columns["track/log_evidence"] for s in seen])
    assert bool((evidence.diff(dim=0) >= 0).all())
    assert float(evidence.max()) <= log(tracks.boundary.units + 1) + 1e-5  # type: ignore[union-attr]
    assert torch.equal(alarm == 1, evidence >= -log(0.01) - 1e-6)


def test_calibration_tracks_of_two_videos_are_two_tracks() -> None:
    tracks = Tracks.fit(calibration(130), [NAME])
    assert tracks.boundary is not None
    assert tracks.boundary.units == 99  # of 130 tracks 31 would make a quarter more than leaves 99 for the level
    assert len(tracks) == 0


def test_the_means_are_those_of_the_formula_and_skip_what_is_undefined() -> None:
    tracks, x, scores = Tracks([NAME], memory=4), [1.0, nan, 5.0, 2.0], [0.9, 0.1, 0.4, 0.6]
    for t in range(4):
        got = tracks.update(frame([3], [x[t]], [scores[t]])).columns
    kept, decay = [1.0, 5.0, 2.0], 0.75
    assert float(got[f"track/{NAME}/mean"]) == pytest.approx(
        np.average(kept, weights=[decay**k for k in (2, 1, 0)]), abs=1e-6)
    assert float(got["track/score_smoothed"]) == pytest.approx(
        np.average(scores, weights=[decay**k for k in (3, 2, 1, 0)]), abs=1e-6)
    assert float(got["track/score_raw"]) == pytest.approx(0.6)
    assert float(got["track/age"]) == 4
    assert bool(got["track/alarm"].isnan())  # nothing was fitted: unknown, not well


def test_rows_in_no_track_are_unknown_and_nan_alone_is_no_all_clear() -> None:
    tracks = Tracks.fit(calibration(), [NAME])
    got = tracks.update(frame([-1, 4], [9.0, nan])).columns
    assert got["track/age"].tolist() == [0, 1]
    for name in ("track/alarm", "track/log_evidence", f"track/{NAME}/mean"):
        assert bool(got[name].isnan().all())
    assert got["track/score_smoothed"].isnan().tolist() == [True, False]
    none = tracks.update(frame(None, [9.0])).columns
    assert bool(none["track/alarm"].isnan())
    floats = frame([0, 1], [0.0, 0.0]).replace(track_ids=torch.tensor([nan, 5.0]))
    assert tracks.update(floats).columns["track/age"].tolist() == [0, 1]


def test_a_track_that_leaves_returns_within_patience_and_begins_anew_after_it() -> None:
    for absent, age in ((3, 2), (4, 1)):
        tracks = Tracks([NAME], patience=3)
        tracks.update(frame([5], [1.0]))
        for _ in range(absent):
            tracks.update(Instances.empty())
        got = tracks.update(frame([6, 5], [0.0, 3.0])).columns
        assert got["track/age"].tolist() == [1, age]
    assert len(tracks) == 2


def test_memory_does_not_grow_with_the_tracks_seen() -> None:
    tracks = Tracks([NAME], patience=2)
    for t in range(200):
        tracks.update(frame([2 * t, 2 * t + 1], [0.0, 0.0]))
        assert len(tracks) <= 8  # this frame's and those of the 3 before, absent for 2 frames at its beginning


def test_nothing_of_one_video_is_left_in_the_next() -> None:
    tracks = Tracks.fit(calibration(), [NAME])
    video = [frame([1, 2], [0.1 * t, 8.0]) for t in range(6)]
    first = [tracks.update(f).columns for f in video]
    tracks.reset()
    second = [tracks.update(f).columns for f in video]
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert second[0]["track/age"].tolist() == [1, 1]


def test_order_of_rows_does_not_matter() -> None:
    one, other = (Tracks.fit(calibration(), [NAME]) for _ in range(2))
    for t in range(5):
        a = one.update(frame([9, 2, 5], [3.0, float(t), -1.0])).columns
        b = other.update(frame([5, 9, 2], [-1.0, 3.0, float(t)])).columns
    assert all(torch.equal(a[name][[2, 0, 1]], b[name]) for name in a if name.startswith("track/"))


def test_no_detections_have_the_same_columns() -> None:
    tracks = Tracks.fit(calibration(), [NAME])
    some, none = tracks.update(frame([1], [0.0])), tracks.update(Instances.empty((10, 10)))
    assert set(none.columns) == set(some.columns) - {NAME}
    assert all(c.shape == (0,) and c.dtype == torch.float32 for c in none.columns.values())


def test_the_fitted_state_survives_the_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    tracks = Tracks.fit(calibration(), [NAME], alpha=0.02, patience=7)
    save_state(tmp_path, *tracks.state())
    again = Tracks.from_state(load_state(tmp_path))
    assert (again.columns, again.memory, again.patience) == (tracks.columns, tracks.memory, 7)
    for t in range(6):
        a, b = (x.update(frame([1, 2], [0.5 * t, 4.0])).columns for x in (tracks, again))
        assert all(torch.equal(a[name], b[name]) for name in a)
    bare = Tracks.from_state(Tracks([NAME], memory=3).state())
    assert (bare.boundary, bare.memory) == (None, 3.0)


def test_what_cannot_be_promised_is_refused() -> None:
    assert [needed(a) for a in (0.5, 0.1, 0.05, 0.01)] == [1, 9, 19, 99]
    with pytest.raises(ValueError, match="99 tracks for the level"):
        Tracks.fit(calibration(80), [NAME], alpha=0.01)
    with pytest.raises(ValueError, match="videos"):
        Tracks.fit(calibration(130), [NAME], alpha=0.01, unit="video")
    with pytest.raises(ValueError, match="absent"):
        Tracks(["other"]).update(frame([1], [0.0]))
    with pytest.raises(ValueError, match="same track id"):
        Tracks([NAME]).update(frame([1, 1], [0.0, 0.0]))
    with pytest.raises(ValueError, match="memory"):
        Tracks([NAME], memory=0.5)
    with pytest.raises(ValueError, match="different names"):
        Tracks(NAME)
    with pytest.raises(ValueError, match="no finite value"):
        Tracks.fit([[frame([i], [nan])] for i in range(110)], [NAME])


def test_constant_scores_flag_nothing_and_a_higher_one_at_once() -> None:
    tracks = Tracks.fit([[frame([0], [2.0])] * 3 for _ in range(110)], [NAME])
    assert tracks.update(frame([1, 2], [2.0, 2.5])).columns["track/alarm"].tolist() == [0.0, 1.0]
