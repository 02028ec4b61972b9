"""`reliability-hooks COMMAND ...`; each command lives in a file of its own and is imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

COMMANDS = {
    "demo": "the embedded detector on packaged photographs and what can befall them: a page to look at",
    "predict": "detect, score every object, write annotated pictures and predictions.json",
    "calibrate": "fit a monitor for a detector on labelled images",
    "evaluate": "judge a monitor on labelled images that it was not fitted on",
    "explain": "show what the box, the mask and the reliability of each object rest on",
    "weak-spots": "what goes wrong over a labelled data set, and why, ranked, with pictures",
    "evaluate-ood": "compare out-of-distribution scores on images of unknown objects",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from .. import __version__

        print(f"reliability_hooks {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        print(f"unknown command {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""), file=sys.stderr)
        print(usage(), file=sys.stderr)
        return 2
    status: int = import_module(f".{name.replace('-', '_')}", __package__).main(rest)
    return status


def usage() -> str:
    """The commands, a line each."""
    lines = [f"  {name:12} {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: reliability-hooks COMMAND ...   (COMMAND --help says more)", "", *lines])
