"""What is said of the detector: figures of each class, and the card beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reliability_hooks.evaluation.datasets import DetectionDataset

from .precision import Precision

CARD = Path(__file__).with_suffix(".md")


def table(names: Sequence[str], found: Precision) -> str:
    """Markdown: a row for each class, the best first, and the means over classes.

    Args:
        names: Of the detector, the background's first.
        found: Figures of the others.
    """
    rows = ["| class | objects | box AP50 | box AP50:95 | mask AP50 | mask AP50:95 |", "|---|---|---|---|---|---|"]
    columns = (found.box50, found.box, found.mask50, found.mask)
    rows += [
        f"| {names[k + 1]} | {found.objects[k]} | " + " | ".join(f"{c[k]:.3f}" for c in columns) + " |"
        for k in np.argsort(-np.nan_to_num(found.box50), kind="stable")
    ]
    means = " | ".join(f"**{np.nanmean(c):.3f}**" if np.isfinite(c).any() else "-" for c in columns)
    return "\n".join([*rows, f"| **mean** | {found.objects.sum()} | {means} |"])


def text(names: Sequence[str], found: Precision, held_out: DetectionDataset, *, choice: tuple[float, float],
         size: int, **said: object) -> str:  # fmt: skip
    """The card.

    Args:
        names: Of the detector.
        found: Its figures on `held_out`.
        held_out: What it was evaluated on.
        choice: As `export.chosen_and_other` gives it.
        size: Of the weights in bytes.
        **said: The rest of what `CARD` names.
    """
    return CARD.read_text(encoding="utf-8").format(
        classes=len(names) - 1, images=len(held_out), table=table(names, found), chosen=choice[0], other=choice[1],
        megabytes=size / 1e6, **said,
    )  # fmt: skip
