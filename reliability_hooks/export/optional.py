"""Packages that only some exports and hosts need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(package: str, extra: str) -> Any:
    """The package, imported.

    Raises:
        ImportError: It is not installed; the message names the extra that installs it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as e:
        if e.name is not None and e.name.partition(".")[0] != package.partition(".")[0]:
            raise  # it is there, and lacks something itself
        raise ImportError(f"this needs {package}: pip install 'reliability_hooks[{extra}]'") from e
