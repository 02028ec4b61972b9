"""Certified verdicts: thresholds on the reliability that keep a promise with probability 1 - delta."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .certify import Certificate, Precision, Risk, Rows, certify_risk, miscoverage, rank_in_frame
from .scores import as_scores, image_codes
from .state import State


@dataclass(frozen=True, eq=False)
class Guarantee:
    """Accept, reject or unknown, with a promise for each group (class x size x condition, ...).

    **The promise.** With probability at least 1 - delta over the draw of the calibration images, in *every* group
    that has a certified threshold at least `target` of the detections accepted by `apply` are right, counted over
    all future detections; likewise, at delta again, at most `max_reject_precision` of the rejected ones are right.
    The rest, and all of a group without certificate or not seen in the fit, is unknown.

    **The assumption.** Images (`image`: photographs, or sequences) are independent draws from the distribution that
    the future ones come from, and the reliability is that of a fixed model: exact for held-out images, for
    out-of-fold reliabilities as good as the final model resembles those of the folds. Nothing is assumed of the
    detections inside an image. `unit="instance"` tests with the exact binomial instead: more certificates, but true
    only if *detections* are independent; where those of an image are right or wrong together it breaks its promise.

    **How.** Learn-then-Test (Angelopoulos, Bates, Candes, Jordan & Lei 2021; Annals of Applied Statistics 2025):
    precision >= target says that the image sums of (correct - target) over accepted detections have a mean above 0,
    which `betting.betting_log_p` tests for one threshold after the other, from high to low, until it first fails
    (fixed-sequence testing needs no correction). The sequence starts at reliability = target, where the evidence is
    largest if the reliability is calibrated. Groups share delta equally (Bonferroni). A test of a mean without a
    bound on the summands does not exist, so `apply` accepts at most `limit` detections of a group in one image, the
    most reliable. Limits, and the groups worth their share of delta, are chosen on a part of the images that then
    takes no part in the test; `max_per_image` spares this part.

    Attributes:
        groups: (G,) int64, sorted codes of the fit.
        accept, reject: (G,) float64 threshold on the reliability, and on 1 - reliability; infinite without one.
        accept_limit, reject_limit: (G,) int64, detections of the group in an image.
        rows: what `describe` returns.
    """

    groups: Tensor
    accept: Tensor
    accept_limit: Tensor
    reject: Tensor
    reject_limit: Tensor
    rows: list[dict[str, Any]]

    @classmethod
    def fit(
        cls,
        reliability: Tensor,
        correct: Tensor,
        image: Tensor,
        groups: Tensor | None = None,
        *,
        frame: Tensor | None = None,
        target: float = 0.9,
        delta: float = 0.1,
        risk: str | Risk = "precision",
        max_reject_precision: float | None = 0.1,
        unit: str = "image",
        max_per_image: int | None = None,
        learn: float = 0.2,
        start: float | None = None,
        ascending: bool = False,
        names: Mapping[int, str] | Callable[[int], str] | None = None,
        seed: int = 0,
    ) -> Guarantee:
        """Certify thresholds.

        Args:
            reliability: (N,) in [0, 1], out of fold or of held-out images; NaN is never accepted.
            correct: (N,) bool.
            image: (N,) integer ids of what is independent.
            groups: (N,) integer codes (`groups.Groups`), negative: none; None: all in one group.
            frame: (N,) ids of what `apply` will see as one image, where an independent `image` has several (versions
                of a photograph, frames of a sequence); their number is taken as fixed. None: `image`.
            target: the precision promised; for another risk the largest mean loss of an image.
            delta: probability with which a promise may fail.
            risk: "precision", "miscoverage" (see `certify.miscoverage`) or a function as `certify.Risk`.
            max_reject_precision: None: nothing is rejected. Only with precision.
            unit: "image" or "instance".
            max_per_image: limit of every group; None: learnt, see `certify.Precision.learn_limit`.
            learn: share of the images to learn it on.
            start: first threshold of the sequence; None: the target (another risk: 1, ascending: 0).
            ascending: the sequence of a risk of one's own goes from low to high, for one that rises with the threshold.
            names: code -> name of the group for `describe`.
            seed: of the order of the images and the part to learn on.

        Raises:
            ValueError: a shape, range or name is wrong.
        """
        if not (0 < target < 1 and 0 < delta < 1 and 0 < learn < 1):
            raise ValueError(f"target, delta and learn must lie in (0, 1), got {target}, {delta} and {learn}")
        if unit not in ("image", "instance") or (isinstance(risk, str) and risk not in ("precision", "miscoverage")):
            raise ValueError(f"unit: 'image' or 'instance', risk: 'precision' or 'miscoverage'; got {unit!r}, {risk!r}")
        if max_per_image is not None and max_per_image < 1:
            raise ValueError(f"max_per_image must be at least 1, got {max_per_image}")
        r, n = as_scores(reliability), len(reliability)
        if correct.shape != r.shape or (groups is not None and groups.shape != r.shape):
            raise ValueError(f"correct and groups must have shape ({n},) like the reliability")
        code = torch.zeros(n, dtype=torch.int64) if groups is None else groups.detach().cpu().to(torch.int64)
        photo = image_codes(image, n)
        images = int(photo.max()) + 1 if n else 0
        photo = torch.randperm(images, generator=torch.Generator().manual_seed(seed))[photo]  # a random order
        inner = photo if frame is None else image_codes(photo * n + image_codes(frame, n, "frame"), n)
        keep = ~r.isnan() & (code >= 0)
        known, group = torch.unique(code[keep], return_inverse=True)
        data = Rows(r[keep], correct.detach().cpu().to(torch.bool)[keep], photo[keep], inner[keep], group)
        every = list(range(len(known)))
        name = names.get if isinstance(names, Mapping) else names
        labels = [str(name(g) if name else g) for g in known.tolist()] if groups is not None else ["all"] * len(known)
        if not isinstance(risk, str) or risk == "miscoverage":
            loss = miscoverage if isinstance(risk, str) else risk
            rising = ascending or loss is miscoverage
            found = [certify_risk(data.of(g), loss, target, delta / len(known), start, rising) for g in every]
            sides = {"accept": found}
        else:
            test = Precision(target, delta, unit, max_per_image, learn, start)
            sides = {"accept": test.certify(data, every)}
            if max_reject_precision is not None:
                mirror = Precision(1 - max_reject_precision, delta, unit, max_per_image, learn, None)
                below = [1 - c.threshold for c in sides["accept"]]
                sides["reject"] = mirror.certify(data.mirrored(), every, below)
        rows = [
            {"group": label, "side": side, **c.row} for side, found in sides.items()
            for label, c in zip(labels, found, strict=True)
        ]
        none = [Certificate(math.inf, 1, {})] * len(known)
        columns: dict[str, Tensor] = {}
        for side in ("accept", "reject"):
            found = sides.get(side, none)
            columns[side] = torch.tensor([c.threshold for c in found], dtype=torch.float64)
            columns[f"{side}_limit"] = torch.tensor([c.limit for c in found], dtype=torch.int64)
        return cls(known, rows=rows, **columns)

    def apply(self, reliability: Tensor, groups: Tensor | None = None, image: Tensor | None = None) -> Tensor:
        """Verdicts of N detections.

        Args:
            reliability: (N,); NaN is unknown.
            groups: (N,) codes as in the fit; one that was not in the fit is unknown. None: code 0.
            image: (N,) ids of the images that they come from; None: all from one.

        Returns:
            (N,) int64 on the same device: 1 accept, 0 unknown, -1 reject.
        """
        certified = bool(torch.cat([self.accept, self.reject]).isfinite().any())
        if not certified or len(reliability) == 0:
            return torch.zeros(len(reliability), dtype=torch.int64, device=reliability.device)
        r = as_scores(reliability)
        code = torch.zeros(len(r), dtype=torch.int64) if groups is None else groups.detach().cpu().to(torch.int64)
        photo = torch.zeros(len(r), dtype=torch.int64) if image is None else image_codes(image, len(r))
        at = torch.searchsorted(self.groups, code).clamp(max=len(self.groups) - 1)
        seen = self.groups[at] == code
        verdict = torch.zeros(len(r), dtype=torch.int64)
        for sign, value, threshold, limit in (
            (1, r, self.accept, self.accept_limit), (-1, 1 - r, self.reject, self.reject_limit),
        ):
            rows = (seen & (value >= threshold[at])).nonzero()[:, 0]
            rows = rows[rank_in_frame(value[rows], photo[rows], at[rows]) < limit[at[rows]]]
            verdict[rows] = sign
        return verdict.to(reliability.device)

    def describe(self) -> list[dict[str, Any]]:
        """One row for each group and side, for tables.

        Keys: group, side, detections and images (that took part in the test), threshold (None without
        certificate), promise, observed (on the calibration images), coverage (share of the group's detections),
        limit (detections per image, None for no limit), message.
        """
        return [dict(row) for row in self.rows]

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        return {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}, {"rows": self.rows}

    @classmethod
    def from_state(cls, state: State) -> Guarantee:
        """Rebuild from `state()`."""
        return cls(**state[0], rows=list(state[1]["rows"]))
