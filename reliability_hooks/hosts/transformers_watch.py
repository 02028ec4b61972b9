"""Listening to methods of somebody's object without a trace in it: not in its attributes, copies, pickles or JSON.

A processor writes its attributes to JSON when it is saved, so that a patched method must not be one of them. While
anybody listens, the object's class is a subclass of the same name; copies and pickles get the class itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Listener = Callable[[str, Mapping[str, Any], Any], Any]
"""(name of the method, its arguments by name, what it returned) -> what is returned instead, or None."""
_LISTENERS = "_reliability_listeners"


class Listening:
    """A listener on some methods of an object; several may share an object, and leave it in any order."""

    def __init__(self, target: Any, names: Sequence[str], listener: Listener) -> None:
        self.target, self.listener = target, listener
        if not hasattr(type(target), _LISTENERS):
            target.__class__ = _subclass(type(target), names)
        getattr(type(target), _LISTENERS).append(listener)

    def remove(self) -> None:
        """Stop; the last one to leave gives the object its class back. Nothing happens the second time."""
        listeners = getattr(type(self.target), _LISTENERS, [])
        left = [entry for entry in listeners if entry is not self.listener]
        if listeners and not left:
            self.target.__class__ = type(self.target).__bases__[0]
        listeners[:] = left


def _subclass(cls: type, names: Sequence[str]) -> type:
    listeners: list[Listener] = []

    def heard(name: str) -> Callable[..., Any]:
        method = getattr(cls, name)
        signature = inspect.signature(method)

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = method(self, *args, **kwargs)
            given = signature.bind(self, *args, **kwargs).arguments
            for listener in tuple(listeners):
                instead = listener(name, given, result)
                result = result if instead is None else instead
            return result

        return call

    def bare(self: Any, protocol: Any) -> Any:
        reduce: Any = cls.__reduce_ex__
        made = reduce(self, max(int(protocol), 2))
        return object.__new__, (cls, *made[1][1:]), *made[2:]

    body: dict[str, Any] = {name: heard(name) for name in names if callable(getattr(cls, name, None))}
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**own, **body, "__reduce_ex__": bare, _LISTENERS: listeners})
