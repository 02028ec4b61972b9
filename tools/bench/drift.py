"""How soon is a change of the world noticed, without labels, and how often is there a false alarm?

Each stream draws a new order of the photographs: one half calibrates, the other half comes image by image, its first
third unchanged. Then it stays clean, or grows foggy step by step, or turns to night, or shows objects that the detector
has never seen. Nothing repeats within a stream and calibration and stream are disjoint, so that clean streams are
exchangeable and the promise on false alarms applies; streams share the pool of photographs. Delays are images from the
change to the alarm, medians over the streams without a false alarm before; without an alarm the delay is infinite.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import SHARED, arguments, finish, show
from rich.console import Console
from rich.progress import track

from reliability_hooks import Monitor, attach
from reliability_hooks.cli.collect import Collector
from reliability_hooks.config import Settings
from reliability_hooks.evaluation.datasets import GroundTruth, ImageRecord
from reliability_hooks.hook import Handle
from reliability_hooks.hosts.base import load
from reliability_hooks.instances import Instances
from reliability_hooks.reliability.drift import DriftState, DriftTest

SCORE_CUT = 0.1
NIGHT = 0.5
ALPHAS = (0.01, 0.05, 0.1)


@dataclass(frozen=True)
class Run:
    """What came of one stream: the state at its end."""

    change: int | None
    end: DriftState

    @property
    def false_alarm(self) -> bool:
        at = self.end.alarm_at
        return at is not None and (self.change is None or at < self.change)

    @property
    def delay(self) -> float:
        """Images from the first changed one to the alarm, 1 = at once; infinite without an alarm."""
        return np.inf if self.end.alarm_at is None or self.change is None else self.end.alarm_at - self.change + 1


def photographs(folder: Path, limit: int | None) -> list[ImageRecord]:
    """The images of a folder; no annotation is needed."""
    truth = GroundTruth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        raise SystemExit(f"no photographs in {folder}")
    order = np.random.default_rng(0).permutation(len(paths))[:limit]
    return [ImageRecord(str(paths[i]), paths[i], None, None, truth) for i in sorted(order)]


def detect(
    handle: Handle, records: Sequence[ImageRecord], condition: str, severity: float, cache: Path
) -> list[Instances]:
    """What the hooked detector finds on each image; kept in `cache`."""
    settings = Settings()
    settings = replace(
        settings,
        detector=replace(settings.detector, predict={"conf": SCORE_CUT}),
        data=replace(settings.data, severity=severity),
    )
    collector = Collector(handle, settings, cache)
    found = [i for _, i, _ in collector.collect([(record, condition) for record in records], Console(stderr=True))]
    if collector.failed:
        raise SystemExit("\n".join(collector.failed))
    return found


def simulate(
    clean: Sequence[Instances],
    changed: Sequence[Sequence[Instances]] | None,
    same_images: bool,
    seed: int,
    alpha: float,
    phrases: dict[str, tuple[str, str]],
) -> Run:
    """One stream. `changed`: the changed images for each step of severity, of the same photographs or of others."""
    rng = np.random.default_rng([seed, 17])
    order = rng.permutation(len(clean))
    calibration, rest = np.split(order, [len(clean) // 2])
    test = DriftTest.fit([clean[i] for i in calibration], alpha=alpha, phrases=phrases, seed=seed)
    change = None if changed is None else len(rest) // 3
    before, after = rest[:change], rest[len(rest) if change is None else change :]
    stream = [clean[i] for i in before]
    if changed is not None:
        picked = after if same_images else rng.permutation(len(changed[0]))
        step = np.arange(len(picked)) * len(changed) // len(picked)
        stream += [changed[s][i] for s, i in zip(step, picked, strict=True)]
    for image in stream:
        test.update(image)
    return Run(change, test.current())


def named(runs: Sequence[Run], top: int) -> str:
    """The signals named most often, with the share of the noticed streams that name them."""
    noticed = [r for r in runs if r.end.alarm and not r.false_alarm]
    counts = Counter((m.signal, m.direction) for r in noticed for m in r.end.moved)
    return ", ".join(f"{s} {d} {k / len(noticed):.0%}" for (s, d), k in counts.most_common(top))


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927)."""
    centre, spread = k + z * z / 2, z * np.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, float((centre - spread) / (n + z * z))), float((centre + spread) / (n + z * z))


def main() -> None:
    args = arguments(
        __doc__,
        detector={"default": str(SHARED / "weights/yolov8n.pt")},
        data={"type": Path, "default": SHARED / "data/coco/val2017", "help": "directory of usual photographs"},
        ood={"nargs": "+", "type": Path, "default": [SHARED / "data/ood/raccoon", SHARED / "data/ood/bccd"],
             "help": "directories of photographs of new objects"},
        alpha={"type": float, "default": 0.01, "help": "promised chance of ever raising a false alarm"},
        streams={"type": int, "default": 200, "help": "streams of each kind"},
        cache={"type": Path, "default": Path(tempfile.gettempdir()) / "reliability_hooks_bench"},
    )
    limit, streams, fog = None, args.streams, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    if args.quick:
        limit, streams, fog = 50, min(streams, 40), (0.3, 0.7)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    monitor = Monitor()
    phrases = {name: words for signal in monitor.signals for name, words in signal.columns.items()}
    records = photographs(args.data, limit)
    unseen = {folder.name: photographs(folder, len(records) // 2) for folder in args.ood}
    with attach(load(args.detector), monitor, strict=True) as handle:
        clean = detect(handle, records, "clean", NIGHT, args.cache)
        scenes: dict[str, tuple[list[list[Instances]] | None, bool]] = {
            "clean": (None, True),
            "fog": ([detect(handle, records, "fog", s, args.cache) for s in fog], True),
            "night": ([detect(handle, records, "low_light", NIGHT, args.cache)], True),
            **{f"new_objects_{name}": ([detect(handle, others, "clean", NIGHT, args.cache)], False)
               for name, others in unseen.items()},
        }

    table, figures = [], {}
    for name, (changed, same) in scenes.items():
        runs = [
            simulate(clean, changed, same, seed, args.alpha, phrases)
            for seed in track(range(streams), name, console=Console(stderr=True))
        ]
        valid = [r for r in runs if not r.false_alarm]
        row: dict[str, object] = {"stream": name, "false_alarms": len(runs) - len(valid)}
        if changed is None:
            rates = {alpha: sum(r.end.p_value <= alpha for r in runs) for alpha in (args.alpha, *ALPHAS)}
            low, high = wilson(rates[args.alpha], streams)
            figures |= {"false_alarm_rate": rates[args.alpha] / streams,
                        "false_alarm_rate_low": low, "false_alarm_rate_high": high}
            figures |= {f"false_alarm_rate_alpha_{alpha:g}": rates[alpha] / streams for alpha in ALPHAS}
        else:
            delay = np.array([r.delay for r in valid])
            seen = [r for r in valid if r.end.alarm]
            figures[f"detected_share_{name}"] = len(seen) / len(valid)
            if np.isfinite(median := float(np.median(delay))):
                figures[f"delay_images_{name}"] = median
                lower, upper = np.quantile(delay, [0.1, 0.9], method="nearest")
                off = [abs(r.end.since - r.change) for r in seen if r.end.since is not None and r.change is not None]
                row |= {"delay": median, "delay_10": float(lower), "delay_90": float(upper),
                        "change_point_error": float(np.median(off))}
            row |= {"detected": len(seen) / len(valid), "named": named(runs, 4)}
            if seen:
                print(f"{name}, for example: {replace(seen[0].end, moved=seen[0].end.moved[:4])}")
        table.append({key: None if value == np.inf else value for key, value in row.items()})
    columns = ["stream", "false_alarms", "detected", "delay", "delay_10", "delay_90", "change_point_error", "named"]
    show(f"{streams} streams of each kind, alpha = {args.alpha:g}", columns,
         [["" if row.get(c) is None else row[c] for c in columns] for row in table])
    n = len(records)
    protocol = {
        "detector": Path(args.detector).name, "data": str(args.data), "images": n, "calibration_images": n // 2,
        "stream_images": n - n // 2, "change_at": (n - n // 2) // 3, "streams": streams, "alpha": args.alpha,
        "fog_severities": list(fog), "night_severity": NIGHT, "score_cut": SCORE_CUT,
        "signals": list(DriftTest.fit(clean, phrases=phrases).signals),
        "new_objects": {name: len(others) for name, others in unseen.items()},
        "resampling": "permutation: no image twice in a stream, calibration and stream disjoint",
        "delay": "images from the first changed one to the alarm, median; no alarm = infinite",
    }
    finish(args, protocol, table, figures)


if __name__ == "__main__":
    main()
