"""Standing around methods of somebody's object without a trace in it: not in its attributes, copies or pickles.

While anybody stands there, the object's class is a subclass of the same name; copies and pickles get the class itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Stand = Callable[[str, Callable[[], Any], Mapping[str, Any]], Any]
"""(name of the method, the call itself, its arguments by name) -> what is returned to the caller."""


class Around:
    """Stands around some methods of an object until it is removed; one at a time.

    Args:
        target: The object.
        names: Its methods; those that it lacks are passed over.
        stand: Calls, and returns what was returned.
        properties: Name -> what it gives; readable on the object meanwhile.

    Raises:
        RuntimeError: Somebody stands there already.
    """

    def __init__(
        self, target: Any, names: Sequence[str], stand: Stand, properties: Mapping[str, Callable[[], Any]]
    ) -> None:
        if hasattr(type(target), "_reliability_bare"):
            raise RuntimeError(f"this {type(target).__name__} is hooked already; remove the other handle first")
        self.target = target
        target.__class__ = _subclass(type(target), names, stand, properties)

    def remove(self) -> None:
        """Give the object its class back. Nothing happens the second time."""
        self.target.__class__ = getattr(type(self.target), "_reliability_bare", type(self.target))


def _subclass(cls: type, names: Sequence[str], stand: Stand, properties: Mapping[str, Callable[[], Any]]) -> type:
    def around(name: str) -> Callable[..., Any]:
        method = getattr(cls, name)
        signature = inspect.signature(method)

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(self, *args, **kwargs)  # a wrong call fails as it would without us: TypeError
            bound.apply_defaults()
            return stand(name, functools.partial(method, self, *args, **kwargs), bound.arguments)

        return call

    def bare(self: Any, protocol: Any) -> Any:
        reduce: Any = cls.__reduce_ex__
        made = reduce(self, max(int(protocol), 2))
        return object.__new__, (cls, *made[1][1:]), *made[2:]

    body: dict[str, Any] = {name: around(name) for name in names if callable(getattr(cls, name, None))}
    body |= {name: property(lambda self, give=give: give()) for name, give in properties.items()}  # type: ignore[misc]
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**own, **body, "__reduce_ex__": bare, "_reliability_bare": cls})
