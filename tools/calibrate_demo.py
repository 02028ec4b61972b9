"""Calibrate the monitor of the embedded detector on two thirds of COCO val2017, and test it on the rest.

    python tools/calibrate_demo.py --coco ../shared/data/coco

writes `reliability_hooks/assets/demo-detector/monitor/`, with the figures of both in its card. Resumable.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from reliability_hooks.cli.calibrate import main as calibrate
from reliability_hooks.cli.card import table
from reliability_hooks.cli.evaluate import main as evaluate
from reliability_hooks.hosts.torchvision_demo import MONITOR, SCORE_THRESH

FIT = 2 / 3
SHOWN = ("d_ece", "brier", "auroc", "augrc")
FILES = ("monitor.json", "state.safetensors", "report.json", "CARD.md")


def split(annotations: Path, work: Path, seed: int) -> list[Path]:
    """Two annotation files: photographs to fit on, photographs to test on."""
    whole = json.loads(annotations.read_text(encoding="utf-8"))
    order = np.random.default_rng(seed).permutation(len(whole["images"]))
    cut = round(FIT * len(order))
    work.mkdir(parents=True, exist_ok=True)
    files = []
    for name, chosen in (("fit", order[:cut]), ("test", order[cut:])):
        images = [whole["images"][k] for k in sorted(chosen)]
        ids = {image["id"] for image in images}
        part = {**whole, "images": images, "annotations": [a for a in whole["annotations"] if a["image_id"] in ids]}
        files.append(work / f"{name}.json")
        files[-1].write_text(json.dumps(part), encoding="utf-8")
    return files


def tested(work: Path) -> str:
    """What `evaluate` has found, for the card."""
    found = json.loads((work / "test/evaluation.json").read_text(encoding="utf-8"))

    def cell(e: dict[str, float]) -> str:
        return f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"

    metrics = table(["", *(n.replace("_", "-").upper() for n in SHOWN)],
                    [[row, *(cell(line[n]) for n in SHOWN)] for row, line in found["metrics"].items()])  # fmt: skip
    conditions = table(["condition", "D-ECE of the score", "D-ECE of the reliability"],
                       [[c, cell(line["score"]), cell(line["reliability"])]
                        for c, line in found["conditions"].items()])  # fmt: skip
    return "\n".join(["", "## On photographs that it was not fitted on", "", *metrics, "", *conditions, ""])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--coco", type=Path, default=Path("../shared/data/coco"))
    p.add_argument("--work", type=Path, default=Path("runs/demo-monitor"))
    p.add_argument("--signals", default="[full, clip]")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    fit, test = split(args.coco / "instances_val2017.json", args.work, args.seed)
    common = ["--detector", "demo", "--images", str(args.coco / "val2017"), "--conditions", "all",
              "detector.load.score_thresh", str(SCORE_THRESH)]  # fmt: skip
    monitor = args.work / "monitor"
    terms = ["monitor.signals", args.signals]
    if calibrate([*common, "--annotations", str(fit), "--out", str(monitor), *terms]):
        raise SystemExit("calibration failed")
    if evaluate([*common, "--annotations", str(test), "--monitor", str(monitor), "--out", str(args.work / "test")]):
        raise SystemExit("evaluation failed")
    MONITOR.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(monitor / name, MONITOR / name)
    with (MONITOR / "CARD.md").open("a", encoding="utf-8") as card:
        card.write(tested(args.work))
    print(f"written: {MONITOR}")


if __name__ == "__main__":
    main()
