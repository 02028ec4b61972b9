"""A Detectron2 predictor from a config and weights. Imported only where Detectron2 is wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import nn

from .detectron2_config import ZOO, load_config, zoo_file

SPEC = re.compile(rf"(?P<config>(?:{ZOO})?.+?\.(?:ya?ml|py))(?::(?P<weights>.+))?")
BACKBONE_ONLY = "ImageNetPretrained"
"""In the address of weights that hold no detector."""


class Predictor(DefaultPredictor):  # type: ignore[misc]
    """A `DefaultPredictor` made from its parts, so that a LazyConfig can have one too.

    Args:
        model: In eval mode.
        aug: What an image goes through first.
        input_format: `BGR` or `RGB`, what the model is given.
        metadata: Of the data set whose classes it knows.
        cfg: The yaml config that it was made of, if it was.
    """

    def __init__(self, model: nn.Module, aug: Any, input_format: str, metadata: Any = None, cfg: Any = None) -> None:
        self.model, self.aug, self.input_format, self.metadata, self.cfg = model, aug, input_format, metadata, cfg

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """(H, W, 3) uint8 BGR -> what the model returns of it."""
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        height, width = image.shape[:2]
        data = T.AugInput(np.ascontiguousarray(image))
        self.aug(data)
        pixels = torch.from_numpy(np.ascontiguousarray(data.image.astype("float32").transpose(2, 0, 1)))
        with torch.no_grad():
            found: dict[str, Any] = self.model([{"image": pixels, "height": height, "width": width}])[0]
        return found

    def to(self, device: torch.device | str) -> Predictor:
        """With the model on another device."""
        self.model.to(device)
        return self


def load(
    spec: str,
    *,
    opts: Sequence[Any] = (),
    device: str | None = None,
    names: Sequence[str] | Mapping[int, str] | None = None,
    allow_random: bool = False,
) -> Predictor:
    """A predictor in eval mode.

    Args:
        spec: `CONFIG.yaml:WEIGHTS` or `CONFIG.py:WEIGHTS` (a LazyConfig), CONFIG being a path or, behind `model_zoo:`,
            a config of the zoo. Without WEIGHTS those of the config are taken, or for the zoo its own, downloaded.
        opts: Overrides of the config: `["INPUT.MIN_SIZE_TEST", 480]`, of a LazyConfig `["model.num_classes=3"]`.
        device: `cpu`, `cuda` ...; a GPU where there is one without it.
        names: Class names; those of the config's test data set without them.
        allow_random: Answer a config without weights with random ones instead of refusing it.

    Raises:
        ValueError: The specification is not understood, a key is not known, or there are no weights of a detector.
        FileNotFoundError: Config or weights are not there.
        ConnectionError: The zoo's weights could not be downloaded.
    """
    found = SPEC.fullmatch(spec)
    if found is None:
        raise ValueError(f"{spec!r} names no config: write CONFIG.yaml:WEIGHTS, CONFIG.py:WEIGHTS or {ZOO}CONFIG.yaml")
    config, weights = found["config"], found["weights"]
    if weights is not None and "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(f"no weights file {weights!r}")
    if weights is None and config.startswith(ZOO) and not allow_random:
        weights = _zoo_weights(config.removeprefix(ZOO))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    lazy = config.endswith(".py")
    predictor, weights = _lazy(config, opts, weights) if lazy else _yaml(config, opts, weights, device)
    if (not weights or BACKBONE_ONLY in weights) and not allow_random:
        raise ValueError(f"{config} names no weights of a detector ({weights or 'none'}): write {config}:WEIGHTS.pth; "
                         "allow_random=True builds it with random ones")
    if weights and not (allow_random and BACKBONE_ONLY in weights):
        try:
            DetectionCheckpointer(predictor.model).load(weights)
        except OSError as error:  # urllib's URLError is one
            raise ConnectionError(f"could not get {weights} ({error}); get the file elsewhere and write "
                                  f"{config}:FILE") from error
    if names is not None:
        setattr(predictor.model, "class_names", dict(names) if isinstance(names, Mapping) else list(names))  # noqa: B010
    predictor.model.eval()
    return predictor.to(device)


def _yaml(config: str, opts: Sequence[Any], weights: str | None, device: str) -> tuple[Predictor, str]:
    cfg = load_config(config, opts)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, weights or cfg.MODEL.WEIGHTS
    aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if len(cfg.DATASETS.TEST) else None
    return Predictor(build_model(cfg), aug, cfg.INPUT.FORMAT, metadata, cfg), cfg.MODEL.WEIGHTS


def _lazy(config: str, opts: Sequence[Any], weights: str | None) -> tuple[Predictor, str]:
    from omegaconf import OmegaConf

    file = zoo_file(config.removeprefix(ZOO)) if config.startswith(ZOO) else config
    cfg = LazyConfig.apply_overrides(LazyConfig.load(file), [str(item) for item in opts])
    if weights is not None:  # the model may refer to them: `detectron2.with_reliability`
        OmegaConf.update(cfg, "train.init_checkpoint", weights, force_add=True)
    mapper = OmegaConf.select(cfg, "dataloader.test.mapper", default={})
    augmentations = [instantiate(a) for a in mapper.get("augmentations", ())] or [T.ResizeShortestEdge([800] * 2, 1333)]
    data = OmegaConf.select(cfg, "dataloader.test.dataset.names", default=None)
    first = data if data is None or isinstance(data, str) else data[0]
    metadata = None if first is None else MetadataCatalog.get(first)
    predictor = Predictor(
        instantiate(cfg.model), T.AugmentationList(augmentations), mapper.get("image_format", "BGR"), metadata
    )
    return predictor, OmegaConf.select(cfg, "train.init_checkpoint", default="") or ""


def _zoo_weights(config: str) -> str:
    from detectron2 import model_zoo

    zoo_file(config)
    return str(model_zoo.get_checkpoint_url(config))
