"""Do maps find a cue that is known to decide? Stickers on and beside objects of val2017, see `make_planted_cues.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import SHARED
from explain_scores import cue_frame
from rich.progress import track

from reliability_hooks.evaluation.localisation import cue_found
from reliability_hooks.evaluation.planted_cues import PlantedCue, read_planted_cues
from reliability_hooks.explain.explainer import EVIDENCE, explain_frame
from reliability_hooks.frame import Frame
from reliability_hooks.hook import Handle
from reliability_hooks.images import read_image
from reliability_hooks.signals.geometry import ious

TOOL = Path(__file__).resolve().parents[1] / "make_planted_cues.py"


def cue_share(
    handle: Handle, count: int, options: dict[str, Any], methods: dict[str, tuple[str, int, dict[str, Any]]]
) -> dict[str, float]:
    """Method -> share of the pictures in whose map's top decile the cue lies; of those where the object is found."""
    coco, hits = SHARED / "data/coco", {name: list[bool]() for name in methods}
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(TOOL), "--images", str(coco / "val2017"), "--annotations",
                        str(coco / "instances_val2017.json"), "--out", folder, "--count", str(count)],
                       check=True, capture_output=True)  # fmt: skip
        for cue in track([c for c in read_planted_cues(folder) if c.place != "absent"], "planted cues"):
            with handle.frames(*EVIDENCE) as frames:
                handle.predict([read_image(cue.path)], **options)
                if (row := of_cue(cue, frames[0])) is None:
                    continue
                decides = cue_frame(frames[0], cue.cue)
                for name, (method, budget, settings) in methods.items():
                    made = explain_frame(decides, row, targets=["class"], method=method, budget=budget, **settings)
                    found = cue_found(made.maps["class"], torch.from_numpy(cue.cue)[None])
                    hits[name].append(bool(found.found[0]))
    return {name: float(np.mean(some)) if some else float("nan") for name, some in hits.items()}


def of_cue(cue: PlantedCue, frame: Frame) -> torch.Tensor | None:
    """(1,) the instance that is the cue's object, or None."""
    if not len(frame.instances):
        return None
    overlap = ious(torch.from_numpy(cue.box)[None], frame.instances.boxes.float())[0]
    return overlap.argmax()[None] if float(overlap.max()) >= 0.5 else None
