"""How the pixels of an object look to the detector: sharpness, noise, light, colour, and how it stands out."""

from __future__ import annotations

from math import nan, pi
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..crops import content
from ..frame import Frame, View
from .base import Signal

CELL = 4
"""Side of a cell in view pixels: every statistic is made of values per cell. Two Haar levels make one."""
STEP = 8
"""Distance of the cells: a quarter of the pixels is looked at, which tells as much and costs a quarter."""
GRID = 8
"""Cells are sampled (bilinearly) at GRID x GRID points spread evenly over a box."""
EVERY = 31
"""Block artefacts are looked for in every n-th row; odd, so as to meet all parts of a block."""
SMALLEST = 2.0
"""An object whose visible box is smaller than this many view pixels across has no statistics."""
AROUND = 1.5
"""The surroundings: the box enlarged by this factor about its centre, without the box itself."""
DARK, BRIGHT = 0.15, 0.9
"""Cells whose mean luminance lies below or above count as dark or bright."""
_FLOOR = 1e-6
"""Energy of rounding to 8 bits, about (1/255)^2 / 12: a flat area is neither sharp nor soft."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class ImageStatistics(Signal):
    """Statistics of the pixels inside each box, around it, and of the whole view, as the detector saw them.

    Two levels of the Haar wavelet of the luminance l in [0, 1] give, for each 4 x 4 cell, its mean m, its fine energy
    F (details of 1-2 pixels), its coarse energy C (2-4 pixels) and the mean |HH| of its finest diagonal details;
    Var l is Var m + E[F] + E[C] (Parseval). R, G, B are taken at one pixel of each cell. Means E[] run over 8 x 8
    points of the box (its visible part, at least one cell), for `context_...` over all cells. Only every second
    cell is looked at in both directions.

    Columns (N,): `sharpness` log(E[F] / Var l); `detail` log E[F]; `resolution` log(E[F] / E[C]), at its least log(1/4)
    for a mere ramp; `noise` deviation of the noise from the median |HH| (Donoho & Johnstone 1994) as a share of full
    scale; `brightness` E[m]; `contrast` deviation of l; `dark`, `bright` share of dark and bright cells;
    `colorfulness` of Hasler & Suesstrunk (2003); `surround_contrast` distance of the mean (l, R-G, (R+G)/2-B) from
    that of the surroundings; `surround_detail` log(E[F] / its surroundings'); `view_size` log sqrt(area) in view
    pixels; and of the image `context_blockiness` log of the mean step across vertical lines of the 8 x 8 JPEG grid over
    that elsewhere.

    Undefined, hence NaN: the whole row where the box is not finite or less than 2 view pixels of it are visible;
    `surround_...` where nothing lies around the box; `context_blockiness` where the image was rescaled for the
    detector, since that moves the grid; everything where a pixel that is looked at is not finite, or no cell is whole.
    """

    name = "image"
    requires = ("image",)
    columns: ClassVar = {
        "image/sharpness": ("blurred", "sharp"),
        "image/detail": ("without detail", "rich in detail"),
        "image/resolution": ("low effective resolution", "full resolution"),
        "image/noise": ("free of noise", "noisy"),
        "image/brightness": ("dark", "bright"),
        "image/contrast": ("low contrast", "high contrast"),
        "image/dark": ("no dark areas", "mostly dark"),
        "image/bright": ("no overexposed areas", "mostly overexposed"),
        "image/colorfulness": ("colourless", "colourful"),
        "image/surround_contrast": ("blends into its surroundings", "stands out from its surroundings"),
        "image/surround_detail": ("softer than its surroundings", "sharper than its surroundings"),
        "image/view_size": ("seen with few pixels", "seen with many pixels"),
        "image/context_sharpness": ("blurred image", "sharp image"),
        "image/context_detail": ("image without detail", "image rich in detail"),
        "image/context_resolution": ("image of low effective resolution", "image of full resolution"),
        "image/context_noise": ("image free of noise", "noisy image"),
        "image/context_brightness": ("dark image", "bright image"),
        "image/context_contrast": ("image of low contrast", "image of high contrast"),
        "image/context_dark": ("image without dark areas", "mostly dark image"),
        "image/context_bright": ("image without overexposed areas", "mostly overexposed image"),
        "image/context_colorfulness": ("colourless image", "colourful image"),
        "image/context_blockiness": ("free of block artefacts", "block artefacts of compression"),
    }

    def __call__(self, frame: Frame) -> dict[str, Tensor]:
        found, view = frame.instances, frame.view
        if view is None:
            raise ValueError("the frame has no view (the pixels): skip this signal")
        n, boxes = len(found), found.boxes.float()
        x1, y1, x2, y2 = content(view, found.image_size)
        if min(x2 - x1, y2 - y1) < CELL:
            return {name: boxes.new_full((n,), nan) for name in self.columns}
        pixels = view.pixels[:, y1:y2, x1:x2]
        luma = _luminance(view, _every_second_cell(pixels)).flatten(2, 3).flatten(0, 1)
        rows, columns = luma.shape[0] // CELL, luma.shape[1] // CELL
        cells = _cells(luma, view.rgb(pixels[:, CELL // 2 :: STEP, CELL // 2 :: STEP][:, :rows, :columns]))

        extent = boxes.new_tensor([cells.shape[2], cells.shape[1]])
        visible = _clip(view.to_view(boxes) - boxes.new_tensor([x1, y1, x1, y1]), boxes.new_tensor([x2 - x1, y2 - y1]))
        pixel_size = visible[:, 2:] - visible[:, :2]
        seen = boxes.isfinite().all(1) & (pixel_size >= SMALLEST).all(1)
        in_cells = torch.where(seen[:, None], (visible + (STEP - CELL) / 2) / STEP, 0)
        size = (pixel_size / STEP).clamp(min=1)
        inner = _enlarge(in_cells, size, extent)
        outer = _enlarge(in_cells, size * AROUND, extent)

        values, points = _sample(cells, torch.cat([inner, outer]), extent)
        within, around = values[:, :n], values[:4, n:]
        outside = ((points[n:] < inner[:, None, :2]) | (points[n:] > inner[:, None, 2:])).any(-1).float()
        ring = (around * outside).sum(-1) / outside.sum(-1)  # 0 / 0 = NaN: nothing around it
        whole = cells.flatten(1).unsqueeze(1)
        moments = torch.cat([_moments(within), _moments(whole)], 1)
        statistics = _describe(moments)
        phase = x1 - round(view.offset[0]) if view.scale == (1.0, 1.0) else None

        table = torch.cat([
            statistics[:, :n],
            (moments[1:4, :n] - ring[1:]).square().sum(0, keepdim=True).sqrt(),
            ((moments[:1, :n] + _FLOOR) / (ring[:1] + _FLOOR)).log(),
            pixel_size.clamp(min=SMALLEST).log().mean(1).unsqueeze(0),
            torch.cat([statistics[:, n], _blockiness(view, pixels, phase)]).unsqueeze(1).expand(-1, n),
        ])  # fmt: skip
        # one pixel that is not finite makes this sum so, and times zero NaN
        table = table.masked_fill_(~seen, nan).add_(cells.sum() * 0)
        return dict(zip(self.columns, table, strict=True))


def _every_second_cell(pixels: Tensor) -> Tensor:
    """(3, h, w) -> (3, rows, CELL, columns, CELL): the cells that are looked at, not copied."""
    return pixels.unfold(1, CELL, STEP).unfold(2, CELL, STEP).transpose(2, 3)


def _luminance(view: View, pixels: Tensor) -> Tensor:
    """(3, ...) pixels of the view -> (...) luminance in [0, 1]."""
    # `view.rgb` and the weights in one: three passes over a plane instead of seven, at full resolution
    red, green, blue = pixels.float()
    weights = [weight * std for weight, std in zip(_LUMA, view.std, strict=True)]
    luma: Tensor = (red * weights[0]).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])
    black = sum(weight * mean for weight, mean in zip(_LUMA, view.mean, strict=True))
    return luma.add_(black) if black else luma


def _haar(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(h, w) -> mean of each 2 x 2 block, energy of its three details, its diagonal detail; each (h/2, w/2).

    The mean square of a block is mean^2 + energy.
    """
    total, step = x[0::2] + x[1::2], x[0::2] - x[1::2]
    mean, across = total[:, 0::2] + total[:, 1::2], total[:, 0::2] - total[:, 1::2]
    down, diagonal = step[:, 0::2] + step[:, 1::2], step[:, 0::2] - step[:, 1::2]
    energy = across.square_().add_(down.square_()).addcmul_(diagonal, diagonal).mul_(1 / 16)
    return mean.mul_(0.25), energy, diagonal.mul_(0.25)


def _halve(x: Tensor) -> Tensor:
    """(h, w) -> (h/2, w/2) mean of 2 x 2 blocks."""
    rows = x[0::2] + x[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]).mul_(0.25)


def _cells(luma: Tensor, rgb: Tensor) -> Tensor:
    """(6, h/4, w/4) values per cell, of the (h, w) pixels that are looked at: F, m, R-G, (R+G)/2-B, C, |HH|."""
    half, energy, diagonal = _haar(luma)
    mean, coarse, _ = _haar(half)
    red, green, blue = rgb
    return torch.stack([
        _halve(energy), mean, red - green, (red + green) / 2 - blue, coarse, _halve(diagonal.abs_())
    ])  # fmt: skip


def _moments(samples: Tensor) -> Tensor:
    """(6, R, S) samples of the cells -> (12, R): six means, three mean squares, median |HH|, dark and bright share."""
    luma = samples[1]
    return torch.cat([
        samples.mean(-1),
        samples[1:4].square().mean(-1),
        torch.stack([samples[5].median(-1).values, (luma < DARK).float().mean(-1), (luma > BRIGHT).float().mean(-1)]),
    ])  # fmt: skip


def _describe(moments: Tensor) -> Tensor:
    """(12, R) moments -> (9, R) statistics, in the order of `ImageStatistics.columns`."""
    fine, mean, red_green, yellow_blue, coarse, _, *_, diagonal, dark, bright = moments
    spread = (moments[6:9] - moments[1:4].square()).clamp_(min=0)
    variance = spread[0] + fine + coarse
    tint = (red_green.square() + yellow_blue.square()).sqrt()
    logs = (torch.stack([fine, variance, coarse]) + _FLOOR).log()
    return torch.stack([
        logs[0] - logs[1], logs[0], logs[0] - logs[2],
        diagonal * (2 * (pi / 2) ** 0.5),  # E|x| = sigma sqrt(2 / pi), and HH has half the deviation of the noise
        mean, variance.sqrt(), dark, bright, (spread[1] + spread[2]).sqrt() + 0.3 * tint,
    ])  # fmt: skip


def _clip(boxes: Tensor, extent: Tensor) -> Tensor:
    """(N, 4) xyxy clipped to [0, extent]."""
    return boxes.clamp(min=0).minimum(extent.repeat(2))


def _enlarge(boxes: Tensor, size: Tensor, extent: Tensor) -> Tensor:
    """(N, 4) boxes of the given (N, 2) size about the same centres, clipped."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    return _clip(torch.cat([center - size / 2, center + size / 2], 1), extent)


def _sample(cells: Tensor, boxes: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """(C, h, w) cells and (N, 4) boxes in cells -> (C, N, GRID^2) values and the (N, GRID^2, 2) points they lie at."""
    n = len(boxes)
    steps = (torch.arange(GRID, device=boxes.device, dtype=boxes.dtype) + 0.5) / GRID
    unit = torch.cartesian_prod(steps, steps)
    points = boxes[:, None, :2] + unit * (boxes[:, None, 2:] - boxes[:, None, :2])
    if n == 0:  # grid_sample takes no empty grid
        return cells.new_zeros(len(cells), 0, GRID * GRID), points
    at = (points / extent * 2 - 1).unsqueeze(0)
    values = grid_sample(cells.unsqueeze(0), at, mode="bilinear", padding_mode="border", align_corners=False)
    return values[0], points


def _blockiness(view: View, pixels: Tensor, phase: int | None) -> Tensor:
    """(1,) log ratio of the mean step across the JPEG grid to that elsewhere.

    `phase`: how many pixels after a vertical line of the grid `pixels` begins; None where there is no such grid.
    """
    if phase is None:
        return pixels.new_full((1,), nan, dtype=torch.float32)
    luma = _luminance(view, pixels[:, ::EVERY])
    steps = (luma[:, 1:] - luma[:, :-1]).abs_().mean(0)
    lines = steps[(7 - phase) % 8 :: 8]
    rest = (steps.sum() - lines.sum()) / (len(steps) - len(lines))
    level = 0.25 / 255  # below a quarter of a grey level there is nothing to compare
    return ((lines.mean() + level) / (rest + level)).log().view(1)
