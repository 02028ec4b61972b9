"""Detectron2's demo with reliability: pictures coloured by it, and COCO results with every column beside the score.

`python tools/detectron2_predict.py --config-file configs/detectron2/mask_rcnn.yaml --input images/ --output out/
--opts MODEL.WEIGHTS model.pth`. The monitor is `MODEL.RELIABILITY.MONITOR` of the config, or `--monitor`; a LazyConfig
has it in its `with_reliability`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reliability_hooks import Monitor, attach
from reliability_hooks.cli.common import guarded, unique_stem
from reliability_hooks.detectron2 import attach_from_config
from reliability_hooks.export.coco import to_coco, write_json
from reliability_hooks.hosts.base import find_host, load
from reliability_hooks.images import find_images, read_image


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config-file", required=True, metavar="FILE", help="yaml or LazyConfig .py, or model_zoo:CONFIG")
    p.add_argument("--input", nargs="+", required=True, help="images, folders or glob patterns")
    p.add_argument("--output", default="runs/detectron2", help="folder of the results (default: %(default)s)")
    p.add_argument("--monitor", help="directory of a fitted monitor, instead of the config's")
    p.add_argument("--confidence-threshold", type=float, default=0.5, help="least score of what is shown")
    p.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    p.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
                   help="overrides of the config; KEY=VALUE for a LazyConfig")  # fmt: skip
    args = p.parse_args(argv)
    return guarded(lambda: predict(args), args.debug)


def predict(args: argparse.Namespace) -> int:
    """Write `OUTPUT/NAME.png` for each image and `OUTPUT/predictions.json`."""
    predictor = load(f"detectron2:{args.config_file}", opts=args.opts)
    from reliability_hooks.hosts.detectron2_visualizer import draw

    if args.monitor:
        attach(predictor.model, Monitor.load(args.monitor), input_format=predictor.input_format)
    elif predictor.cfg is not None:
        attach_from_config(predictor.model, predictor.cfg)
    out, names, taken = Path(args.output), find_host(predictor).class_names(), set[str]()
    rows = []
    for path in [file for given in args.input for file in find_images(given)]:
        image = read_image(path)
        found = predictor(np.ascontiguousarray(image[..., ::-1]))["instances"]
        found = found[found.scores >= args.confidence_threshold].to("cpu")
        _save(draw(image, found, predictor.metadata), out / f"{unique_stem(path, taken)}.png")
        rows += to_coco(found.evidence, path.stem, names)
    write_json(out / "predictions.json", rows)
    known = sorted(r["reliability"] for r in rows if r["reliability"] == r["reliability"])
    middle = f", median reliability {known[len(known) // 2]:.2f}" if known else "; no monitor: reliability is unknown"
    print(f"{len(rows)} detections{middle}; written: {out}/ (pictures, predictions.json)")
    return 0


def _save(picture: np.ndarray, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
