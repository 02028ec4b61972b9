"""A torchvision detector from its name and a weights file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .torchvision_demo import SCORE_THRESH, load_demo_detector

_CLASS_BIAS = (
    "roi_heads.box_predictor.cls_score.bias",  # R-CNN
    "head.classification_head.cls_logits.bias",  # RetinaNet, FCOS
    "head.classification_head.module_list.0.bias",  # SSD
    "head.classification_head.module_list.0.1.bias",  # SSDlite
)


def load(
    spec: str,
    *,
    names: Sequence[str] | Mapping[int, str] | None = None,
    num_classes: int | None = None,
    allow_random: bool = False,
    **options: Any,
) -> nn.Module:
    """A detector in eval mode.

    Args:
        spec: `ARCHITECTURE:WEIGHTS`, the architecture being the name of a builder of `torchvision.models.detection`.
            WEIGHTS is a state dict (`.pth`, `.pt`, `.safetensors`) or one of torchvision's own by name (`DEFAULT`,
            `COCO_V1`), which are downloaded. `demo` is the embedded one (`torchvision_demo`).
        names: Class names, the first being the background's; set as `model.class_names`.
        num_classes: With the background; read from the weights where not given.
        allow_random: Answer an architecture without weights with random ones instead of refusing it.
        **options: Passed to the builder (`min_size=640`, `box_score_thresh=0.2`, `num_keypoints=5`).

    Raises:
        ValueError: Unknown architecture (the message names the nearest), no weights, or weights that do not fit.
        FileNotFoundError: The weights are not there.
        ConnectionError: torchvision's own weights could not be downloaded.
    """
    from torchvision.models import detection, get_model_builder, get_model_weights, list_models

    if spec == "demo":
        demo: nn.Module = load_demo_detector(**{"score_thresh": SCORE_THRESH, **options})  # as its monitor knows it
        return demo
    architecture, _, weights = spec.partition(":")
    known = list_models(module=detection)
    if architecture not in known:
        near = get_close_matches(architecture, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown architecture {architecture!r}{hint} There are: {', '.join(known)}")
    builder = get_model_builder(architecture)
    published = get_model_weights(architecture)
    if not weights and not allow_random:
        raise ValueError(
            f"{architecture} needs weights: write {architecture}:FILE.pth, or {architecture}:DEFAULT for torchvision's "
            "own (downloaded); allow_random=True builds it with random weights"
        )
    if weights in published.__members__:
        model = _download(builder, published[weights], spec, num_classes=num_classes, **options)
    else:
        state = _read(weights) if weights else {}
        num_classes = num_classes or _count_classes(builder, state)
        model = builder(weights=None, weights_backbone=None, num_classes=num_classes, **options)
        if weights:
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                fault = f"{weights} does not fit {architecture} with {num_classes} classes: {error}"
                raise ValueError(fault) from error
    if names is not None:
        setattr(model, "class_names", dict(names) if isinstance(names, Mapping) else list(names))  # noqa: B010
    model.eval()
    return model


def _download(builder: Callable[..., nn.Module], weights: Any, spec: str, **options: Any) -> nn.Module:
    try:
        return builder(weights=weights, **options)
    except OSError as error:  # urllib's URLError is one
        raise ConnectionError(
            f"could not download {weights.url} ({error}); get the file elsewhere and write "
            f"{spec.partition(':')[0]}:FILE"
        ) from error


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights file {path!r}")
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        loaded: dict[str, Any] = load_file(path)
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = loaded.get("model", loaded)  # torchvision's training script nests it
    return state


def _count_classes(builder: Callable[..., nn.Module], state: Mapping[str, Tensor]) -> int | None:
    """Classes that a state dict was trained on; None where its class layer has another name than torchvision's."""
    name = next((n for n in _CLASS_BIAS if n in state), None)
    if name is None:
        return None
    with torch.device("meta"):  # shapes only
        single = builder(weights=None, weights_backbone=None, num_classes=1).state_dict()
    return len(state[name]) // len(single[name]) if name in single else None
