"""A page as the JSON that its script works on; NaN becomes null, and what is not there is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .overlay import STOPS, UNKNOWN
from .page import Page, ReportImage, ReportInstance


def as_data(page: Page) -> dict[str, Any]:
    """What the page's script works on; NaN is None."""
    images = page.images or ()
    rows, maps = [], 0
    for k, image in enumerate(images):
        for i in image.instances:
            rows.append(instance_row(i, k, range(maps, maps + len(i.maps))))
            maps += len(i.maps)
    return {
        "palette": {"stops": STOPS.tolist(), "unknown": list(UNKNOWN)},
        "images": [_image_row(image) for image in images],
        "instances": rows,
        "calibration": [
            {"name": h.name, "edges": list(h.edges), "weights": list(h.weights), "images": h.images}
            for h in page.calibration
        ],
        "fitted": page.fitted,
        "promise": page.promise,
    }


def _image_row(image: ReportImage) -> dict[str, Any]:
    height, width = image.size
    return {"name": image.name, "width": width, "height": height, "seen": image.seen_under}


def number(value: float, digits: int = 4) -> float | None:
    """For JSON: rounded, None for what is not finite."""
    return round(float(value), digits) if math.isfinite(value) else None


def instance_row(i: ReportInstance, image: int, maps: Sequence[int]) -> dict[str, Any]:
    """As the page's script reads it; what is not there is left out.

    Args:
        i: The instance.
        image: Index of its image.
        maps: Numbers of its maps.
    """
    s = i.strangeness
    ood = None if s is None else {"score": number(s.score), "p": number(s.p_value), "is": s.is_ood, "cell": s.cell}
    row: dict[str, Any] = {
        "image": image, "name": i.name, "score": number(i.score), "r": number(i.reliability), "verdict": i.verdict,
        "box": [number(v, 1) for v in i.box],
    }  # fmt: skip
    optional: dict[str, Any] = {
        "interval": None if not all(map(math.isfinite, i.interval)) else [number(v) for v in i.interval],
        "iou": number(i.expected_iou), "condition": i.condition, "outline": i.outline or None,
        "shares": [[words, number(change)] for words, change in i.shares if math.isfinite(change)] or None,
        "ood": ood,
        "maps": [
            {"id": k, "name": m.name, "words": m.words, "box": [number(v, 1) for v in m.box], "reach": m.reach}
            for k, m in zip(maps, i.maps, strict=True)
        ] or None,
        "remarks": list(i.remarks) or None, "correct": i.correct,
    }  # fmt: skip
    return {**row, **{key: value for key, value in optional.items() if value is not None}}
