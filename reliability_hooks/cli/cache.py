"""What was found on labelled images, on disk: an interrupted run goes on, another choice of signals reuses it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.datasets import GroundTruth
from ..instances import Instances
from ..reliability.state import load_state, pack, save_state, unpack
from ..signals.base import Signal

if TYPE_CHECKING:
    from torch import Tensor

TAGS = "signals"


class RowCache:
    """A file for each image under a condition, with the columns of every signal that was computed on it.

    Args:
        directory: Of one detector under one set of options.
        signals: Those that are asked for.
        taught_by: What signals that learn are shown; their columns hold for nothing else.
        encoder: Fingerprint of the CLIP of those that read one; likewise.
    """

    def __init__(self, directory: Path, signals: Sequence[Signal], taught_by: Any, encoder: Any = None) -> None:
        self.directory = directory
        self.columns = {_tag(s, taught_by, encoder): list(s.columns) for s in signals}
        directory.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> Instances | None:
        """The rows with the columns asked for; None where one of the signals has not seen them."""
        path = self.directory / f"{key}.safetensors"
        if not path.is_file():
            return None
        every, tags = self._load(path)
        if not self.columns.keys() <= tags.keys():
            return None
        foreign = {name for tag, names in tags.items() if tag not in self.columns for name in names}
        arrays: dict[str, Any] = {name: value for name, value in every.items() if name not in foreign}
        own = {name.removeprefix("columns/"): arrays.pop(name) for name in list(arrays) if name.startswith("columns/")}
        return Instances(**arrays, columns=own)

    def write(self, key: str, rows: Instances) -> None:
        """Keep the rows, beside the columns of other signals on the same boxes."""
        import torch
        from safetensors.torch import save_file

        arrays = {"boxes": rows.boxes, "scores": rows.scores, "labels": rows.labels}
        arrays |= {f"columns/{name}": value for name, value in rows.columns.items()}
        tags = {t: [f"columns/{n}" for n in names if n in rows.columns] for t, names in self.columns.items()}
        path = self.directory / f"{key}.safetensors"
        if path.is_file():
            former, held = self._load(path)
            if torch.equal(former["boxes"], rows.boxes.cpu()) and torch.equal(former["labels"], rows.labels.cpu()):
                others = {tag: names for tag, names in held.items() if tag not in tags}
                tags |= others
                arrays |= {name: former[name] for names in others.values() for name in names}
        draft = path.with_suffix(".new")
        whole = {k: v.cpu().clone(memory_format=torch.contiguous_format) for k, v in arrays.items()}
        save_file(whole, draft, {TAGS: json.dumps(tags)})
        os.replace(draft, path)

    @staticmethod
    def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """All arrays, and the names of those of each signal."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            tags: dict[str, list[str]] = json.loads((file.metadata() or {}).get(TAGS, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, tags  # noqa: SIM118 (no mapping)

    def remember(self, key: str, signals: Sequence[Signal]) -> None:
        """Keep what signals have learnt."""
        save_state(self.directory / f"learnt-{key}", *pack({s.name: s.state() for s in signals}))

    def recall(self, key: str, signals: Sequence[Signal]) -> bool:
        """Give signals what they have learnt before; False where that is not known."""
        path = self.directory / f"learnt-{key}"
        if not path.is_dir():
            return False
        state = load_state(path)
        for signal in signals:
            signal.load_state(*unpack(state, signal.name))
        return True


def _tag(signal: Signal, taught_by: Any, encoder: Any) -> str:
    """The signal and all that its columns depend on beside the detector and the image."""
    depends = [taught_by] if signal.learns else []
    if "clip" in signal.requires:
        depends += [encoder] if signal.learns else [encoder, signal.state()[1]]  # its prompts
    return f"{signal.name} {digest(*depends)}" if depends else signal.name


def digest(*parts: Any) -> str:
    """A short name for what can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def truth_digest(truth: GroundTruth) -> str:
    """Changes with the annotation of an image."""
    arrays: Mapping[str, Any] = {"boxes": truth.boxes, "labels": truth.labels, "crowd": truth.crowd}
    return digest({name: value.tolist() for name, value in arrays.items()}, truth.masks)
