"""reliability_hooks: knowing, object by object, when not to trust a detector.

Nothing heavy is imported here; each public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hook import Handle, attach
    from .instances import Instances
    from .monitor import Monitor

__version__ = "0.1.0"
__all__ = ["Handle", "Instances", "Monitor", "__version__", "attach"]

_HOMES = {"attach": "hook", "Handle": "hook", "Monitor": "monitor", "Instances": "instances"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
