"""All metrics of a set of detections, each with its protocol and an interval over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import Estimate, Metric, image_bootstrap
from .calibration import box_conditions, brier, conditional_d_ece, d_ece, nll
from .checks import column
from .classwise import class_wise_d_ece, la_ace, la_ece
from .lrp import events, lrp_optimal
from .masks import RLE, MaskIoU, encode
from .matching import Matches, match
from .oce import RULE, object_brier, oce
from .pairs import as_boxes
from .selective import augrc, aupr, aurc, auroc, e_aurc, error_rate, excess_augrc, fpr_at_tpr, selective_risk

#: Metrics of (p, y) that say how good a probability of being correct is.
CALIBRATION_METRICS: dict[str, Metric] = {
    "d_ece": d_ece,
    "brier": brier,
    "nll": nll,
    "auroc": auroc,
    "augrc": augrc,
    "excess_augrc": excess_augrc,
}

#: All metrics of (p, y).
CORRECTNESS_METRICS: dict[str, Metric] = {
    **CALIBRATION_METRICS,
    "d_ece_equal_mass": partial(d_ece, binning="mass"),
    "aupr_error": partial(aupr, positive="error"),
    "aupr_correct": partial(aupr, positive="correct"),
    "fpr95_error": partial(fpr_at_tpr, positive="error"),
    "fpr95_correct": partial(fpr_at_tpr, positive="correct"),
    "aurc": aurc,
    "e_aurc": e_aurc,
    "selective_risk_80": partial(selective_risk, coverage=0.8),
    "error_rate": error_rate,
}


def evaluate(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    image_ids: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_image_ids: ArrayLike,
    gt_crowd: ArrayLike | None = None,
    *,
    reliability: ArrayLike | None = None,
    masks: ArrayLike | Sequence[RLE] | None = None,
    gt_masks: ArrayLike | Sequence[RLE] | None = None,
    image_sizes: ArrayLike | None = None,
    score_cut: float = 0.0,
    iou_threshold: float = 0.5,
    n_classes: int | None = None,
    all_images: ArrayLike | None = None,
    drawn_with: Sequence[Any] | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Matches once for each IoU threshold and measures everything.

    Matching always follows the detector's score: what a detection is, right or wrong, must not depend on how it is
    judged. The judgement is `reliability` where it is given, else the score.

    Args:
        boxes: (N, 4) xyxy pixels.
        scores: (N,) in [0, 1].
        labels: (N,) integers >= 0.
        image_ids: (N,) integers or strings.
        gt_boxes: as in `matching.match`, as are `gt_labels`, `gt_image_ids`, `gt_crowd`.
        gt_labels: see `gt_boxes`.
        gt_image_ids: see `gt_boxes`.
        gt_crowd: see `gt_boxes`.
        reliability: (N,) in [0, 1], the probability of being correct that is judged.
        masks: with `gt_masks`: match by the IoU of masks, as in `masks.MaskIoU`.
        gt_masks: see `masks`.
        image_sizes: (N, 2) height and width of each detection's image; gives the conditional D-ECE.
        score_cut: detections below this score are left out before matching.
        iou_threshold: of a true positive; LaECE takes 0.1, LaECE_0 and LaACE_0 take 0, OCE 0.5 and 0.75.
        n_classes: number of classes, so that empty ones are counted; None: the largest label + 1.
        all_images: ids of all images looked at; None: those with a detection or a ground truth.
        drawn_with: for each of `all_images` the id of what it is a version of, such as the photograph that was
            blurred: the bootstrap draws these. None: each image by itself.
        draws: of the bootstrap.
        level: coverage of the intervals.
        seed: of the bootstrap.

    Returns:
        name -> `Estimate`: `CORRECTNESS_METRICS`, `class_wise_d_ece`, `la_ece`, `la_ece_0`, `la_ace_0`, `lrp_optimal`,
        `oce` and, with `image_sizes`, `d_ece_position`, `d_ece_size`.

    Raises:
        ValueError: a shape does not fit, a probability is NaN or outside [0, 1], or masks come without the others'.
    """
    corners = as_boxes("boxes", boxes)
    n, score = len(corners), column("scores", scores, len(corners)).astype(np.float64)
    if (masks is None) != (gt_masks is None):
        raise ValueError("matching by masks needs both masks and gt_masks")
    rows = np.flatnonzero(~(score < score_cut))
    corners, score = corners[rows], score[rows]
    label, image = column("labels", labels, n)[rows], column("image_ids", image_ids, n)[rows]
    p = score if reliability is None else column("reliability", reliability, n).astype(np.float64)[rows]
    gt_label, gt_image = np.asarray(gt_labels), np.asarray(gt_image_ids)
    crowd = np.zeros(len(gt_label), bool) if gt_crowd is None else column("gt_crowd", gt_crowd, len(gt_label)) > 0
    overlap = None
    if masks is not None and gt_masks is not None:
        packed = encode(masks)
        overlap = MaskIoU([packed[i] for i in rows], gt_masks, crowd)
    if all_images is None:
        all_images = np.unique(np.concatenate([ids for ids in (image, gt_image) if len(ids)] or [image]))
    versions = np.asarray(all_images)
    sources = versions if drawn_with is None else np.asarray(drawn_with)
    if len(sources) != len(versions):
        raise ValueError(f"drawn_with must name one source for each of {len(versions)} images, not {len(sources)}")
    order = np.argsort(versions)

    found = {
        tau: match(corners, score, label, image, gt_boxes, gt_label, gt_image, crowd, tau, pair_iou=overlap)
        for tau in {iou_threshold, 0.1, 0.0}
    }
    shared = {"judged": "score" if reliability is None else "reliability", "score_cut": score_cut}

    def measure(
        metrics: Mapping[str, Metric], ids: ArrayLike, arrays: Sequence[ArrayLike], said: Mapping[str, Any]
    ) -> dict[str, Estimate]:
        if not (known := np.isin(ids, versions)).all():
            raise ValueError(f"image id {np.asarray(ids)[~known][0]} is not among all_images")
        source = sources[order[np.searchsorted(versions, ids, sorter=order)]]
        return image_bootstrap(metrics, source, *arrays, draws=draws, level=level, seed=seed, all_images=sources,
                               protocol={**said, **shared})

    judged = found[iou_threshold]
    keep = ~judged.ignore
    out = measure(CORRECTNESS_METRICS, image[keep], (p[keep], judged.tp[keep]), _matching(judged))
    by_class = {"class_wise_d_ece": partial(class_wise_d_ece, n_classes=n_classes)}
    out |= measure(by_class, image[keep], (p[keep], judged.tp[keep], label[keep]), _matching(judged))
    if image_sizes is not None:
        where = box_conditions(corners, np.asarray(image_sizes).reshape(-1, 2)[rows])[keep]
        for name, columns in (("d_ece_position", slice(0, 2)), ("d_ece_size", slice(2, 4))):
            arrays = p[keep], judged.tp[keep], where[:, columns]
            out |= measure({name: conditional_d_ece}, image[keep], arrays, _matching(judged))
    of_tau: dict[float, dict[str, Metric]] = {
        0.1: {"la_ece": partial(la_ece, n_classes=n_classes)},
        0.0: {"la_ece_0": partial(la_ece, n_classes=n_classes), "la_ace_0": partial(la_ace, n_classes=n_classes)},
    }
    for tau, metrics in of_tau.items():
        keep = ~found[tau].ignore
        out |= measure(metrics, image[keep], (p[keep], found[tau].iou[keep], label[keep]), _matching(found[tau]))
    e = events(judged, p, label, image, gt_label, gt_image, crowd)
    best = {"lrp_optimal": partial(lrp_optimal, iou_threshold=iou_threshold, n_classes=n_classes)}
    out |= measure(best, e.image_ids, (e.scores, e.iou, e.outcome, e.labels), _matching(judged))
    objects = ~crowd & (gt_label >= 0)
    each = object_brier(corners, p, label, image, gt_boxes, gt_label, gt_image, pair_iou=overlap)[objects]
    return out | measure({"oce": oce}, gt_image[objects], (each,), {"iou_thresholds": [0.5, 0.75], "matching": RULE})


def _matching(matches: Matches) -> dict[str, Any]:
    ignored = int(matches.ignore.sum())
    return {"matching": matches.rule, "iou_threshold": matches.iou_threshold, "ignored_in_crowds": ignored}
