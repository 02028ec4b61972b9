"""Detectron2's evaluation with reliability: AP as ever, and how good the reliability is beside the detector's score.

`python tools/detectron2_eval.py --config-file configs/detectron2/mask_rcnn.yaml --opts MODEL.WEIGHTS model.pth
DATASETS.TEST "('my_val',)"`; `--dataset NAME JSON IMAGES` registers a COCO data set first. Files go to OUTPUT_DIR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reliability_hooks.cli.common import guarded
from reliability_hooks.detectron2 import ReliabilityEvaluator, build_reliable_model, load_config

SHOWN = ("d_ece", "brier", "auroc", "augrc")


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config-file", required=True, metavar="FILE", help="yaml, or model_zoo:CONFIG")
    p.add_argument("--dataset", nargs=3, action="append", default=[], metavar=("NAME", "JSON", "IMAGES"),
                   help="a COCO data set to register")  # fmt: skip
    p.add_argument("--output", help="folder of the results (default: OUTPUT_DIR of the config)")
    p.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    p.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="overrides of the config")
    args = p.parse_args(argv)
    return guarded(lambda: evaluate(args), args.debug)


def evaluate(args: argparse.Namespace) -> int:
    """Write `inference/DATASET/` with Detectron2's files, `reliability_instances_results.json` and its metrics."""
    cfg = load_config(args.config_file, args.opts)
    import torch
    from detectron2.data import build_detection_test_loader
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator, inference_on_dataset

    for name, file, images in args.dataset:
        register_coco_instances(name, {}, file, images)
    if not cfg.DATASETS.TEST:
        raise ValueError("which data set? --opts DATASETS.TEST \"('NAME',)\"")
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = build_reliable_model(cfg)
    for name in cfg.DATASETS.TEST:
        out = Path(args.output or cfg.OUTPUT_DIR) / "inference" / name
        out.mkdir(parents=True, exist_ok=True)
        evaluators = [COCOEvaluator(name, output_dir=str(out)), ReliabilityEvaluator(name, out)]
        results = inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluators)
        for task, line in results.items():
            chosen = SHOWN if task in ("reliability", "confidence") else ("AP", "AP50")
            print(f"{name} {task}: " + ", ".join(f"{m} {line[m]:.3f}" for m in chosen if m in line))
        print(f"written: {out}/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
