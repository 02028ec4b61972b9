"""Which map of an instance is the most faithful, and what does it cost?

COCO val2017 photographs, one detector at a time; whatever settings were chosen on is train2017. Every method explains
the joint target of the same instances, of at least `--conf`, in photographs brought to `--imgsz`. Its map is judged by
a fill that no method used: area-scaled OA (pixels up to twice the object's area), full OA, both of the joint score, of
the class and of box or mask alone. D-RISE as tuned, with 1,000 masks, is what the others are compared with, paired over
photographs.

What was scored is kept in `--cache` by photograph and method, so that a run can be stopped and taken up again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from common import SHARED, arguments, finish, machine, show
from explain_cues import cue_share
from explain_frames import detector, frames
from explain_scores import FILL, STEPS, Recorder, Scorer
from explain_timing import gradient_cost, timed
from rich.progress import track

from reliability_hooks import Monitor, attach
from reliability_hooks.evaluation.faithfulness_summary import faithfulness_summary
from reliability_hooks.explain.explainer import explain_frame
from reliability_hooks.frame import Frame
from reliability_hooks.hook import Handle

TUNED = {"grid": 16, "p": 0.5, "fill": "blur"}
"""Of D-RISE, chosen on train2017."""
BUDGET = 200
LONG = 1000
METHODS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "D-RISE 1000": ("drise", LONG, TUNED),
    f"D-RISE {BUDGET}": ("drise", BUDGET, TUNED),
    f"bayes {BUDGET}": ("bayes", BUDGET, {}),
    "joint gradient": ("gradient", 1, {}),
    "joint gradient, one backward": ("gradient", 1, {"exact": False}),
    "ODAM": ("odam", 1, {}),  # of one target it is Seg-HiRes-CAM
    "Seg-Grad-CAM": ("gradcam", 1, {}),
    "Seg-XRes-CAM": ("xrescam", 1, {}),
    "own mask": ("mask", 1, {}),
    "box Gaussian": ("gaussian", 1, {}),
    "random": ("random", 1, {}),
}
REFERENCE, OURS = "D-RISE 1000", f"bayes {BUDGET}"


def maps_of(
    frame: Frame, rows: torch.Tensor, wanted: Collection[str]
) -> Iterator[tuple[str, torch.Tensor, dict[str, float]]]:
    """(method, maps, cost); a shorter D-RISE is read from the answers of the longer one."""
    recorder = Recorder(frame, BUDGET + 1)
    for name, (method, budget, settings) in METHODS.items():
        if name not in wanted:
            continue
        shorter = method == "drise" and bool(recorder.kept)
        used = recorder.recording if name == REFERENCE else recorder.replaying() if shorter else frame
        made = explain_frame(used, rows, method=method, budget=budget, **settings)
        yield name, made.maps["joint"], {"passes": made.passes, "backwards": made.backwards}


def scored(handle: Handle, images: list[Path], args: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    """For each photograph scores and costs of each method; at most `--each` of its instances, `--instances` in all."""
    args.cache.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    seen = frames(handle, images, options, args.bfloat16)
    for path, frame in track(seen, total=len(images), description="photographs"):
        file = args.cache / f"{path.stem}.json"
        n = len(frame.instances)
        rows = torch.from_numpy(np.random.default_rng(int(path.stem)).permutation(n)[: args.each].copy())
        found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        if found.get("rows") != rows.tolist():
            found = {"rows": rows.tolist(), "methods": {}}
        if n and (missing := METHODS.keys() - found["methods"]):
            scorer = Scorer(frame, rows)
            for name, maps, cost in maps_of(frame, rows, missing):
                found["methods"][name] = {"scores": scorer(maps), "cost": cost}
            file.with_suffix(".part").write_text(json.dumps(found))
            file.with_suffix(".part").rename(file)
        done.append(found)
        if sum(len(d["rows"]) for d in done) >= args.instances:
            break
    return [d for d in done if d["rows"]]


def main() -> None:
    args = arguments(
        __doc__, detector={"default": str(SHARED / "weights/yolo11n-seg.pt"), "help": "of ultralytics or torchvision"},
        images={"type": Path, "default": SHARED / "data/coco/val2017"},
        instances={"type": int, "default": 150, "help": "instances in all"},
        each={"type": int, "default": 8, "help": "of one photograph"},
        imgsz={"type": int, "default": 320, "help": "longer side that the detector sees"},
        conf={"type": float, "default": 0.4, "help": "lowest confidence of an instance"},
        cues={"type": int, "default": 30, "help": "planted cues"},
        bfloat16={"action": "store_true", "help": "score with the detector in bfloat16: quicker on some CPUs"},
        cache={"type": Path, "help": "folder of what was scored"},
    )
    model, options = detector(args.detector, args.imgsz, args.conf)
    short = Path(args.detector).stem.replace("-", "_")
    if args.quick:
        args.instances, args.each, args.cues = 2, 2, 1
    known_by = f"{short}_{args.imgsz}_{BUDGET}" + "_bfloat16" * args.bfloat16
    args.cache = args.cache or Path(gettempdir()) / "reliability_hooks_explain" / known_by
    order = np.random.default_rng(0).permutation(len(found := sorted(args.images.glob("*.jpg"))))
    images = [found[k] for k in order]
    with attach(model, Monitor([]), strict=True) as handle:
        done = scored(handle, images, args, options)
        ratio = gradient_cost(frames(handle, images[: 2 if args.quick else 8], options))
        seconds = timed(frames(handle, images[: 1 if args.quick else 4], options), METHODS, args.each)
        cues = cue_share(handle, args.cues, options, {k: METHODS[k] for k in (OURS, "joint gradient", "own mask")})
    ids = np.concatenate([np.full(len(d["rows"]), k) for k, d in enumerate(done)])
    scores = {
        name: {s: np.concatenate([d["methods"][name]["scores"][s] for d in done]) for s in
               done[0]["methods"][name]["scores"]}
        for name in METHODS
    }  # fmt: skip
    found_ = faithfulness_summary(scores, ids, against=REFERENCE)
    rows: list[dict[str, Any]] = []
    for name in METHODS:
        cost = {k: float(np.mean([d["methods"][name]["cost"][k] for d in done])) for k in ("passes", "backwards")}
        rows.append({"method": name, **{s: str(found_[name][s]) for s in scores[name]}, **cost,
                     "seconds": seconds[name]})
    show(f"{short}: {len(ids)} instances of {len(done)} photographs", list(rows[0]), [list(r.values()) for r in rows])
    show(f"less {REFERENCE}, paired", ["method", "area OA", "full OA"],
         [[m, str(found_[m][f"area_oa - {REFERENCE}"]), str(found_[m][f"full_oa - {REFERENCE}"])]
          for m in METHODS if m != REFERENCE])
    figures: dict[str, float] = {}
    for score in ("area_oa", "full_oa"):
        gain = found_[OURS][f"{score} - {REFERENCE}"]
        figures |= {f"{short}_{score}_gain": gain.value, f"{short}_{score}_gain_low": gain.low,
                    f"{short}_{score}_gain_high": gain.high}
    figures |= {f"{short}_time_ratio": seconds[OURS] / seconds[REFERENCE], f"{short}_gradient_cost_ratio": ratio}
    figures |= {"planted_cue_top_decile" if m == OURS else f"planted_cue_top_decile_{m.replace(' ', '_')}": v
                for m, v in cues.items()}
    finish(args, {
        "instances": len(ids), "photographs": len(done), "detector": short, "imgsz": args.imgsz, "conf": args.conf,
        "scored in": "bfloat16" if args.bfloat16 else "float32",
        "fill of the scores": FILL, "steps": STEPS, "D-RISE": {**TUNED, "masks": LONG}, "budget": BUDGET,
        "intervals": "bootstrap over photographs", **machine(),
    }, rows, figures)  # fmt: skip


if __name__ == "__main__":
    main()
