"""Names -> open_clip models with all their weights, or an error that says what to do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

EMBEDDED = "condition-clip"
ASSETS = Path(__file__).parents[1] / "assets"


def create(name: str, precision: str = "fp32") -> tuple[Any, Any, dict[str, Any]]:
    """The model, frozen, on the CPU; its tokenizer; its configuration. Names as in `encoder.load`.

    Raises:
        ValueError: No such model, or its weights are missing, incomplete or cannot be fetched.
        ImportError: open_clip is not installed.
    """
    try:
        import open_clip
    except ImportError as e:
        raise ImportError('CLIP signals need open_clip: pip install "reliability_hooks[clip]"') from e
    from . import trunk  # noqa: F401 (registers the embedded model's vision tower)

    model_name, options = _resolve(name)
    random = not options.get("load_weights", True)
    try:
        with _undisturbed():
            if random:
                torch.default_generator.manual_seed(0)
            model = open_clip.create_model(
                model_name, precision=precision, pretrained_text=False, require_pretrained=not random, **options
            )
            tokenizer = open_clip.get_tokenizer(model_name)
            config = open_clip.get_model_config(model_name)
    except ImportError:
        raise
    except Exception as e:  # open_clip, huggingface_hub, safetensors and torch each raise their own
        raise ValueError(f"CLIP {name!r} cannot be loaded. {_advice(name)} ({str(e)[:500]})") from e
    config |= {"quick_gelu": options.get("force_quick_gelu", False) or config.get("quick_gelu", False)}
    return model.eval().requires_grad_(False), tokenizer, config


def digest(model: Any, config: dict[str, Any]) -> str:
    """16 hex digits that change with the architecture, the weights and their precision."""
    sha = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]


def _resolve(name: str) -> tuple[str, dict[str, Any]]:
    """What open_clip calls it, and further arguments of `create_model`."""
    import open_clip

    if name == EMBEDDED:
        return f"local-dir:{ASSETS / EMBEDDED}", {}
    if name.startswith(("local-dir:", "hf-hub:")):
        return name, {}
    model, _, tag = name.removeprefix("random:").partition("/")
    known = open_clip.list_models()
    if model not in known:
        raise ValueError(f"no CLIP is called {name!r}{_nearest(model, [EMBEDDED, *known])}")
    if name.startswith("random:"):
        return model, {"load_weights": False}
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise ValueError(f"{name!r} names no weights of {model}{_nearest(tag, tags)} As {model}/TAG there are: "
                         f"{', '.join(tags) or 'none'}")
    # a tag trained with QuickGELU says so; without it the model would be another one, with no more than a warning
    quick = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False))
    return model, {"pretrained": tag, "force_quick_gelu": quick}


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, 1, 0)
    return f"; did you mean {near[0]!r}?" if near else ";"


def _advice(name: str) -> str:
    if name == EMBEDDED:
        return f"The package should bring it along in {ASSETS / EMBEDDED}: install the package anew."
    if name.startswith("local-dir:"):
        return "Its folder must hold open_clip_config.json and open_clip_model.safetensors with all the weights."
    return ("Its files come from the Hugging Face hub: connect once, or copy them here and name the folder as "
            "local-dir:PATH.")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """The process around stays as it is: its random numbers, its logging, and its inference mode leaves no mark."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # else the first logging.info of open_clip would give the root logger a handler for good
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            yield
    finally:
        root.removeHandler(silent)
