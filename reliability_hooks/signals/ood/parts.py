"""Detectors of recurring parts, learnt without labels (PARTICUL, Xu-Darme et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

UNICITY = 0.8
RATE, DECAY = 5e-3, 1e-5
STEPS, BATCH = 150, 32
"""Chosen on known objects alone: at the late stage of yolo11n the losses on other photographs are no lower after 300 or
1000 steps than after 100."""


def part_maps(maps: Tensor, detectors: Tensor) -> Tensor:
    """(N, P, h, w) where each part is: the spatial softmax of its correlation, which sums to 1 over h x w.

    Args:
        maps: (N, D, h, w) features.
        detectors: (P, D), or (N, P, D) one set for each object: 1 x 1 convolutions without bias.
    """
    # places before parts: one product of matrices instead of a batch of them
    active = (maps.flatten(2).mT @ detectors.mT).softmax(1).mT
    return active.reshape(*active.shape[:2], *maps.shape[2:])


def locality(active: Tensor) -> Tensor:
    """How far the activations are spread, in [-1, 0]: -mean max_hw (A * 1_3x3).

    Args:
        active: (N, P, h, w) part maps; outside of them is zero.
    """
    h, w = active.shape[2:]
    place = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    near = ((place[:, None] - place).abs().amax(2) <= 1).to(active)  # one product: a convolution costs several times it
    return -(active.flatten(2) @ near).amax(2).mean()


def unicity(active: Tensor) -> Tensor:
    """How far parts lie on one another, >= 0: mean ReLU(max_hw sum_p A_p - 1)."""
    return (active.sum(1).flatten(1).amax(1) - 1).relu().mean()


def train_parts(maps: Tensor, parts: int, seed: int = 0) -> Tensor:
    """(parts, D) float32 detectors that minimise `locality` + 0.8 `unicity` on the maps, by RMSprop.

    Each channel counts in its deviations while learning, so that the rate suits features of any scale; what a map has
    everywhere alike changes no part map. A channel that never varies is left out.

    Args:
        maps: (N, D, h, w), N >= 1, any floating type.
        parts: Number of detectors.
        seed: Of the first detectors and of the batches.
    """
    n, d, h, w = maps.shape
    places = maps.flatten(2).mT.contiguous()
    generator = torch.Generator().manual_seed(seed)
    scale = deviation(maps)
    unit = torch.where(scale > 0, 1 / scale, 0)
    with torch.inference_mode(False), torch.enable_grad(), one_thread():
        start = (2 * torch.rand(parts, d, generator=generator) - 1) / d**0.5
        weight = start.requires_grad_()
        optimizer = torch.optim.RMSprop([weight], RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            chosen = torch.randint(n, (BATCH,), generator=generator) if n > BATCH else torch.arange(n)
            active = part_maps(places[chosen].float().mT.view(-1, d, h, w), weight * unit)
            loss = locality(active) + UNICITY * unicity(active)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    found: Tensor = weight.detach() * unit
    return found


def deviation(maps: Tensor, chunk: int = 64) -> Tensor:
    """(D,) float32 deviation of each channel over objects and places; 0 where it is nothing but rounding."""
    total = torch.zeros(2, maps.shape[1], dtype=torch.float64)
    for part in torch.split(maps, chunk):  # memory: the whole in float64 is four times what is kept
        wide = part.double()
        total += torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
    mean, square = total / (len(maps) * maps[0, 0].numel())
    variance = square - mean.square()
    return torch.where(variance > 1e-10 * square, variance, 0).sqrt().float()


def strongest(maps: Tensor, detectors: Tensor, chunk: int = 64) -> Tensor:
    """(N, P) the highest raw correlation of each detector (P, D) anywhere on each map (N, D, h, w)."""
    parts = [(part.float().flatten(2).mT @ detectors.mT).amax(1) for part in torch.split(maps, chunk)]
    return torch.cat(parts) if parts else detectors.new_zeros(0, len(detectors))


def calibrate(maxima: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale (P,) of the logistic distribution of each column, of maximum likelihood.

    The mean of `sigmoid((maxima - location) / scale)` is then 1/2. A column that never varies has a scale of a
    thousandth of its size.

    Args:
        maxima: (N, P), N >= 1.
    """
    from scipy.stats import logistic

    columns = maxima.double().T
    floor = 1e-3 * columns.abs().mean(1) + 1e-6
    fits = [
        logistic.fit(x.numpy()) if float(x.std(correction=0)) > float(least) else (float(x.mean()), 0.0)
        for x, least in zip(columns, floor, strict=True)
    ]
    location, scale = torch.tensor(fits, dtype=torch.float64).T
    return location.float(), torch.maximum(scale, floor).float()


@contextmanager
def one_thread() -> Iterator[None]:
    """Small products wait longer for a second thread than they take; and sums are always the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
