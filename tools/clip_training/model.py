"""The embedded CLIP as open_clip builds it, and how it is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .samples import SIZE

CONTEXT = 32
DROP = 0.3
"""Of the trunk's features in training: some 1,800 objects teach 80 classes."""
CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "reliability_hooks_condition_trunk", "timm_pool": "", "timm_proj": "mlp",
                   "image_size": SIZE},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 96, "heads": 4, "layers": 3},
}  # fmt: skip
PREPROCESS = {"size": SIZE, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear",
              "resize_mode": "squash", "fill_color": 0}  # fmt: skip
TOKENIZER = SimpleTokenizer(context_length=CONTEXT)


def build(folder: Path) -> nn.Module:
    """The untrained model."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rh-condition-clip.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    open_clip.add_model_config(path)
    model: nn.Module = open_clip.create_model("rh-condition-clip", pretrained=None)
    return model


def write(model: nn.Module, folder: Path) -> dict[str, Any]:
    """`open_clip_config.json` and `open_clip_model.safetensors` in half precision.

    Returns:
        Size in bytes and sha256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    file = folder / "open_clip_model.safetensors"
    save_file(half, file)
    return {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


class Heads(nn.Module):
    """What is trained: the projection of the trunk's standardised features, the text tower, the temperature.

    Args:
        model: As `build` gives it; its token embeddings are set to zero.
        texts: Words enough that every token of training occurs in them. Only these tokens are trained, which spares
            the gradients of 45,000 others.
    """

    used: Tensor
    place: Tensor

    def __init__(self, model: nn.Module, texts: Sequence[str]) -> None:
        super().__init__()
        self.image, self.text = model.visual.head, model.text
        self.logit_scale = model.logit_scale
        self.mask: Tensor = self.text.attn_mask
        every = self.text.token_embedding
        used = torch.unique(torch.stack([_tokens(text) for text in texts]))
        place = torch.full((every.num_embeddings,), -1)
        place[used] = torch.arange(len(used))
        self.register_buffer("used", used)
        self.register_buffer("place", place)
        self.text.token_embedding = nn.Embedding.from_pretrained(every.weight[used].detach(), freeze=False)
        self.size = every.weight.shape

    def images(self, standard: Tensor) -> Tensor:
        """(N, D) standardised -> (N, E) unit length."""
        kept = nn.functional.dropout(standard, DROP, self.training)
        return nn.functional.normalize(self.image(kept), dim=1)

    def texts(self, said: Sequence[str]) -> Tensor:
        """(T, E) unit length."""
        tokens = torch.stack([_tokens(text) for text in said])
        length = int((tokens != 0).sum(1).max())  # attention is causal: what follows the end changes nothing
        self.text.attn_mask = self.mask[:length, :length]
        # on a CPU the fused attention is slow on the way back
        with torch.autocast(self.mask.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            x, mask = self.text._embeds(self.place[tokens[:, :length]])
            x = self.text.ln_final(self.text.transformer(x, attn_mask=mask))
            found = x[torch.arange(len(tokens)), tokens.argmax(1)] @ self.text.text_projection
        self.text.attn_mask = self.mask
        return nn.functional.normalize(found.float(), dim=1)

    def whole(self) -> nn.Embedding:
        """The token embeddings at full size, zero for every token that was not trained."""
        weight = torch.zeros(self.size)
        weight[self.used] = self.text.token_embedding.weight.detach()
        return nn.Embedding.from_pretrained(weight)


@lru_cache(maxsize=1 << 18)
def _tokens(text: str) -> Tensor:
    row: Tensor = TOKENIZER([text])[0]
    return row
