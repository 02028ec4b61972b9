"""How unusual objects are next to the right detections that the monitor was calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..instances import Instances
from ..reliability.groups import Groups
from ..reliability.judge import FACTORS, Judge
from ..reliability.novelty import Novelty
from .figures import histogram, strangeness_figure
from .page import Figure, Histogram, Strangeness

TAIL = 0.95
"""Quantile of the calibration scores beyond which a detection counts as unusual in the words of the figure."""


def calibration_histograms(judge: Judge | None, names: Mapping[int, str]) -> list[Histogram]:
    """One for each cell of the monitor's p-values (`Novelty`), those judged together first; none without."""
    if judge is None or judge.caution is None:
        return []
    novelty = judge.caution.novelty
    scores, weights, words = novelty.scores.numpy(), _weights(novelty), _names(novelty, names)
    out = []
    for cell, images in enumerate(novelty.images.tolist()):
        mine = novelty.cells.numpy() == cell
        out.append(histogram(words[cell], scores[mine], weights[mine], images))
    return out


def strangeness_of(judge: Judge | None, instances: Instances) -> list[Strangeness | None]:
    """Of each instance, with the cell that its p-value comes from; None where the monitor tells none."""
    n, columns = len(instances), instances.columns
    if judge is None or judge.caution is None or "ood_p_value" not in columns:
        return [None] * n
    novelty = judge.caution.novelty
    code = novelty.groups.codes({name: factor(instances) for name, factor in FACTORS.items()})
    cell = torch.where(code >= 0, novelty.cell_of[code.clamp(min=0)], 0).tolist()
    score = columns.get(judge.novelty, torch.full((n,), torch.nan)).tolist()
    rows = zip(score, columns["ood_p_value"].tolist(), columns["is_ood"].tolist(), cell, strict=True)
    return [Strangeness(s, p, flag == 1, c) for s, p, flag, c in rows]


def against_calibration(judge: Judge | None, scores: Sequence[float]) -> Figure | None:
    """The scores of all detections against those of calibration; None without a score."""
    values = np.array([v for v in scores if np.isfinite(v)])
    if judge is None or judge.caution is None or not len(values):
        return None
    known, weights = judge.caution.novelty.scores.numpy(), _weights(judge.caution.novelty)
    share = float((values > np.quantile(known, TAIL)).mean())
    return strangeness_figure(
        {"right detections at calibration": (known, weights), "all detections here": (values, None)}, judge.novelty,
        "How unusual the objects are",
        f"{100 * share:.0f} % of the {len(values):,} detections here score above {100 * TAIL:.0f} % of the right ones "
        "at calibration.",
        "Those here are right and wrong ones.",
    )  # fmt: skip


def _weights(novelty: Novelty) -> NDArray[np.float64]:
    """(M,) of each calibration object: 1 / n where its image has n in the cell."""
    above, cells = novelty.above.numpy(), novelty.cells.numpy()
    following = np.append(above[1:], 0.0)
    following[np.flatnonzero(np.diff(cells))] = 0.0  # the next is of another cell
    return np.asarray(above - following)


def _names(novelty: Novelty, names: Mapping[int, str]) -> list[str]:
    groups = Groups(novelty.groups.levels, {**novelty.groups.names, "class": dict(names)})
    said = {cell: groups.name(code) for code, cell in enumerate(novelty.cell_of.tolist()) if cell}
    return [said.get(cell, "all classes and sizes" if not said else "all other kinds")
            for cell in range(len(novelty.images))]  # fmt: skip
