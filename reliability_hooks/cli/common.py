"""What the commands share: arguments -> settings, settings -> detector and monitor, errors in one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from ..config import Settings, load_settings
from ..hosts.base import load
from ..hosts.torchvision_demo import MONITOR
from ..monitor import Monitor
from ..reliability.judge import Terms
from ..signals.base import create
from ..signals.condition import Condition

T = TypeVar("T")

FLAGS = {
    "detector": ("detector.weights", "weights file (YOLO .pt), HOST:SPEC as torchvision:fasterrcnn_...:w.pth, or demo"),
    "host": ("detector.host", "framework of the detector, where its file does not tell"),
    "device": ("detector.device", "cpu, cuda, cuda:1 ..."),
    "conf": ("detector.predict.conf", "score cut of the detector"),
    "batch": ("batch", "images in one call of the detector"),
    "monitor": ("monitor.path", "directory of a fitted monitor, or demo: that of the embedded detector"),
    "images": ("data.images", "directory of labelled images"),
    "annotations": ("data.annotations", "their COCO instances.json"),
    "conditions": ("data.conditions", "`all`, or comma-separated: clean,blur,noise,low_light,..."),
}


def parser(prog: str, description: str, flags: Sequence[str]) -> argparse.ArgumentParser:
    """A parser with the given settings as flags, `--config-file` and trailing `KEY VALUE` overrides."""
    p = argparse.ArgumentParser(
        prog=prog, description=description, epilog="KEY VALUE pairs override any setting: detector.predict.imgsz 320"
    )
    p.add_argument("--config-file", metavar="YAML", help="settings; see configs/")
    for flag in flags:
        p.add_argument(f"--{flag}", metavar=flag.upper(), help=FLAGS[flag][1])
    p.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return p


def settings_of(args: argparse.Namespace, opts: Sequence[str]) -> Settings:
    """The config file, then flags, then overrides."""
    chosen = [(f, getattr(args, f)) for f in FLAGS if getattr(args, f, None) is not None]
    pairs = [x for f, value in chosen for x in (FLAGS[f][0], f"[{value}]" if f == "conditions" else value)]
    settings = load_settings(args.config_file, [*pairs, *opts])
    if settings.monitor.path == "demo":
        settings = replace(settings, monitor=replace(settings.monitor, path=str(MONITOR)))
    return settings


def guarded(run: Callable[[], int], debug: bool) -> int:
    """Run a command; what a user can mend is one line on stderr and status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    os.environ.setdefault("YOLO_OFFLINE", "true")  # a command never looks things up on the network by itself
    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, TypeError) as e:
        if debug:
            raise
        print(f"error: {e}", file=sys.stderr)
        return 2


def open_detector(settings: Settings) -> Any:
    """The detector that the settings name."""
    d = settings.detector
    if d.weights is None:
        raise ValueError("which detector? give --detector WEIGHTS (or detector.weights in the config)")
    model = load(d.weights, d.host, **d.load)
    return model if d.device is None else model.to(d.device)


def new_monitor(settings: Settings) -> Monitor:
    """An unfitted monitor as the settings say."""
    m = settings.monitor
    terms = {name: getattr(m, name) for name in Terms.__dataclass_fields__ if name != "seed"}
    signals = [Condition(m.conditions) if s.name == Condition.name else s for s in create(m.signals)]
    return Monitor(signals, clip=m.clip, **terms, seed=settings.seed)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    if size < 1:
        raise ValueError(f"batch must be at least 1, not {size}")
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def terminal() -> Console:
    """Where a command prints; wide enough for its tables where there is no window to fit."""
    return Console(width=None if sys.stdout.isatty() else 140)


def unique_stem(path: Path, taken: set[str]) -> str:
    """A file stem for results of `path` that no other has got."""
    stem, k = path.stem, 1
    while stem in taken:
        k += 1
        stem = f"{path.stem}-{k}"
    taken.add(stem)
    return stem
