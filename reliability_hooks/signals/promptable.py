"""What a promptable segmenter (Segment Anything) says of its own mask, and what it makes of other prompts."""

from __future__ import annotations

from math import nan
from typing import ClassVar

import torch
from torch import Tensor

from ..frame import Frame
from .base import Signal
from .mask_quality import overlap

SHARE = 0.05
"""How far a prompt is moved, as a share of the width and height of the object's box."""
MOVES = ((1, 1, 1, 1), (-1, -1, -1, -1), (-1, 1, 1, -1), (1, -1, -1, 1))
"""Signs of the moves of left, top, right and bottom: to the lower right, to the upper left, wider and flatter,
narrower and taller."""


class Promptable(Signal):
    """Is the mask the same when the prompt moves a little, and do the other answers to the prompt agree with it?

    The prompt is moved four times, each side of the object's box by a twentieth of its width or height, and the mask
    decoder runs again on the same image embedding. The other answers are those that the decoder makes to the same
    prompt besides the one that was returned: a whole, a part, a part of the part.

    Columns (N,): `predicted_iou` the IoU that the model predicts for the mask; `moved_iou` mean IoU of the mask with
    those of the moved prompts, and `moved_worst` the lowest; `moved_predicted` mean predicted IoU of these, less the
    mask's own; `others_iou` mean IoU with the other answers, and `others_best` the highest; `rival` predicted IoU of
    the surest other answer, less the mask's own.

    Undefined, hence NaN: the whole row where the pass of the decoder is not known; `moved_...` where the prompt was a
    mask alone, or the box is not finite, and IoU of two empty masks.
    """

    name = "promptable"
    requires = ("prompted",)
    columns: ClassVar = {
        "promptable/predicted_iou": ("low predicted IoU", "high predicted IoU"),
        "promptable/moved_iou": ("mask changes with the prompt", "mask stays when the prompt moves"),
        "promptable/moved_worst": ("a small move of the prompt loses the mask", "no small move of the prompt loses it"),
        "promptable/moved_predicted": ("moved prompts promise less", "moved prompts promise more"),
        "promptable/others_iou": ("other answers show something else", "other answers agree"),
        "promptable/others_best": ("no other answer agrees", "another answer agrees"),
        "promptable/rival": ("the surest answer", "another answer is surer"),
    }

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        if frame.prompted is None:
            raise ValueError("the frame has no prompts: skip this signal")
        known, boxes = frame.prompted(), frame.instances.boxes.float()
        own = known.logits > 0
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        masks, ious = known.reprompt(boxes + SHARE * size * boxes.new_tensor(MOVES)[:, None])
        movable = known.movable & boxes.isfinite().all(1)
        moved = torch.where(movable, overlap(own, masks), nan)
        promised = torch.where(movable, ious, nan).mean(0) - known.ious
        others = overlap(own[:, None], known.others)
        values = torch.stack([
            known.ious, moved.mean(0), moved.amin(0), promised, others.mean(1), others.amax(1),
            known.other_ious.amax(1) - known.ious,
        ])  # fmt: skip
        return dict(zip(self.columns, values.float().masked_fill(~known.ious.isfinite(), nan), strict=True))
