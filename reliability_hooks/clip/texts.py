"""Embeddings of texts: from memory, else from disk, and only then encoded."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor


def cache_file(key: str) -> Path | None:
    """Where the texts of one model lie: below $RELIABILITY_HOOKS_CACHE or ~/.cache/reliability_hooks; None: nowhere."""
    try:
        base = os.environ.get("RELIABILITY_HOOKS_CACHE") or Path.home() / ".cache" / "reliability_hooks"
    except RuntimeError:  # no home
        return None
    return Path(base) / "texts" / f"{key}.safetensors"


class Texts:
    """A growing table of texts and their embeddings, shared over the disk by all processes with the same model.

    A file that is corrupt, foreign or cannot be written is no error: the texts are encoded again.

    Attributes:
        encoded: How many texts were really encoded by this object.

    Args:
        encode: T texts -> (T, D) unit-length float32.
        dim: D.
        key: Names the model: other weights, another key.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], dim: int, key: str) -> None:
        self.encoded = 0
        self._encode, self._key = encode, key
        self._lock = threading.Lock()
        self._index: dict[str, int] = {}
        self._rows = torch.zeros(0, dim)

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """(T, D), one row for each text."""
        with self._lock:
            self._rows = self._rows.to(device)
            if self._missing(prompts):
                self._extend(prompts)
            return self._rows[torch.tensor([self._index[p] for p in prompts], dtype=torch.int64, device=device)]

    def _extend(self, prompts: Sequence[str]) -> None:
        path = cache_file(self._key)
        if path is not None:
            self._add(*_read(path, self._rows.shape[1]))  # perhaps another process has encoded them since
        if new := self._missing(prompts):
            self._add(new, self._encode(new))
            self.encoded += len(new)
            if path is not None:
                _write(path, list(self._index), self._rows)

    def _missing(self, prompts: Sequence[str]) -> list[str]:
        return [p for p in dict.fromkeys(prompts) if p not in self._index]

    def _add(self, prompts: list[str], rows: Tensor) -> None:
        fresh = [i for i, p in enumerate(prompts) if p not in self._index]
        if fresh:
            self._index |= {prompts[i]: len(self._rows) + k for k, i in enumerate(fresh)}
            self._rows = torch.cat([self._rows, rows[fresh].to(self._rows)])


def _read(path: Path, dim: int) -> tuple[list[str], Tensor]:
    """Texts and rows of the file; none where it cannot be trusted."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            prompts, rows = json.loads(file.metadata()["prompts"]), file.get_tensor("rows")
        lengths = rows.norm(dim=1)
        sound = rows.shape == (len(prompts), dim) and torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3)
    except Exception:  # whatever is wrong with it, the texts can be encoded again
        sound = False
    return (prompts, rows) if sound else ([], torch.zeros(0, dim))


def _write(path: Path, prompts: list[str], rows: Tensor) -> None:
    """Replace the file in one step, so that no reader meets half of it."""
    from safetensors.torch import save

    content = save({"rows": rows.cpu().contiguous()}, {"prompts": json.dumps(prompts)})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, name = tempfile.mkstemp(dir=path.parent, suffix=".new")
        try:
            with os.fdopen(draft, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
