"""How sure is a reliability? An interval that counts images, not detections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .binning import interpolate
from .scores import image_codes, labelled_rows, logit
from .state import State

KNOTS = 64
BENDS = (0.2, 0.4, 0.6, 0.8)  # quantiles of the logit: bends enough that the curve's own bias is small beside the band
RIDGE = 1.0  # keeps a draw with all detections right, or few, finite
STEPS = 25


@dataclass(frozen=True, eq=False)
class Interval:
    """Pointwise bootstrap band of the calibration curve, logit of the reliability -> P(correct).

    Why not Venn-ABERS: its validity is that of exchangeable detections, and those of one image (or of one
    photograph under several conditions) share light, scene and crowd. Its intervals, and a bootstrap of
    detections, are too narrow then. Here whole **images are drawn with replacement** (cluster bootstrap; Davison &
    Hinkley 1997, section 3.8) and the curve is fitted again to each draw: a logistic regression on
    the logit and on linear splines that bend at its quintiles, hardly penalised towards the identity. The
    band holds the quantiles of these curves.

    What it says: the share of right ones among all detections of this reliability lies in the interval, with
    about the nominal probability over calibration sets of so many images, on average over the detections. It
    assumes that images are exchangeable, with new ones too, and takes the model that gave the reliability as
    fixed: so the reliabilities must be out of fold. With fewer than about 20 images the band is too narrow,
    as every bootstrap is; with fewer than two there is none, and it is [0, 1].

    Attributes:
        x: (K,) logits, increasing.
        low, high: (K,) band in [0, 1].
        level: nominal coverage.
        images: how many there were.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    level: float
    images: int

    @classmethod
    def fit(
        cls,
        reliability: Tensor,
        target: Tensor,
        image: Tensor | None,
        level: float = 0.9,
        draws: int = 200,
        seed: int = 0,
    ) -> Interval:
        """Fit on out-of-fold reliabilities.

        Args:
            reliability: (N,) in [0, 1], each made without the row's own image; NaN rows are left out.
            target: (N,) bool, or float in [0, 1] such as an IoU.
            image: (N,) integer ids of what is independent: images, or photographs where several versions of
                one are used. None: every detection by itself, which is the naive interval.
            level: nominal coverage in (0, 1).
            draws: number of bootstrap samples.
            seed: of the draws.

        Raises:
            ValueError: no labelled row, a wrong shape or range.
        """
        if not 0 < level < 1 or draws < 2:
            raise ValueError(f"level must lie in (0, 1) and draws be at least 2, got {level} and {draws}")
        s, t, _ = labelled_rows(reliability, target, None)
        codes = image_codes(image, len(reliability))[~reliability.detach().cpu().isnan()]
        codes = image_codes(codes, len(s))
        images = int(codes.max()) + 1
        x = logit(s)
        low, high = float(x.min()), float(x.max())
        at = torch.linspace(low, high if high > low else low + 1, KNOTS, dtype=torch.float64)
        if images < 2:
            return cls(at, torch.zeros_like(at), torch.ones_like(at), level, images)
        bends = torch.quantile(x, torch.tensor(BENDS, dtype=torch.float64))
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(images, (draws, images), generator=generator)
        counts = torch.zeros(draws, images, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(draws, images, dtype=torch.float64)
        )
        theta = _refit(_basis(x, bends), x, t, codes, counts)
        curves = torch.sigmoid(at + theta @ _basis(at, bends).T)
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        band = torch.quantile(curves, tails, dim=0)
        return cls(at, band[0].clone(), band[1].clone(), level, images)

    def predict(self, reliability: Tensor) -> tuple[Tensor, Tensor]:
        """Reliabilities (N,) to low and high, float32 (N,) on their device.

        0 <= low <= reliability <= high <= 1: where the band lies beside the model's own value, the interval is
        stretched to it. NaN gives NaN.
        """
        r = reliability.detach().cpu().to(torch.float64)
        x = logit(r)
        low = torch.minimum(interpolate(x, self.x, self.low), r)
        high = torch.maximum(interpolate(x, self.x, self.high), r)
        device = reliability.device
        return low.to(torch.float32).to(device), high.to(torch.float32).to(device)

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        return {"x": self.x, "low": self.low, "high": self.high}, {"level": self.level, "images": self.images}

    @classmethod
    def from_state(cls, state: State) -> Interval:
        """Rebuild from `state()`."""
        return cls(**state[0], level=float(state[1]["level"]), images=int(state[1]["images"]))


def _basis(x: Tensor, bends: Tensor) -> Tensor:
    """(N, 2 + len(bends)): constant, x, and one linear spline for each bend."""
    return torch.cat([torch.ones_like(x)[:, None], x[:, None], (x[:, None] - bends).clamp(min=0)], 1)


def _refit(basis: Tensor, x: Tensor, t: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """(D, F) coefficients of the logistic regressions with offset x, one for each row of image counts (D, I).

    Newton's method on all draws at once, over blocks of rows to bound the memory.
    """
    features = basis.shape[1]
    theta = torch.zeros(len(counts), features, dtype=torch.float64)
    ridge = RIDGE * torch.eye(features, dtype=torch.float64)
    pairs = (basis[:, :, None] * basis[:, None, :]).flatten(1)
    for _ in range(STEPS):
        gradient = -RIDGE * theta
        hessian = ridge.expand(len(counts), -1, -1).clone()
        for rows in torch.split(torch.arange(len(x)), 4096):
            weight = counts[:, codes[rows]]
            p = torch.sigmoid(x[rows] + theta @ basis[rows].T)
            gradient = gradient + (weight * (t[rows] - p)) @ basis[rows]
            hessian += ((weight * p * (1 - p)) @ pairs[rows]).view(-1, features, features)
        step = torch.linalg.solve(hessian, gradient)
        theta = theta + step * (2.0 / step.abs().amax(1, keepdim=True)).clamp(max=1.0)
        if float(step.abs().max()) < 1e-6:
            break
    return theta
