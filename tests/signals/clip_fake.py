"""A CLIP of a few lines with the methods of `clip.encoder.Encoder`, and embeddings made to measure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, normalize

from reliability_hooks.frame import Frame, View
from reliability_hooks.instances import Instances

DIM = 48


class FakeEncoder:
    """Texts are sums of a random vector for each word; pictures are plain statistics of their pixels.

    Args:
        unknown: Words that it has never learnt.
        parts: Whether it gives embeddings of parts.
    """

    name, dim, image_size, logit_scale = "fake", DIM, 32, 20.0
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    device = torch.device("cpu")

    def __init__(self, unknown: Sequence[str] = (), parts: bool = True) -> None:
        self.unknown, self.parts = set(unknown), parts
        self.encoded = 0
        self._texts: dict[str, Tensor] = {}
        self._mix = torch.randn(21, DIM, generator=torch.Generator().manual_seed(5))

    def images(self, crops: Tensor) -> Tensor:
        assert crops.shape[1:] == (3, 32, 32)
        assert crops.dtype == torch.float32
        smooth = avg_pool2d(crops, 3, 1, 1)
        fine = (crops - smooth).abs().mean((2, 3)).add(1e-4).log() / 3
        step = (crops[..., 8::8] - crops[..., 7:-1:8]).abs().mean((2, 3)).add(1e-4).log() / 3
        colour = adaptive_avg_pool2d(crops, 2).flatten(1)
        return normalize(torch.cat([fine, step, colour, crops.square().mean((2, 3))], 1) @ self._mix, dim=1)

    def dense(self, crops: Tensor) -> Tensor | None:
        if not self.parts:
            return None
        quarters = crops.unfold(2, 16, 16).unfold(3, 16, 16)
        cells = [self.images(quarters[:, :, i, j].repeat(1, 1, 2, 2)) for i in range(2) for j in range(2)]
        return torch.stack(cells, 2).unflatten(2, (2, 2))

    def texts(self, prompts: Sequence[str]) -> Tensor:
        for prompt in prompts:
            if prompt not in self._texts:
                self.encoded += 1
                self._texts[prompt] = normalize(torch.stack([word(w) for w in prompt.lower().split()]).sum(0), dim=0)
        return torch.stack([self._texts[p] for p in prompts])

    def average(self, groups: Sequence[Sequence[str]]) -> Tensor:
        return torch.stack([normalize(self.texts(list(group)).mean(0), dim=0) for group in groups])

    def knows(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([not self.unknown & set(p.lower().split()) for p in prompts], dtype=torch.bool)


def word(text: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return torch.randn(DIM, generator=torch.Generator().manual_seed(seed))


@dataclass
class Rows:
    """What `clip.embed.Embed` gives, chosen by hand."""

    encoder: FakeEncoder
    rows: Tensor
    too_small: Tensor
    mirrored: Tensor | None = None
    cells: Tensor | None = None
    asked: list[tuple[float, bool]] = field(default_factory=list)

    def __call__(self, ratio: float = 1.0, masked: bool = False, mirrored: bool = False) -> Tensor:
        self.asked.append((ratio, masked))
        rows = self.mirrored if mirrored and self.mirrored is not None else self.rows
        return rows.masked_fill(self.too_small[:, None], float("nan"))

    def dense(self, ratio: float = 1.0) -> Tensor | None:
        return self.cells


def seen(
    rows: Tensor,
    labels: Sequence[int] | None = None,
    names: Mapping[int, str] | None = None,
    *,
    encoder: FakeEncoder | None = None,
    small: Sequence[bool] | None = None,
    mirrored: Tensor | None = None,
    cells: Tensor | None = None,
) -> Frame:
    """A frame whose objects have these embeddings."""
    n = len(rows)
    found = Instances(
        torch.tensor([[0.0, 0.0, 30.0, 30.0]]).repeat(n, 1),
        torch.ones(n),
        torch.tensor([0] * n if labels is None else list(labels), dtype=torch.int64),
    )
    tiny = torch.tensor([False] * n if small is None else list(small), dtype=torch.bool)
    embed = Rows(encoder or FakeEncoder(), rows, tiny, mirrored, cells)
    return Frame(found, View(torch.rand(3, 40, 40)), names=names, embed=embed)  # type: ignore[arg-type]


def unit(n: int, seed: int = 0) -> Tensor:
    """(n, DIM) random unit rows."""
    return normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)
