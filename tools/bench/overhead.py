"""What does the hook cost? A detector alone against the same detector with a fitted monitor, the two in turn."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, arguments, finish, machine, show
from rich.progress import track

from reliability_hooks import Monitor, attach
from reliability_hooks.cli.collect import label_names
from reliability_hooks.evaluation.datasets import read_coco
from reliability_hooks.hosts.base import find_host, load
from reliability_hooks.images import read_image


def cases(quick: bool) -> list[tuple[str, str, Any, dict[str, Any]]]:
    """(host, model name, model, options of its call)."""
    from torchvision.models import detection

    yolo = ("yolo11n-seg.pt", "yolov8n.pt")
    out = [("ultralytics", weights, load(str(SHARED / "weights" / weights)), {}) for weights in yolo]
    names = ["fasterrcnn_mobilenet_v3_large_320_fpn"] + ([] if quick else ["maskrcnn_resnet50_fpn"])
    for name in names:
        torch.manual_seed(0)
        options = {"weights": None, "weights_backbone": None, "box_detections_per_img": 20, "box_score_thresh": 0.0}
        model = getattr(detection, name)(**options).eval()
        out.append(("torchvision", f"{name} (random weights, 20 detections)", model, {}))
    return out


def fitted(model: Any, images: Sequence[np.ndarray], options: dict[str, Any], dataset: Any) -> Monitor:
    """A monitor with every default signal, fitted on what the detector finds here."""
    monitor = Monitor()
    with attach(model, monitor, strict=True) as handle:
        found = [i.cpu() for image in images for i in handle.predict([image], **options)]
    truths = [record.truth for record in dataset]
    monitor.fit(list(zip(found, truths[: len(found)], strict=True)), fingerprint=find_host(model).fingerprint())
    return monitor


def in_turn(alone: Callable[[], Any], model: Any, monitor: Monitor, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each call without and with the hook."""
    times: tuple[list[float], list[float]] = ([], [])
    alone()
    for _ in range(rounds):
        for which in (0, 1):
            handle = attach(model, monitor, strict=True) if which else None
            alone() if which else None  # hooks are put on the network at the first call
            start = time.perf_counter()
            alone()
            times[which].append(time.perf_counter() - start)
            if handle:
                handle.remove()
    return times


def main() -> None:
    args = arguments(__doc__, rounds={"type": int, "default": 12}, threads={"type": int, "default": 2})
    torch.set_num_threads(args.threads)
    rounds = args.rounds
    table, figures = [], {}
    for host, name, model, options in cases(args.quick):
        adapter = find_host(model)
        dataset = read_coco(SHARED / "data/coco/instances_val2017.json", SHARED / "data/coco/val2017",
                            label_names(adapter.class_names()))
        images = [read_image(record.path) for record in dataset.images[: 24 if args.quick else 40]]
        monitor = fitted(model, images, options, dataset)
        for batch in (1,) if "resnet50" in name else (1, 8):
            picks = [images[i : i + batch] for i in range(0, len(images) - batch + 1, batch)]
            ratios, alone_ms = [], []
            count = max(3, rounds // batch) if args.quick else rounds
            for k in track(range(count), f"{name} batch {batch}"):
                call = caller(host, model, picks[k % len(picks)], options)
                alone, hooked = in_turn(call, model, monitor, 1)
                alone_ms.append(1000 * alone[0])
                ratios.append((alone[0], hooked[0]))
            ratio = statistics.median(h for _, h in ratios) / statistics.median(a for a, _ in ratios)
            paired = statistics.median(h / a for a, h in ratios)
            table.append({"host": host, "model": name, "batch": batch, "alone_ms": statistics.median(alone_ms),
                          "ratio_of_medians": ratio, "median_of_ratios": paired})
            key = f"overhead_ratio_{host}_b{batch}"
            figures[key] = max(figures.get(key, 0.0), paired)  # the worst model of a host counts
    figures["memory_growth_mb_500"] = memory_growth(100 if args.quick else 500)
    show("detector + hook / detector", list(table[0]), [list(r.values()) for r in table])
    note = "median of the ratios of pairs on the same images, alone and hooked in turn"
    finish(args, {"rounds": rounds, **machine(), "note": note}, table, figures)


def caller(host: str, model: Any, images: Sequence[np.ndarray], options: dict[str, Any]) -> Callable[[], Any]:
    """The detector's own call, as its users write it."""
    if host == "ultralytics":
        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        return lambda: model.predict(bgr, verbose=False, **options)
    tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]

    def call() -> Any:
        with torch.inference_mode():
            return model(tensors)

    return call


def memory_growth(count: int) -> float:
    """MB by which the process grew over `count` images with the hook on, after a warm-up."""
    model = load(str(SHARED / "weights/yolov8n.pt"))
    images = [read_image(p) for p in sorted((SHARED / "data/coco/val2017").glob("*.jpg"))[:20]]
    with attach(model, Monitor(), strict=True) as handle:
        def run(n: int) -> None:
            for i in range(n):
                handle.predict([images[i % len(images)]], imgsz=320)

        run(40)
        gc.collect()
        before = resident_mb()
        run(count)
        gc.collect()
        return resident_mb() - before


def resident_mb() -> float:
    """Resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
