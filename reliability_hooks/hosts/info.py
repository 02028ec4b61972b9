"""What each host can give, said once: the table of the README is made from it, and the conformance test checks it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostInfo:
    """What a host gives of each kept box.

    Attributes:
        models: Kinds of models that it knows.
        beside: Where a user finds the answer, beside the detector's own output.
        licence: Of the framework.
        tested: The package and its versions that the tests run with, as pip writes it.
        logits: Class logits.
        features: The vector that the head classifies, or one that the box's raw row comes from.
        candidates: Boxes before suppression.
        masks: Instance masks, where the model makes them.
        gradients: Pixels can be looked at again with gradients, which explanations by gradients need; "partly" where
            the model itself cuts some off.
        tracks: Identities of tracks, where the model is asked to track.
    """

    models: str
    beside: str
    licence: str
    tested: str
    logits: bool = True
    features: bool = True
    candidates: bool = True
    masks: bool = True
    gradients: bool | str = True
    tracks: bool = False


GIVEN = ("logits", "features", "candidates", "masks", "gradients", "tracks")


@cache
def warn_untested(tested: str) -> None:
    """Says once that the version of a framework is none of `HostInfo.tested`; of one that is not installed, nothing."""
    wanted = Requirement(tested)
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return
    if not wanted.specifier.contains(found, prereleases=True):
        log.warning("%s %s is outside of the versions that the hooks are tested with (%s): compare a few results with "
                    "those of the bare model", wanted.name, found, wanted.specifier)


def table() -> str:
    """Markdown: a row for each host. `python -m reliability_hooks.hosts.info` prints it; no framework is imported."""
    from .base import HOSTS, host_class

    lines = [f"| host | models | {' | '.join(GIVEN)} | beside the output | licence |", "|---" * (len(GIVEN) + 4) + "|"]
    for name in HOSTS:
        info = host_class(name).info
        given = " | ".join({True: "yes", False: "no"}.get(value, value) for value in (getattr(info, k) for k in GIVEN))
        lines.append(f"| `{name}` | {info.models} | {given} | {info.beside} | {info.licence} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
