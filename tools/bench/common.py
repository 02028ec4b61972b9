"""The form that all benchmarks share: arguments, a readable table, `--json` with protocol, table and figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

os.environ.setdefault("YOLO_OFFLINE", "true")
SHARED = Path(__file__).resolve().parents[3] / "shared"


def arguments(description: str | None, **extra: dict[str, Any]) -> argparse.Namespace:
    """`--json`, `--quick`, and the benchmark's own."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--json", type=Path, metavar="FILE", help="write protocol, table and figures")
    p.add_argument("--quick", action="store_true", help="the same figures from less data, in under a minute")
    for name, options in extra.items():
        p.add_argument(f"--{name.replace('_', '-')}", **options)
    return p.parse_args()


def machine() -> dict[str, Any]:
    """What the timings were taken on."""
    import torch

    cpu = platform.processor() or platform.machine()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu}


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on the terminal."""
    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row))
    Console(width=150).print(table)


def finish(
    args: argparse.Namespace, protocol: dict[str, Any], table: list[dict[str, Any]], figures: dict[str, float]
) -> None:
    """Print the figures and write the file."""
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"protocol": protocol, "table": table, "figures": figures}, indent=1))
