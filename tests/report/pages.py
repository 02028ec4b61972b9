"""Small pages for the tests of the report."""

from __future__ import annotations

import math

import numpy as np

from reliability_hooks.report.page import (
    DatasetFigures,
    Figure,
    Histogram,
    MapLayer,
    Page,
    ReportImage,
    ReportInstance,
    Strangeness,
    Table,
)
from reliability_hooks.report.pictures import heat_png, jpeg

EVIL = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'
"""A class, a file, a reason that is called this stays text."""


def picture(k: int = 0, size: tuple[int, int] = (60, 80)) -> bytes:
    return jpeg(np.full((*size, 3), 40 + 20 * k, np.uint8))


def instances() -> list[ReportInstance]:
    shares = [("blurred", -0.2), ("the detector's score", 0.05), (EVIL, -0.03)]
    heat = MapLayer("class", "Bright: where it looked.", heat_png(np.eye(12)), (0.0, 0.0, 80.0, 60.0))
    return [
        ReportInstance("dog", 0.9, (5, 5, 30, 40), 0.25, (0.2, 0.3), "reject", 0.5, "blurred", shares,
                       "M5,5L30,5L30,40Z", Strangeness(3.0, 0.04, True, 0), [heat], ["Sharpened, it has .4."]),
        ReportInstance("cat", 0.8, (40, 10, 70, 50), 0.95, (0.9, 0.97), "accept", 0.9, "", shares,
                       strangeness=Strangeness(1.0, 0.6, False, 0)),
        ReportInstance(EVIL, 0.4, (1, 1, 20, 20), math.nan, condition=""),
    ]  # fmt: skip


def page(images: list[ReportImage] | None = None, **more: object) -> Page:
    """Three detections on an image, none on a second."""
    shown = [ReportImage("one.jpg", picture(), (60, 80), instances()), ReportImage(EVIL, picture(1), (60, 80))]
    data = DatasetFigures([Figure("A figure", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "It shows it.")],
                          [Table("A table", ["class", "n"], [[EVIL, "3"]])])  # fmt: skip
    given = {"facts": [("Source", EVIL)], "images": shown if images is None else images, "data": data,
             "calibration": [Histogram("all", (0.0, 1.0, 2.0, 4.0), (2.0, 5.0, 1.0), 8)], "promise": 0.9}  # fmt: skip
    return Page("A report", **{**given, **more})  # type: ignore[arg-type]
