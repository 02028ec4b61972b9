from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reliability_hooks.clip.encoder import load
from reliability_hooks.clip.models import create, digest

pytest.importorskip("open_clip")
WEIGHTS = "open_clip_model.safetensors"


def test_loading_changes_nothing_around(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny.removeprefix("local-dir:"), folder)
    handlers, state = list(logging.getLogger().handlers), torch.get_rng_state()
    encoder = load(f"local-dir:{folder}")
    assert logging.getLogger().handlers == handlers
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder is load(f"local-dir:{folder}", device="cpu")
    assert not encoder._model.training
    assert not any(p.requires_grad for p in encoder._model.parameters())
    json.dumps(encoder.fingerprint)
    assert encoder.fingerprint["sha256"] == load(tiny).fingerprint["sha256"]


def test_random_weights_are_seeded_and_asked_for() -> None:
    (one, _, config), (two, _, _) = create("random:ViT-S-32-alt"), create("random:ViT-S-32-alt")
    assert digest(one, config) == digest(two, config)
    assert digest(one, {**config, "quick_gelu": True}) != digest(one, config)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "corrupt", "no weights", "no config"])
def test_checkpoints_that_do_not_fit(tiny: str, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.removeprefix("local-dir:"), folder)
    weights = load_file(folder / WEIGHTS)
    if change == "missing":
        del weights["visual.proj"]
    elif change == "unexpected":
        weights["visual.more"] = torch.zeros(2)
    else:
        weights["visual.proj"] = torch.zeros(3, 3)
    save_file(weights, folder / WEIGHTS)
    if change == "corrupt":
        (folder / WEIGHTS).write_bytes(b"no weights")
    elif change in ("no weights", "no config"):
        (folder / (WEIGHTS if change == "no weights" else "open_clip_config.json")).unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded. Its folder must hold open_clip_config.json"):
        load(f"local-dir:{folder}")


@pytest.mark.parametrize(("name", "near"), [
    ("ViT-B-23/openai", "ViT-B-32"), ("condition-clp", "condition-clip"), ("random:MobileCLIP2-S", "MobileCLIP2-S"),
    ("ViT-B-32/laion2b_s34b_b79", "laion2b_s34b_b79k"), ("ViT-B-32", "As ViT-B-32/TAG there are: "),
])  # fmt: skip
def test_unknown_names(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        load(name)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("ViT-B-32/laion2b_s34b_b79k", "hf-hub:nobody/nothing"):
        with pytest.raises(ValueError, match="connect once, or copy them here"):
            load(name)


def test_open_clip_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"reliability_hooks\[clip\]"):
        load("random:ViT-L-14")
