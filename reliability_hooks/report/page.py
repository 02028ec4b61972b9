"""What stands in a report: the one structure between the commands and the page (`html.write_page`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]
"""xyxy in pixels of the image as it was given."""


@dataclass(frozen=True)
class MapLayer:
    """An explanation map that can be laid over the picture.

    Attributes:
        name: What it explains: `class`, `mask`, `doubt: mended` ...
        words: What its colours mean, and what was found, in a sentence.
        png: With transparency (`pictures.heat_png`, `pictures.signed_png`).
        box: What it covers.
        reach: Change of the reliability at full colour of a signed map; None for one that has no sign.
    """

    name: str
    words: str
    png: bytes
    box: Box
    reach: float | None = None


@dataclass(frozen=True)
class Strangeness:
    """How unusual an object is, next to right detections of known objects.

    Attributes:
        score: Out-of-distribution score, high = unusual; NaN where there is none.
        p_value: Conformal p-value in (0, 1], or NaN.
        is_ood: Whether it is taken for an unknown object.
        cell: Index of its histogram in `Page.calibration`, or None.
    """

    score: float
    p_value: float
    is_ood: bool
    cell: int | None = None


@dataclass(frozen=True)
class ReportInstance:
    """One detection.

    Attributes:
        name: Of its class.
        score: Of the detector.
        box: See `Box`; an instance with a NaN in it is listed and not drawn.
        reliability: In [0, 1]; NaN = unknown, which is shown as such and ranks as least reliable.
        interval: Of the reliability; NaN where there is none.
        verdict: `accept`, `reject` or `unknown`.
        expected_iou: In [0, 1] or NaN.
        condition: Phrase of the condition that stands out, empty where none does; None where none was asked for.
        shares: Words and what they add to the reliability, the greatest first (`Monitor.shares`).
        outline: Of the mask, as an SVG path (`pictures.outlines`); empty without.
        strangeness: None where the monitor tells none.
        maps: Where they were computed.
        remarks: Further sentences, such as the remedy that helps.
        correct: Whether it is right, where that is known.
    """

    name: str
    score: float
    box: Box
    reliability: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    verdict: str = "unknown"
    expected_iou: float = math.nan
    condition: str | None = None
    shares: Sequence[tuple[str, float]] = ()
    outline: str = ""
    strangeness: Strangeness | None = None
    maps: Sequence[MapLayer] = ()
    remarks: Sequence[str] = ()
    correct: bool | None = None


@dataclass(frozen=True)
class ReportImage:
    """One picture with what was found on it.

    Attributes:
        name: Of the file.
        jpeg: The picture (`pictures.jpeg`), perhaps smaller than the image.
        size: (height, width) of the image as it was given.
        instances: Any number.
        seen_under: Synthetic condition, such as `low_light`; empty for the image as it is.
    """

    name: str
    jpeg: bytes
    size: tuple[int, int]
    instances: Sequence[ReportInstance] = ()
    seen_under: str = ""

    @property
    def least(self) -> float:
        """Reliability of the least reliable instance: -1 where one is unknown, 2 where there is none."""
        return min((rank(i.reliability) for i in self.instances), default=2.0)


@dataclass(frozen=True)
class Histogram:
    """Of the out-of-distribution scores of right detections at calibration, in one class and size.

    Attributes:
        name: Of the cell, such as `person, small`.
        edges: (B + 1,) ascending.
        weights: (B,) each calibration image counts as one, shared by its objects.
        images: How many there are.
    """

    name: str
    edges: Sequence[float]
    weights: Sequence[float]
    images: int


@dataclass(frozen=True)
class Figure:
    """A diagram.

    Attributes:
        title: Above it.
        svg: The drawing.
        alt: The same in words, with the figures that matter.
        note: Below it: how to read it.
    """

    title: str
    svg: bytes
    alt: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each is its heading.

    Attributes:
        title: Above it.
        headings: One for each column.
        rows: As many cells each.
        note: Below it.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class DatasetFigures:
    """What can be said of all images together; empty where there is nothing.

    Attributes:
        figures: Diagrams.
        tables: Tables.
    """

    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()

    def __bool__(self) -> bool:
        return bool(self.figures or self.tables)


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: Heading.
        facts: Label and value: detector, monitor, source ...
        images: See `ReportImage`; None where the command looks at no picture by itself.
        data: See `DatasetFigures`.
        calibration: Histograms that `Strangeness.cell` counts.
        remarks: Sentences that the reader should know before all else: no monitor, drift, files that failed.
        protocol: What the figures mean, in a sentence.
        fitted: Whether a fitted monitor was at work.
        promise: Precision promised of accepted detections; None without a promise.
        left_out: Images that were looked at and are not shown.
        data_first: Whether the data set is what the page opens with.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    images: Sequence[ReportImage] | None = None
    data: DatasetFigures = field(default_factory=DatasetFigures)
    calibration: Sequence[Histogram] = ()
    remarks: Sequence[str] = ()
    protocol: str = ""
    fitted: bool = True
    promise: float | None = None
    left_out: int = 0
    data_first: bool = False


def rank(reliability: float) -> float:
    """Key of the review queue: unknown comes before everything."""
    return reliability if math.isfinite(reliability) else -1.0
