"""What do the hooks cost on models of ordinary size, and does memory grow over 500 images? For each host.

Overhead: CPU seconds of one call hooked over bare, in turn on the same photograph, untrained models of the framework's
own architecture, some 20 detections, signals without CLIP. `overhead.py` has ultralytics and torchvision. Memory: the
small models of the conformance test, resident memory and living tensors after 100 images and at the end.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, arguments, finish, machine, show
from overhead import resident_mb
from rich.progress import track

from reliability_hooks import Monitor, attach
from reliability_hooks.images import read_image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
KEPT = 20
Run = Callable[[np.ndarray], Any]


def rt_detr() -> tuple[Any, dict[str, Any], Run]:
    """Model, what `attach` needs beside it, one call."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor

    torch.manual_seed(0)
    model, processor = RTDetrForObjectDetection(RTDetrConfig()).eval(), RTDetrImageProcessor()

    def run(image: np.ndarray) -> Any:
        outputs = model(**processor(images=image, return_tensors="pt"))
        threshold = float(outputs.logits.sigmoid().flatten().topk(KEPT + 1).values[-1])
        return processor.post_process_object_detection(outputs, threshold, [image.shape[:2]])

    return model, {"processor": processor}, run


def mask_rcnn() -> tuple[Any, dict[str, Any], Run]:
    """Detectron2's, ResNet-50 FPN at 800 pixels."""
    from detectron2.modeling import build_model

    from reliability_hooks.detectron2 import load_config
    from reliability_hooks.hosts.detectron2_names import as_input
    from tests.hosts.spread import spread

    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "TEST.DETECTIONS_PER_IMAGE", KEPT]
    cfg = load_config("model_zoo:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", opts)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    spread(model, [as_input(photographs(1)[0], "BGR", 200, 333)])
    return model, {}, lambda image: model([as_input(image, "BGR", 800, 1333)])


def sam() -> tuple[Any, dict[str, Any], Run]:
    """ViT-B of segment_anything, an image and ten boxes."""
    from segment_anything import SamPredictor, sam_model_registry

    torch.manual_seed(0)
    predictor = SamPredictor(sam_model_registry["vit_b"]().eval())

    def run(image: np.ndarray) -> Any:
        predictor.set_image(image)
        h, w = image.shape[:2]
        return [predictor.predict(box=np.array([k * w / 12, h / 8, (k + 2) * w / 12, h / 2])) for k in range(10)]

    return predictor, {}, run


MODELS = {
    "transformers": ("RT-DETR R50, 640", rt_detr, "cheap"),
    "detectron2": ("Mask R-CNN R50 FPN, 800", mask_rcnn, "cheap"),
    "segment_anything": ("SAM ViT-B, 1024, ten boxes one by one", sam, "cheap"),
    "segment_anything, five passes of the decoder more": ("the same", sam, "sam"),
}


def photographs(count: int) -> list[np.ndarray]:
    """Of val2017."""
    return [read_image(p) for p in sorted((SHARED / "data/coco/val2017").glob("*.jpg"))[:count]]


def overhead(build: Callable[[], tuple[Any, dict[str, Any], Run]], preset: str, rounds: int) -> tuple[float, float]:
    """CPU seconds of the bare call, and the median of the ratios of pairs."""
    model, options, run = build()
    images, pairs = photographs(4), []
    with torch.inference_mode():
        run(images[0])
        for k in track(range(rounds), "pairs"):
            image, seconds = images[k % len(images)], []
            for hooked in (False, True):
                handle = attach(model, Monitor([preset]), strict=True, **options) if hooked else None
                start = time.process_time()
                run(image)
                seconds.append(time.process_time() - start)
                if handle is not None:
                    handle.remove()
            pairs.append(seconds)
    return statistics.median(a for a, _ in pairs), statistics.median(b / a for a, b in pairs)


def growth(case: Any, images: int) -> tuple[float, int]:
    """Megabytes and tensors more at the end than after the first 100 images."""
    model = case.build(SHARED)
    shown = [np.ascontiguousarray(image[:120, :168]) for image in photographs(8)]

    def alive() -> int:
        gc.collect()
        return sum(n for kind, n in Counter(map(type, gc.get_objects())).items() if issubclass(kind, torch.Tensor))

    with torch.no_grad(), attach(model, Monitor(), strict=True):
        before = (0.0, 0)
        for k in track(range(images), case.name):
            case.run(model, [shown[k % len(shown)]])
            if k == min(100, images // 5):
                before = resident_mb(), alive()
        return resident_mb() - before[0], alive() - before[1]


def cases() -> Iterator[Any]:
    """The first conformance case of each host whose framework is here."""
    from tests.hosts import detectron2_cases, segment_anything_cases, torchvision_cases, transformers_cases
    from tests.hosts import ultralytics_cases as yolo

    seen = set()
    for module in (torchvision_cases, yolo, transformers_cases, detectron2_cases, segment_anything_cases):
        for case in module.CASES:
            host = case.name.partition("/")[0]
            if host not in seen and find_spec(host) is not None:
                seen.add(host)
                yield case


def main() -> None:
    args = arguments(__doc__, rounds={"type": int, "default": 7}, images={"type": int, "default": 500})
    torch.set_num_threads(1)
    rounds, images = (1, 60) if args.quick else (args.rounds, args.images)
    table, figures = [], {}
    for host, (name, build, preset) in MODELS.items():
        package = host.partition(",")[0]
        if find_spec(package) is not None:
            seconds, ratio = overhead(build, preset, rounds)
            table.append({"host": host, "model": name, "preset": preset, "bare_seconds": seconds, "ratio": ratio})
            figures[f"overhead_ratio_{package}_{preset}"] = ratio
    for case in cases():
        megabytes, tensors = growth(case, images)
        key = case.name.partition("/")[0]
        figures |= {f"growth_mb_{key}": megabytes, f"growth_tensors_{key}": float(tensors)}
    show("hooked / bare, CPU seconds of one thread", list(table[0]), [list(r.values()) for r in table])
    finish(args, {"rounds": rounds, "images": images, "detections": KEPT, **machine()}, table, figures)


if __name__ == "__main__":
    main()
