"""Fitted state on disk: one safetensors file and one JSON file, never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT_VERSION = 1
TENSORS_FILE = "state.safetensors"
META_FILE = "monitor.json"

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and what else is needed to rebuild the object, as plain JSON values."""


class StateError(ValueError):
    """A saved state that cannot be used; the message says why and what to do."""


def pack(parts: Mapping[str, State]) -> State:
    """Nest the states of several parts under their names; `unpack` takes one out again."""
    tensors = {f"{part}.{name}": t for part, (held, _) in parts.items() for name, t in held.items()}
    return tensors, {part: meta for part, (_, meta) in parts.items()}


def unpack(state: State, part: str) -> State:
    """The state that `pack` nested under `part`. Raises StateError where there is none."""
    tensors, meta = state
    if part not in meta:
        raise StateError(f"the state has no part {part!r}, only {sorted(meta)}: fit and save it again")
    prefix = f"{part}."
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}, meta[part]


def save_state(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    tensors_file: str = TENSORS_FILE,
    meta_file: str = META_FILE,
) -> None:
    """Write tensors and meta so that an interruption leaves the old or the new state, each complete.

    The tensors are first written beside the old ones; replacing the JSON file, which holds their sha256, is
    the one atomic step that switches from old to new; the tensors then take their final name. `load_state`
    knows that last in-between. Other files of the directory are left alone. Two savers at once on one
    directory are not supported.

    Args:
        directory: made where it does not exist.
        tensors: any dtype and device; kept bit for bit.
        meta: plain JSON values.
        tensors_file: name of the safetensors file.
        meta_file: name of the JSON file.

    Raises:
        ValueError: meta holds something that JSON cannot (NaN and infinity included).
    """
    from safetensors.torch import save

    directory = Path(directory)
    blob = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    record = {
        "format_version": FORMAT_VERSION,
        "tensors": {"file": tensors_file, "sha256": hashlib.sha256(blob).hexdigest()},
        "meta": meta,
    }
    try:
        text = json.dumps(record, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"meta must be plain JSON without NaN or infinity (write None instead): {error}"
        ) from error
    directory.mkdir(parents=True, exist_ok=True)
    waiting, draft = directory / f"{tensors_file}.new", directory / f"{meta_file}.new"
    _write(waiting, blob)
    _write(draft, text.encode())
    os.replace(draft, directory / meta_file)
    os.replace(waiting, directory / tensors_file)


def load_state(
    directory: str | os.PathLike[str], *, tensors_file: str = TENSORS_FILE, meta_file: str = META_FILE
) -> State:
    """Read what `save_state` wrote; tensors come back on the CPU.

    Raises:
        StateError: a file is missing, is no valid JSON, was written by a newer format, or the tensors do not
            have the sha256 that the JSON file names (half copied, or mixed from two states).
    """
    from safetensors.torch import load

    directory = Path(directory)
    record = _read_record(directory / meta_file)
    expected = record["tensors"]["sha256"]
    found = [path for path in (directory / tensors_file, directory / f"{tensors_file}.new") if path.is_file()]
    if not found:
        raise StateError(
            f"{directory / tensors_file} is missing: copy the whole directory, or fit and save again"
        )
    for path in found:
        blob = path.read_bytes()
        if hashlib.sha256(blob).hexdigest() == expected:
            return load(blob), record["meta"]
    raise StateError(
        f"{found[0]} does not have the checksum that {meta_file} names: it is half copied, or the two"
        " files come from different states; copy the whole directory again, or fit and save again"
    )


def _write(path: Path, blob: bytes) -> None:
    """Write through to the disk, so that a later rename never points at an empty file."""
    with open(path, "wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StateError(f"{path} is missing: give the directory that a fitted monitor was saved to")
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise StateError(f"{path} is not valid JSON ({error}): restore it, or fit and save again") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise StateError(f"{path} has no format_version: it was not written by save_state")
    if version > FORMAT_VERSION:
        raise StateError(
            f"{path} has format {version}, this version reads up to {FORMAT_VERSION}:"
            " upgrade reliability_hooks, or fit again"
        )
    tensors = record.get("tensors")
    if not isinstance(tensors, dict) or "sha256" not in tensors or not isinstance(record.get("meta"), dict):
        raise StateError(
            f"{path} is incomplete (needs tensors.sha256 and meta): restore it, or fit and save again"
        )
    return dict(record)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
