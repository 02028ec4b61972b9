"""A CLIP small enough for tests, saved as open_clip saves a folder; caches of texts that nobody else sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


@pytest.fixture(scope="session")
def save() -> Callable[..., str]:
    """(folder, changes of the configuration) -> the name for `load` of a model with random weights saved there."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    def make(folder: Path, **changes: Any) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        both = {"model_cfg": {**CONFIG, **changes}, "preprocess_cfg": PREPROCESS}
        (folder / "open_clip_config.json").write_text(json.dumps(both))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return f"local-dir:{folder}"

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, save: Callable[..., str]) -> str:
    """Name of a ViT with 32 pixels and 16 dimensions."""
    return save(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where texts are kept during one test."""
    monkeypatch.setenv("RELIABILITY_HOOKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
