"""Detections of labelled images, and what is true of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..instances import Instances
from .datasets import GroundTruth
from .matching import Matches, match


def labelled(
    pairs: Sequence[tuple[Instances, GroundTruth]], iou_threshold: float = 0.5
) -> tuple[Instances, Tensor, Tensor, Tensor]:
    """All detections of labelled images with what is true of them; those on crowd regions are left out.

    Returns:
        rows: All instances, without masks, logits and features.
        correct: (N,) bool, true positive at `iou_threshold` (COCO greedy matching).
        iou: (N,) IoU with the object matched at any overlap, 0 without one (the target of LaECE_0).
        image: (N,) index of the pair.

    Raises:
        ValueError: No pairs.
    """
    if not pairs:
        raise ValueError("no labelled images: pass at least one (instances, ground truth)")
    bare = [
        i.replace(masks=None, logits=None, head=None, background=None, features=None, track_ids=None).cpu()
        for i, _ in pairs
    ]
    rows = Instances.cat(bare)
    image = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor([len(i) for i in bare]))

    truths = [t for _, t in pairs]

    def at(threshold: float) -> Matches:
        return match(
            rows.boxes,
            rows.scores,
            rows.labels,
            image,
            np.concatenate([t.boxes for t in truths]),
            np.concatenate([t.labels for t in truths]),
            np.repeat(np.arange(len(pairs)), [len(t) for t in truths]),
            np.concatenate([t.crowd for t in truths]),
            iou_threshold=threshold,
        )

    strict, any_overlap = at(iou_threshold), at(0.0)
    keep = torch.from_numpy(~strict.ignore)
    iou = torch.from_numpy(any_overlap.iou * any_overlap.tp)
    return rows[keep], torch.from_numpy(strict.tp)[keep], iou[keep].float(), image[keep]
