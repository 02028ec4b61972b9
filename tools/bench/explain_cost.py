"""What do maps of all objects of one picture cost? One mask set for all against D-RISE for each object on its own.

One photograph of val2017 with at least `--objects` detections at 640 pixels, the default budget. The alternative is
what users of D-RISE write: one object after the other, each with masks of its own. `--some` of its objects are timed,
and the time is scaled to all of them. Memory is the peak of a process of its own, less that before.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from common import SHARED, arguments, finish, machine, show
from matching import _memory_mb, _reset_peak_mb, apart

from reliability_hooks import Monitor, attach
from reliability_hooks.explain.explainer import EVIDENCE, explain_frame
from reliability_hooks.images import read_image

BUDGET = 256


def picture(handle: Any, images: Path, objects: int, size: int) -> Any:
    """The first photograph with so many detections."""
    for path in sorted(images.glob("*.jpg")):
        image = read_image(path)
        if len(handle.predict([image], imgsz=size, conf=0.25)[0]) >= objects:
            return image
    raise SystemExit(f"no photograph with {objects} detections in {images}")


def cost(detector: str, images: Path, method: str, objects: int, each: int, budget: int, size: int) -> dict[str, float]:
    """Seconds and memory of the maps of `objects` instances, `each` of them at a time."""
    from ultralytics import YOLO

    with attach(YOLO(detector), Monitor([]), strict=True) as handle:
        image = picture(handle, images, objects, size)
        with handle.frames(*EVIDENCE) as frames:
            handle.predict([image], imgsz=size, conf=0.25)
            frame = frames[0]
            before, start, passes = _reset_peak_mb(), time.perf_counter(), 0
            for k in range(0, objects, each):
                passes += explain_frame(frame, torch.arange(k, k + each), method=method, budget=budget).passes
            seconds = time.perf_counter() - start
    return {"seconds": seconds, "passes": float(passes), "peak_mb": _memory_mb("VmHWM") - before}


def main() -> None:
    args = arguments(
        __doc__, detector={"default": str(SHARED / "weights/yolo11n-seg.pt")},
        images={"type": Path, "default": SHARED / "data/coco/val2017"},
        objects={"type": int, "default": 10}, some={"type": int, "default": 2, "help": "objects of the loop, timed"},
    )
    size, budget = (320, 32) if args.quick else (640, BUDGET)
    rows: list[dict[str, Any]] = []
    for method in ("bayes", "drise"):
        together = apart(cost, args.detector, args.images, method, args.objects, args.objects, budget, size)
        rows.append({"method": f"{method}, all at once", **together})
    alone = apart(cost, args.detector, args.images, "drise", args.some, 1, budget, size)
    share = args.objects / args.some
    rows.append({"method": "drise, one by one", "seconds": alone["seconds"] * share, "passes": alone["passes"] * share,
                 "peak_mb": alone["peak_mb"]})
    show(f"{args.objects} objects, {size} pixels, budget {budget}", list(rows[0]), [list(r.values()) for r in rows])
    figures = {"seconds_10": rows[0]["seconds"], "peak_mb_10": rows[0]["peak_mb"],
               "speedup_over_loop": rows[2]["seconds"] / rows[0]["seconds"]}
    finish(args, {"imgsz": size, "budget": budget, "objects": args.objects, "loop": f"{args.some} timed, scaled",
                  **machine()}, rows, figures)  # fmt: skip


if __name__ == "__main__":
    main()
