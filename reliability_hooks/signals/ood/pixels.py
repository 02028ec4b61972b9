"""Pixels moved by the sign of a gradient (Goodfellow et al. 2015, Explaining and Harnessing Adversarial Examples)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...frame import Frame, View
from ...instances import Head


def gradient_sign(frame: Frame, loss: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """(3, h, w) in {-1, 0, 1}: the sign of the gradient of the objects' losses by the view's pixels.

    One backward pass of the sum of all losses serves the whole image. Where objects see the same pixels this is not
    what each would ask for alone.

    Args:
        frame: With a view and a look.
        loss: (n, K) logits of the chosen objects, without the background -> (n,).
        rows: (N,) bool, the chosen objects; pixels stay where there is none.

    Raises:
        ValueError: The frame has no view or no look.
    """
    view, look = frame.view, frame.look
    if view is None or look is None:
        raise ValueError("the frame has no view, or its detector cannot look at other pixels: skip this signal")
    if not bool(rows.any()):
        return torch.zeros_like(view.pixels, dtype=torch.float32)
    with torch.inference_mode(False), torch.enable_grad():  # detectors run without; clones are fit for gradients
        pixels = view.pixels.clone().float().requires_grad_()
        logits = frame.instances.without_background(look(pixels[None]).logits[0])
        total = loss(logits[rows.clone()]).sum()
        return torch.autograd.grad(total, pixels)[0].nan_to_num().sign()


def moved(view: View, by: Tensor, clip: bool = False) -> Tensor:
    """(3, h, w) float32 pixels as the view's.

    Args:
        view: The pixels.
        by: (3, h, w) steps in units of the pixels' range [0, 1].
        clip: Whether they stay within that range.
    """
    mean, std = (by.new_tensor(v).view(3, 1, 1) for v in (view.mean, view.std))
    pixels = view.pixels.float() + by / std
    return pixels.clamp(-mean / std, (1 - mean) / std) if clip else pixels


def log_probabilities(logits: Tensor, head: Head) -> Tensor:
    """(N, K) logits without the background -> log softmax over the given columns, or the log sigmoid of each."""
    return torch.nn.functional.logsigmoid(logits) if head == "sigmoid" else logits.log_softmax(-1)
