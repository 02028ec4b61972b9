"""Is what `explain` says of doubt true? Named causes, claimed remedies, and the map of doubt, on real photographs.

COCO val2017 photographs on which the monitor was not fitted, degraded by code that neither the monitor nor the embedded
CLIP was trained with (`degradations.py`).
1. Of the detections whose reliability fell by `FELL` against the photograph as it is: the share whose named cause is
   what was done, as `explain` names it and as `predict` does, which names what is clear alone.
2. Of the remedies that `explain` claims for the five least reliable detections, in the picture and surely so in three
   other views: the share that raise the reliability in another copy, shrunk and moved; and of those claimed after a
   single look.
3. Half of an object degraded: how much of the top decile of the restoration map, within the box, lies in that half.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, arguments, finish, machine, show
from degradations import CAMERA
from doubt_rows import EACH, FELL, HALVES, LEVEL, MASKS, STRONG, Rows, Watched, collect

from reliability_hooks.evaluation.bootstrap import image_bootstrap
from reliability_hooks.explain.counterfactual import LEAST, REMEDIES


def mean(rows: Rows, key: str) -> Any:
    """Its mean over rows, with a 95 % interval over photographs."""
    keep = [r for r in rows if np.isfinite(r[key])]
    images = [r["image"] for r in keep]
    return image_bootstrap({key: partial(_mean)}, images, [float(r[key]) for r in keep])[key] if keep else None


def _mean(values: np.ndarray, weight: np.ndarray | None = None) -> float:
    return float(np.average(values, weights=weight))


def summarised(named: Rows, remedied: Rows, half: Rows) -> dict[str, float]:
    """Print the tables; the figures with their intervals."""
    claims = [r for r in remedied if r["claim"]]
    looks = [r for r in remedied if r["look"]]
    for r in remedied:
        r["raised"], r["much"], r["look_raised"] = (float(v) for v in (r["change"] > 0, r["change"] >= LEAST,
                                                                       r["look_change"] > 0))  # fmt: skip
    table = []
    for name in [*CAMERA, "occlusion"]:
        rows = [r for r in named if r["applied"] == name]
        if rows:
            table.append([name, len(rows), str(mean(rows, "first")), str(mean(rows, "two")),
                          round(float(np.mean([r["worst"] for r in rows])), 3)])  # fmt: skip
    show(f"named cause where the reliability fell by {FELL}", ["applied", "n", "first", "first two", "as predict"],
         table)
    show("remedies claimed", ["remedy", "claims", "raised in the copy"], [
        [name, len(rows), str(mean(rows, "raised"))] for name in REMEDIES
        if (rows := [r for r in claims if r["remedy"] == name])
    ])  # fmt: skip
    show("half degraded", ["applied", "n", "top decile in that half"], [
        [name, len(rows), str(mean(rows, "half"))] for name in HALVES
        if (rows := [r for r in half if r["applied"] == name])
    ])  # fmt: skip
    found = {
        "cause_first": mean(named, "first"), "cause_two": mean(named, "two"), "cause_named": mean(named, "named"),
        "cause_as_predict": mean(named, "worst"), "claims_per_detection": mean(remedied, "claim"),
        "claims_raise": mean(claims, "raised"), "single_looks_raise": mean(looks, "look_raised"),
        "claims_raise_by_margin": mean(claims, "much"),
        "claim_gain": mean(claims, "gain"), "claim_gain_in_copy": mean(claims, "change"),
        "doubt_in_half": mean(half, "half"), "doubt_area_of_half": mean(half, "area"),
        "doubt_claims": mean(half, "claim"), "doubt_claims_hold": mean([r for r in half if r["claim"]], "holds"),
        "doubt_claim_in_half": mean(half, "claim_half"),
    }  # fmt: skip
    figures = {}
    for key, value in found.items():
        if value is not None:
            figures |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
    noise = [r["noise"] for r in remedied if np.isfinite(r["noise"])]
    figures |= {"causes": len(named), "claims": len(claims), "halves": len(half)}
    if noise:
        figures["copy_noise"] = float(np.median(noise))
    return figures


def main() -> None:
    args = arguments(
        __doc__, monitor={"type": Path, "required": True, "help": "a fitted monitor with the preset clip"},
        detector={"type": Path, "default": SHARED / "weights/yolo11n-seg.pt"},
        data={"type": Path, "default": SHARED / "data/coco", "help": "val2017/ and instances_val2017.json"},
        skip={"type": int, "default": 60, "help": "photographs that the monitor was fitted on (default: %(default)s)"},
        photographs={"type": int, "default": 24, "help": "how many (default: %(default)s)"},
    )  # fmt: skip
    watched = Watched(args.detector, args.monitor)
    named, remedied, half = collect(watched, args.data, args.skip, 1 if args.quick else args.photographs)
    figures = summarised(named, remedied, half)
    protocol = {
        "photographs": f"COCO val2017 from number {args.skip} on", "level": LEVEL, "level_of_halves": STRONG,
        "cause": f"detections found again (same class, IoU >= .5) whose reliability fell by {FELL}; unnamed is wrong",
        "claims": f"best remedy with a gain >= .05, and 90 % limit of it in three other views, for the {EACH} "
                  "least reliable of the photograph and of one version of it; single looks: in the picture alone",
        "copy": "shrunk to .9, at the lower right on grey; not found: reliability 0; raised: any gain; margin: .05",
        "copy_noise": "median change of the reliability in the copy of a picture that was not mended",
        "halves": f"{HALVES}, {MASKS} masks; objects whose reliability fell by {FELL}; chance doubt_area_of_half",
        "intervals": "95 %, bootstrap over photographs", "monitor": json.loads(
            (args.monitor / "monitor.json").read_text())["meta"]["settings"], **machine(),
    }  # fmt: skip
    finish(args, protocol, [{"causes": named}, {"claims": remedied}, {"halves": half}], figures)


if __name__ == "__main__":
    main()
