"""Which detections to keep: selective risk and the areas under it, and how well p tells errors from successes.

Every metric takes `p` (N,), any real score of which more means more trust, `y` (N,) of 0 and 1 (1: correct, a true
positive) and `weight` (N,), non-negative multiplicities. Instances of equal p are one decision: they enter together,
in equal shares, so that no result depends on the order of rows. Nothing to measure gives NaN; NaN in `p` raises
ValueError.

The risk-coverage curve keeps the most trusted share c (the coverage) and counts the errors among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .checks import Floats, ratio, scored, tied_masses


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """A risk-coverage curve: one point for each distinct p, the most trusted first.

    Attributes:
        coverage: (T,) share that is kept, ascending, the last 1.
        risk: (T,) share of errors among what is kept.
        threshold: (T,) p >= threshold is kept.
    """

    coverage: Floats
    risk: Floats
    threshold: Floats


def risk_coverage(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> RiskCoverage:
    """Selective risk at every threshold (El-Yaniv & Wiener 2010). Empty where there is nothing.

    Raises:
        ValueError: shapes differ, p has NaN, y is not of 0 and 1, or a weight is negative or not finite.
    """
    value, kept, errors = _kept(p, y, weight)
    some = np.diff(kept, prepend=0.0) > 0
    return RiskCoverage(kept[some] / kept[-1:], errors[some] / kept[some], value[some])


def selective_risk(p: ArrayLike, y: ArrayLike, coverage: float, weight: ArrayLike | None = None) -> float:
    """Share of errors among the most trusted share `coverage`, in [0, 1]; within equal p, errors are spread evenly.

    Raises:
        ValueError: `coverage` outside (0, 1], or arrays as in `risk_coverage`.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must lie in (0, 1], got {coverage}")
    _, kept, errors = _kept(p, y, weight)
    total = kept[-1] if len(kept) else 0.0
    return ratio(float(np.interp(coverage * total, np.r_[0, kept], np.r_[0, errors])), coverage * total)


def aurc(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the risk-coverage curve (Geifman et al., ICLR 2019): mean over k of (errors in the top k) / k.

    Among instances of equal p it is the expectation over their orders: a block that takes the number kept from a to b
    at error rate s gives s (b - a) + (E_a - s a) (H_b - H_a), H the harmonic numbers, E_a the errors before it.

    Raises:
        ValueError: as `risk_coverage`.
    """
    from scipy.special import digamma

    _, kept, errors = _kept(p, y, weight)
    if not len(kept) or not kept[-1]:
        return float("nan")
    before, errors_before = np.r_[0, kept[:-1]], np.r_[0, errors[:-1]]
    mass = kept - before
    rate = np.divide(errors - errors_before, mass, np.zeros(len(mass)), where=mass > 0)
    harmonic = digamma(kept + 1) - digamma(before + 1)
    return ratio((rate * mass + (errors_before - rate * before) * harmonic).sum(), kept[-1])


def e_aurc(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """AURC minus its optimum for the same number of errors: 0 where every error ranks below every success.

    The optimum is exact; Geifman et al. subtract its limit for large N, e + (1 - e) ln(1 - e) at error rate e.

    Raises:
        ValueError: as `risk_coverage`.
    """
    return aurc(p, y, weight) - aurc(y, y, weight)


def augrc(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024), in [0, 1/2]; lower is better.

    At coverage c the most confident share c is kept and the risk is errors kept / N. The area is the trapezoid's.

    Raises:
        ValueError: as `risk_coverage`.
    """
    _, right, wrong = tied_masses(*scored(p, y, weight))
    total = right.sum() + wrong.sum()
    errors_above = wrong.sum() - np.cumsum(wrong)
    return ratio(((right + wrong) * (errors_above + wrong / 2)).sum(), total**2)


def excess_augrc(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """AUGRC minus its optimum e^2/2, e the error rate: 0 where every error ranks below every success.

    Raises:
        ValueError: as `risk_coverage`.
    """
    return augrc(p, y, weight) - error_rate(p, y, weight) ** 2 / 2


def error_rate(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Share of wrong instances, in [0, 1]; `p` only lends its shape and is checked as in `risk_coverage`.

    Raises:
        ValueError: as `risk_coverage`.
    """
    _, y, w = scored(p, y, weight)
    return ratio((w * (1 - y)).sum(), w.sum())


def auroc(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve: P(p of a correct one > p of a wrong one), ties counted half.

    The same whichever of the two is the positive. NaN where all are correct or all are wrong.

    Raises:
        ValueError: as `risk_coverage`.
    """
    _, right, wrong = tied_masses(*scored(p, y, weight))
    wrong_below = np.cumsum(wrong) - wrong / 2
    return ratio((right * wrong_below).sum(), right.sum() * wrong.sum())


def aupr(p: ArrayLike, y: ArrayLike, positive: str = "error", weight: ArrayLike | None = None) -> float:
    """Area under the precision-recall curve as average precision: sum over thresholds of precision * gain of recall.

    Args:
        p: (N,) trust.
        y: (N,) 1 if correct.
        positive: what is to be found: "error" (the least trusted are flagged first) or "correct" (the most trusted).
        weight: (N,) multiplicities.

    Returns:
        In [0, 1], a guess giving the share of positives; NaN where there is no positive.

    Raises:
        ValueError: an unknown `positive`, or arrays as in `risk_coverage`.
    """
    hit, miss = _flagged(p, y, positive, weight)
    flagged, gain = hit + miss, np.diff(hit, prepend=0.0)
    precision = np.divide(hit, flagged, np.zeros(len(hit)), where=flagged > 0)
    return ratio((precision * gain).sum(), hit[-1] if len(hit) else 0.0)


def fpr_at_tpr(
    p: ArrayLike, y: ArrayLike, tpr: float = 0.95, positive: str = "error", weight: ArrayLike | None = None
) -> float:
    """False positive rate at the first threshold that finds the share `tpr` of the positives (0.95: FPR95).

    The literature knows both conventions, and they differ. `positive="error"`: of the successes, how many are flagged
    by a threshold that flags 95 % of the errors. `positive="correct"`: of the errors, how many pass one that passes
    95 % of the successes (Corbiere et al., NeurIPS 2019; OOD detection with in-distribution as positive).

    Args:
        p: (N,) trust.
        y: (N,) 1 if correct.
        tpr: in (0, 1].
        positive: "error" or "correct".
        weight: (N,) multiplicities.

    Returns:
        In [0, 1]; NaN where all are correct or all are wrong.

    Raises:
        ValueError: `tpr` or `positive` make no sense, or arrays as in `risk_coverage`.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must lie in (0, 1], got {tpr}")
    hit, miss = _flagged(p, y, positive, weight)
    if not len(hit) or not hit[-1]:
        return float("nan")
    return ratio(miss[np.argmax(hit / hit[-1] >= tpr)], miss[-1])


def _kept(p: ArrayLike, y: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """Distinct p, descending, and the weight of all and of the errors that are kept at p or above."""
    value, right, wrong = tied_masses(*scored(p, y, weight))
    return value[::-1], np.cumsum((right + wrong)[::-1]), np.cumsum(wrong[::-1])


def _flagged(p: ArrayLike, y: ArrayLike, positive: str, weight: ArrayLike | None) -> tuple[Floats, Floats]:
    """Weight of the positives and negatives flagged at each threshold, most suspicious first."""
    if positive not in ("error", "correct"):
        raise ValueError(f"positive must be 'error' or 'correct', got {positive!r}")
    _, right, wrong = tied_masses(*scored(p, y, weight))
    if positive == "error":
        return np.cumsum(wrong), np.cumsum(right)
    return np.cumsum(right[::-1]), np.cumsum(wrong[::-1])
