"""Explanations as a page shows them: maps to lay over the picture, and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..explain.base import Explanations
from ..explain.cause import Cause
from ..explain.counterfactual import Counterfactual, helpful
from ..report.page import MapLayer
from ..report.panel import FAINTEST, Signed
from ..report.pictures import heat_png, signed_png

RESTS = {
    "class": "its class", "box": "its box", "mask": "its mask", "boundary": "the boundary of its mask",
    "joint": "class, box and mask together", "reliability": "its reliability", "ood": "how unusual it seems",
}  # fmt: skip


def layers_of(made: Explanations, k: int, size: tuple[int, int], signed: Mapping[str, Signed]) -> list[MapLayer]:
    """The maps of one explained object.

    Args:
        made: Of all of them.
        k: Which.
        size: (height, width) of the image.
        signed: Heading -> map of doubt.
    """
    whole = (0.0, 0.0, float(size[1]), float(size[0]))
    layers = [
        MapLayer(name, f"Bright: where the evidence for {RESTS.get(name, name)} lies ({made.method}).",
                 heat_png(values[k].float().cpu().numpy()), whole)
        for name, values in made.maps.items()
    ]  # fmt: skip
    for name, map_ in signed.items():
        reach = max(FAINTEST, float(np.abs(map_.values[map_.sure]).max(initial=0.0)))
        x1, y1, x2, y2 = map(float, map_.window)
        layers.append(MapLayer(
            name, "What the reliability gains (blue) or loses (orange); faint where that is not established.",
            signed_png(map_.values, map_.sure, reach), (x1, y1, x2, y2), reach,
        ))  # fmt: skip
    return layers


def remarks_of(tried: Sequence[Counterfactual], named: Sequence[Cause], doubt: str = "") -> list[str]:
    """What was found out about one object: conditions, the remedy that helps, where the doubt lies."""
    conditions = [f"More than usual: {', '.join(c.phrase for c in named)}."] if named else []
    remedies = [
        f"{c.remedy}, it has a reliability of {c.after:.2f} instead of {c.before:.2f}"
        f"{', and gains in the image mirrored, moved and shrunk too' if c.again else ''}."
        for c in helpful(tried)[:1]
    ]
    return [r[:1].upper() + r[1:] for r in (*conditions, *remedies, doubt) if r]
