from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability_hooks.reliability.state import StateError, load_state, pack, save_state, unpack

OLD = ({"a": torch.arange(3.0)}, {"name": "old"})
NEW = ({"a": torch.arange(4.0, dtype=torch.float64), "b": torch.tensor([True])}, {"name": "new"})


def test_round_trip_keeps_every_bit_and_other_files(tmp_path: Path) -> None:
    tensors = {
        "f64": torch.tensor([0.1, torch.nan, torch.inf], dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "whole": torch.tensor([2**62]),
        "view": torch.arange(6.0).view(2, 3).T,
        "scalar": torch.tensor(1e-300, dtype=torch.float64),
    }
    meta = {"x": 0.1, "names": ["ä/b"], "nothing": None}
    (tmp_path / "other.txt").write_text("keep")
    save_state(tmp_path, tensors, meta)
    found, found_meta = load_state(tmp_path)
    assert found_meta == meta
    assert found.keys() == tensors.keys()
    for name, t in tensors.items():
        assert found[name].dtype == t.dtype
        assert torch.equal(found[name].nan_to_num(7.0), t.nan_to_num(7.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["monitor.json", "other.txt", "state.safetensors"]


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5), st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_meta_round_trip(tmp_path_factory: pytest.TempPathFactory, meta: dict[str, object]) -> None:
    directory = tmp_path_factory.mktemp("state")
    save_state(directory, {}, meta)
    assert load_state(directory) == ({}, meta)


@pytest.mark.parametrize("step", [0, 1])
def test_interruption_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    save_state(tmp_path, *OLD)
    real, calls = os.replace, []

    def interrupted(source: object, target: object) -> None:
        if len(calls) == step:
            raise KeyboardInterrupt
        calls.append(source)
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, *NEW)
    monkeypatch.undo()
    expected = OLD if step == 0 else NEW
    tensors, meta = load_state(tmp_path)
    assert meta == expected[1]
    assert torch.equal(tensors["a"], expected[0]["a"])
    save_state(tmp_path, *NEW)  # and the next save heals it
    assert load_state(tmp_path)[1] == NEW[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["monitor.json", "state.safetensors"]


def test_damage_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"monitor\.json is missing"):
        load_state(tmp_path)
    save_state(tmp_path, *NEW)
    file, record = tmp_path / "state.safetensors", tmp_path / "monitor.json"
    whole, text = file.read_bytes(), record.read_text()
    file.write_bytes(whole[:-1])
    with pytest.raises(StateError, match=r"state\.safetensors does not have the checksum"):
        load_state(tmp_path)
    file.unlink()
    with pytest.raises(StateError, match=r"state\.safetensors is missing"):
        load_state(tmp_path)
    file.write_bytes(whole)
    for broken, message in [
        (text[:-3], "not valid JSON"),
        (text.replace('"new"', "NaN"), "not valid JSON"),
        ("[]", "no format_version"),
        (json.dumps({**json.loads(text), "format_version": 99}), "format 99.*upgrade"),
        ('{"format_version": 1}', "incomplete"),
    ]:
        record.write_text(broken)
        with pytest.raises(StateError, match=message):
            load_state(tmp_path)


def test_mixed_states_are_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "old", *OLD)
    save_state(tmp_path / "new", *NEW)
    (tmp_path / "old" / "monitor.json").replace(tmp_path / "new" / "monitor.json")
    with pytest.raises(StateError, match="different states"):
        load_state(tmp_path / "new")


def test_nan_in_meta_is_refused_and_the_old_state_stays(tmp_path: Path) -> None:
    save_state(tmp_path, *OLD)
    with pytest.raises(ValueError, match="None instead"):
        save_state(tmp_path, NEW[0], {"x": float("nan")})
    assert load_state(tmp_path)[1] == OLD[1]


def test_pack_and_unpack() -> None:
    packed = pack({"one": OLD, "other": NEW})
    tensors, meta = unpack(packed, "other")
    assert meta == NEW[1]
    assert tensors.keys() == NEW[0].keys()
    with pytest.raises(StateError, match="'third'"):
        unpack(packed, "third")
