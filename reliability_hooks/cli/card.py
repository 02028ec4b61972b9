"""The card of a monitor: what it was fitted on, how good it is there, what it promises, and where that ends."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..config import Settings
from ..evaluation.bootstrap import Estimate
from ..evaluation.labels import Pairs, labelled
from ..monitor import Monitor

LIMITS = """\
- It speaks for images like those above, and for this detector with these options. Drift is watched for
  (`monitor.drift`), and another detector is refused; a change of camera or place that no signal shows is not seen.
- A class with few detections borrows from its supercategory and from all others; its figures above are hints.
- Synthetic conditions stand for real ones as far as they resemble them.
- The reliability says whether a detection is right. Objects that the detector missed have none.
"""


def card(
    monitor: Monitor, settings: Settings, pairs: Pairs, images: Sequence[tuple[Any, str]],
    names: Mapping[int, str], metrics: Mapping[str, Mapping[str, Estimate]], protocol: str, failed: int = 0,
) -> str:
    """Markdown.

    Args:
        monitor: Fitted.
        settings: Of the fit.
        pairs: What it was fitted on.
        images: Photograph and condition of each pair.
        names: Label -> class name.
        metrics: Row -> figures with intervals, cross-fitted.
        protocol: What they mean.
        failed: Images that could not be read.
    """
    assert monitor.judge is not None
    assert monitor.judge.cross_fitted is not None
    rows, right, _, image = labelled(pairs, monitor.terms.iou_threshold)
    values = np.stack([right.numpy(), rows.scores.numpy(), monitor.judge.cross_fitted.numpy()]).astype(float)
    condition = np.array([c for _, c in images])[image.numpy()]
    label = np.array([names.get(k, str(k)) for k in rows.labels.tolist()], dtype=object)
    photographs, objects = len({p for p, _ in images}), len(pairs) and sum(len(t) for _, t in pairs)
    model, d = monitor.judge.model, settings.detector
    judge, caution = monitor.judge, monitor.judge.caution
    fit = [
        ("detector", f"`{Path(str(d.weights)).name}`, options `{json.dumps(d.predict)}`"),
        ("fingerprint", ", ".join(f"{k} `{v}`" for k, v in (monitor.fingerprint or {}).items())),
        ("signals", ", ".join(f"`{s.name}`" for s in monitor.signals)
         + (f"; CLIP `{monitor.clip}`" if monitor.encoder else "")),
        ("labelled images", f"`{settings.data.annotations}`: {photographs} photographs, {len(pairs)} pictures under "
         f"{', '.join(settings.data.conditions)}, {objects} objects in them, {len(rows)} detections"
         + (f"; {failed} could not be read" if failed else "")),
        ("model", f"{model.report['chosen']}, chosen by cross-validated log loss over whole photographs"),
        ("made", f"{datetime.date.today().isoformat()} by reliability_hooks {__version__}"),
    ]  # fmt: skip
    lines = ["# Card of a monitor", "", *table(["", ""], fit), "", "## Figures", ""]
    shown = list(next(iter(metrics.values())))
    lines += table(["", *(n.replace("_", "-").upper() for n in shown)],
                   [[row, *(str(line[n]) for n in shown)] for row, line in metrics.items()])  # fmt: skip
    lines += ["", f"{protocol}.", ""]
    lines += [*counted("condition", condition, values), "", *counted("class", label, values)]
    asked = f"at least {monitor.terms.target:.0%} of the accepted are right"
    surely = f"with probability {1 - monitor.terms.delta:.0%} over the labelled images"
    lines += ["", "## What is promised", "", f"Asked for: {asked}, {surely}.", ""]
    lines += [f"- {line['side']}, {line['group']}: {line['message']}"
              for line in (judge.guarantee.describe() if judge.guarantee else [])]  # fmt: skip
    if caution is not None:
        lines += [f"- unknown objects are reckoned with a share of {caution.prior:g} (score: `{judge.novelty}`), which "
                  f"changes the Brier score on known ones by {caution.cost:+.1%}"]
    lines += ["", "## Limits", "", *(f"- {note}" for note in model.notes), LIMITS]
    return "\n".join(lines)


def counted(heading: str, group: np.ndarray, values: np.ndarray) -> list[str]:
    """Detections, share right, mean score and reliability, and Brier scores of each group, the largest first."""
    found, at, count = np.unique(group.astype(str), return_inverse=True, return_counts=True)

    def rows() -> Iterator[list[str]]:
        for k in np.argsort(-count, kind="stable"):
            right, score, reliability = values[:, at == k]
            both = [((p - right) ** 2)[np.isfinite(p)] for p in (score, reliability)]
            yield [found[k], str(count[k]), *(number(np.nanmean(v)) if np.isfinite(v).any() else "-" for v in (
                right, score, reliability)), *(number(b.mean()) if len(b) else "-" for b in both)]  # fmt: skip

    return table([heading, "detections", "right", "mean score", "mean reliability", "Brier of the score",
                  "Brier of the reliability"], rows())  # fmt: skip


def table(headings: Sequence[str], rows: Any) -> list[str]:
    """Markdown; nothing in a cell can end it or become markup."""
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    return lines + [f"| {' | '.join(safe(cell) for cell in row)} |" for row in rows]


def safe(text: str) -> str:
    """Text as text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3f}"
