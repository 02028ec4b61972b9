from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reliability_hooks.clip.encoder import load
from reliability_hooks.clip.texts import Texts, cache_file

pytest.importorskip("open_clip")
CPU = torch.device("cpu")


class Table(Texts):
    """Texts whose embeddings are told by their lengths."""

    def __init__(self, key: str = "key") -> None:
        self.asked: list[list[str]] = []

        def encode(prompts: list[str]) -> Tensor:
            self.asked.append(prompts)
            angle = torch.tensor([float(len(p)) for p in prompts])
            return torch.stack([angle.cos(), angle.sin()], 1)

        super().__init__(encode, 2, key)


def test_each_is_encoded_once() -> None:
    texts = Table()
    first = texts(["a", "bbb", "a", "cc"], CPU)
    assert texts.asked == [["a", "bbb", "cc"]]
    assert torch.equal(first[0], first[2])
    again = texts(["cc", "dddd", "a"], CPU)
    assert texts.asked[1:] == [["dddd"]]
    assert torch.equal(again[[0, 2]], first[[3, 0]])
    assert texts.encoded == 4
    assert texts([], CPU).shape == (0, 2)


def test_other_objects_read_them_from_disk(cache: Path) -> None:
    written = Table()(["a", "bbb", "naïve 犬"], CPU)
    second = Table()
    assert torch.equal(second(["naïve 犬", "a"], CPU), written[[2, 0]])
    assert second.encoded == 0
    assert Table("other")(["a"], CPU).shape == (1, 2)
    assert sorted(p.name for p in (cache / "texts").iterdir()) == ["key.safetensors", "other.safetensors"]


def test_what_others_write_meanwhile_is_kept() -> None:
    one, two = Table(), Table()
    one(["a"], CPU)
    two(["a", "bb"], CPU)
    assert two.asked == [["bb"]]
    one(["bb", "ccc"], CPU)
    assert one.asked == [["a"], ["ccc"]]
    third = Table()
    third(["a", "bb", "ccc"], CPU)
    assert third.encoded == 0


@pytest.mark.parametrize("damage", ["text", "cut", "values", "directory", "foreign"])
def test_a_damaged_file_is_encoded_anew(damage: str) -> None:
    expected = Table()(["a", "bb"], CPU)
    path = cache_file("key")
    assert path is not None
    whole = path.read_bytes()
    if damage == "text":
        path.write_text("nothing of use")
    elif damage == "cut":
        path.write_bytes(whole[:-5])
    elif damage == "values":
        path.write_bytes(whole[:-4] + b"\xff\xff\xff\xff")
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"rows": torch.ones(1, 3)}, path)
    else:
        path.unlink()
        path.mkdir()
    texts = Table()
    assert torch.equal(texts(["a", "bb"], CPU), expected)
    assert texts.encoded == 2
    after = Table()
    after(["a", "bb"], CPU)
    assert after.encoded == (2 if damage == "directory" else 0)
    assert not list(path.parent.glob("*.new"))


def test_a_disk_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RELIABILITY_HOOKS_CACHE", str(tmp_path / "file" / "below"))
    texts = Table()
    texts(["a"], CPU)
    texts(["a"], CPU)
    assert texts.encoded == 1


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELIABILITY_HOOKS_CACHE")
    assert cache_file("key") == Path.home() / ".cache" / "reliability_hooks" / "texts" / "key.safetensors"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_file("key") is None
    texts = Table()
    assert texts(["a"], CPU).shape == (1, 2)


def test_no_text_is_encoded_twice_across_processes(tiny: str, cache: Path) -> None:
    """The real encoder: nothing after the first call, and nothing in another process with the same weights."""
    encoder = load(tiny)
    prompts = ["one of these texts", "another one"]
    before = encoder.encoded
    first = encoder.texts(prompts)
    assert encoder.encoded == before + 2
    assert torch.equal(encoder.texts(prompts[::-1]), first.flip(0))
    assert encoder.encoded == before + 2
    code = f"""
from reliability_hooks.clip.encoder import load
encoder = load({tiny!r})
print(encoder.texts({prompts!r}).sum().item(), encoder.encoded)
"""
    environment = {**os.environ, "RELIABILITY_HOOKS_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    total, encoded = done.stdout.split()
    assert float(total) == first.sum().item()
    assert encoded == "0"
