"""A CLIP that embeds crops and texts, loaded by name; never with random weights unless they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .dense import cells
from .models import EMBEDDED, create, digest
from .texts import Texts

CHUNK = 64
"""Pictures or texts in one forward pass: bounds the memory."""
CHUNK_OF_MAPS = 8
"""Pictures in one forward pass of a ConvNet on a CPU: more of them push its maps out of the cache."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Encoder:
    """Pictures and texts -> unit-length vectors, whose inner product says how well they fit.

    Frozen and in evaluation mode. Results are float32 whatever the precision, and the caller's autocast and inference
    modes do not matter.

    Attributes:
        name: What `load` was given.
        fingerprint: The name, a hash of architecture and weights, and sizes; JSON-able.
        image_size: Side of the pictures in pixels.
        mean: RGB that is subtracted.
        std: RGB that is divided by.
        logit_scale: tau, already exponentiated: probabilities are softmax(tau cos).
        dim: D, length of the vectors.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, config: dict[str, Any], precision: str) -> None:
        prepared = model.visual.preprocess_cfg
        sides = {int(side) for side in torch.tensor(prepared["size"]).flatten()}
        if len(sides) > 1:
            raise ValueError(f"CLIP {name!r} takes pictures of {prepared['size']}; only square ones are cut")
        self.name, self.image_size, self.dim = name, sides.pop(), int(config["embed_dim"])
        self.mean: tuple[float, ...] = tuple(prepared["mean"])
        self.std: tuple[float, ...] = tuple(prepared["std"])
        self.logit_scale = float(model.logit_scale.detach().exp())
        sha = digest(model, config)
        self.fingerprint = {"name": name, "sha256": sha, "embed_dim": self.dim, "image_size": self.image_size}
        self._trunk = hasattr(model.visual, "trunk")
        if self._trunk:
            from .fused import fuse

            if precision == "fp32":  # halves would be rounded once more
                fuse(model.visual.trunk, self.image_size)
            model.visual.to(memory_format=torch.channels_last)
        self._model, self._tokenizer, self._dtype = model, tokenizer, DTYPES[precision]
        self._texts = Texts(self._encode, self.dim, sha)

    @property
    def device(self) -> torch.device:
        where: torch.device = self._model.logit_scale.device
        return where

    @property
    def encoded(self) -> int:
        """Texts that were really encoded, neither remembered nor read from the disk."""
        return self._texts.encoded

    def to(self, device: torch.device | str) -> Encoder:
        """Move, in place."""
        with torch.inference_mode(False):  # else the weights would be of no use in grad mode ever after
            self._model.to(device)
        return self

    def images(self, crops: Tensor) -> Tensor:
        """(N, 3, s, s) RGB in [0, 1] -> (N, D) unit-length float32; the encoder moves to where the crops are.

        Differentiable in the crops.

        Raises:
            ValueError: Another shape.
        """
        parts = self._each(self._model.encode_image, crops)
        return normalize(torch.cat(parts), dim=-1) if parts else crops.new_zeros(0, self.dim, dtype=torch.float32)

    def dense(self, crops: Tensor) -> Tensor | None:
        """(N, D, h, w) unit-length float32, one vector for each cell; None where the tower has none (`clip.dense`)."""
        some = crops if len(crops) else crops.new_zeros(1, *crops.shape[1:])  # no crops: one tells the shape
        parts = self._each(lambda pixels: cells(self._model.visual, pixels), some)
        return normalize(torch.cat(parts)[: len(crops)], dim=1) if parts else None

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(T, D) unit-length float32 on the encoder's device; each text is encoded once and kept on disk.

        Raises:
            TypeError: A single string, where a list of them belongs.
        """
        if isinstance(prompts, str):
            raise TypeError(f"texts takes a list of texts: [{prompts!r}]")
        with torch.inference_mode(False):  # what is remembered serves in grad mode too
            return self._texts(prompts, self.device)

    def average(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """(G, D): unit-length mean of the texts of each group (prompt ensembling, Radford et al. 2021).

        Raises:
            ValueError: A group is empty.
            TypeError: A group is a single string.
        """
        for group in groups:
            if isinstance(group, str) or not group:
                raise (TypeError if group else ValueError)(f"each group is a list of texts, not {group!r}")
        which = torch.tensor([g for g, group in enumerate(groups) for _ in group], dtype=torch.int64)
        with torch.inference_mode(False):
            rows = self.texts([prompt for group in groups for prompt in group])
            total = rows.new_zeros(len(groups), self.dim).index_add_(0, which.to(rows.device), rows)
            mean: Tensor = normalize(total, dim=-1)
            return mean

    def knows(self, prompts: Sequence[str]) -> Tensor:
        """(T,) bool: no token of the text has an embedding of zeros, as words never met in training are left."""
        if not prompts:
            return torch.zeros(0, dtype=torch.bool, device=self.device)
        table = getattr(getattr(self._model, "text", self._model), "token_embedding", None)
        if table is None:  # a language model of its own
            return torch.ones(len(prompts), dtype=torch.bool, device=self.device)
        tokens = self._tokenizer(list(prompts)).to(self.device)
        empty: Tensor = (table.weight == 0).all(1)[tokens]
        end = getattr(self._tokenizer, "eot_token_id", None)
        if end is not None:  # what follows it is padding
            empty &= (tokens == end).cumsum(1) == 0
        return ~empty.any(1)

    def _each(self, tower: Callable[[Tensor], Tensor | None], crops: Tensor) -> list[Tensor]:
        """float32 results of a tower for chunk after chunk of the normalised crops; none where it gives None."""
        if crops.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"crops must be (N, 3, {self.image_size}, {self.image_size}), not {tuple(crops.shape)}")
        if crops.device != self.device:
            self.to(crops.device)
        mean, std = (crops.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        parts = []
        with torch.autocast(crops.device.type, enabled=False):
            most = CHUNK_OF_MAPS if self._trunk and crops.device.type == "cpu" else CHUNK
            order = torch.channels_last if self._trunk else torch.contiguous_format
            for chunk in torch.split(crops, most) if len(crops) else ():
                pixels = (chunk.float() - mean) / std
                part = tower(pixels.to(self._dtype, memory_format=order))
                if part is None:
                    break
                parts.append(part.float())
        return parts

    def _encode(self, prompts: list[str]) -> Tensor:
        parts = []
        with torch.autocast(self.device.type, enabled=False):
            for i in range(0, len(prompts), CHUNK):
                tokens = self._tokenizer(prompts[i : i + CHUNK]).to(self.device)
                parts.append(self._model.encode_text(tokens).float())
        return normalize(torch.cat(parts), dim=-1)


def load(name: str = EMBEDDED, device: torch.device | str | None = None, precision: str | None = None) -> Encoder:
    """A CLIP by name; one object for each name and precision in a process, on the CPU until it is moved.

    Args:
        name: `condition-clip` (comes with the package); `MODEL/TAG` of open_clip, as `ViT-B-32/laion2b_s34b_b79k`;
            `hf-hub:ORG/REPO`; `local-dir:PATH` with open_clip_config.json and open_clip_model.safetensors;
            `random:MODEL`, seeded random weights, for tests and timing alone.
        device: Where it is moved.
        precision: `fp32`, `fp16` or `bf16`; None is `fp32`.

    Raises:
        ValueError: No such model, weights that are missing, incomplete or cannot be fetched, an unknown precision.
        ImportError: open_clip is not installed.
    """
    if precision is not None and precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
    encoder = _load(name, precision or "fp32")
    return encoder if device is None else encoder.to(device)


@cache
def _load(name: str, precision: str) -> Encoder:
    return Encoder(name, *create(name, precision), precision)
