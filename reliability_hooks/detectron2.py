"""Hooks for users of Detectron2: from a yaml config, from a LazyConfig, or on a model that is there already.

`attach(model, monitor)` and `attach(predictor, monitor)` need none of this. What is here puts the hooks into configs:

    cfg = get_cfg()
    add_reliability_config(cfg)                # before merge_from_file, as Detectron2's projects do
    cfg.merge_from_file("my_config.yaml")      # MODEL: {RELIABILITY: {MONITOR: runs/monitor}}
    model = build_reliable_model(cfg)          # instead of build_model; or attach_from_config(model, cfg) on your own

A monitor is bound to the weights that it was fitted on, and refuses others: attach when they are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .hook import Handle, attach
from .hosts.detectron2_config import add_reliability_config, load_config
from .monitor import Monitor

if TYPE_CHECKING:
    from .hosts.detectron2_evaluator import ReliabilityEvaluator

__all__ = [
    "ReliabilityEvaluator", "add_reliability_config", "attach_from_config", "build_reliable_model", "load_config",
    "with_reliability",
]  # fmt: skip


def attach_from_config(model: Any, cfg: Any) -> Handle | None:
    """Hook a model, or a `DefaultPredictor`, as `cfg.MODEL.RELIABILITY` says.

    Args:
        model: With its weights loaded.
        cfg: A config with the keys of `add_reliability_config`.

    Returns:
        The handle; None where `ENABLED` is False.

    Raises:
        ValueError: The config has no such keys.
        StateError: The monitor was fitted on another model, or is not there.
    """
    if "RELIABILITY" not in cfg.MODEL:
        raise ValueError("this config has no MODEL.RELIABILITY; call add_reliability_config(cfg) before merging files")
    own = cfg.MODEL.RELIABILITY
    if not own.ENABLED:
        return None
    monitor = Monitor.load(own.MONITOR) if own.MONITOR else Monitor(list(own.SIGNALS))
    return attach(model, monitor, strict=own.STRICT, **_format(model, cfg))


def build_reliable_model(cfg: Any) -> Any:
    """`build_model(cfg)` in eval mode, with the weights `cfg.MODEL.WEIGHTS` and its hooks on.

    Args:
        cfg: A config with the keys of `add_reliability_config`.

    Raises:
        ValueError: The config has no such keys.
        StateError: The monitor was fitted on another model, or is not there.
    """
    from .hosts.detectron2_build import build

    model = build(cfg)
    attach_from_config(model, cfg)
    return model


def with_reliability(
    model: Any,
    monitor: Monitor | str | Path | None = None,
    weights: str | None = None,
    strict: bool = False,
    enabled: bool = True,
) -> Any:
    """The same model with hooks on: `attach` for LazyConfigs, in which a call has to return the model.

    `model = L(with_reliability)(model=config.model, monitor="runs/monitor", weights="${train.init_checkpoint}")`

    Args:
        model: Of Detectron2.
        monitor: A monitor, the directory of a fitted one, or None (`attach`).
        weights: A checkpoint that is loaded first, since a fitted monitor accepts no other weights than its own. A
            script that loads it again afterwards changes nothing.
        strict: Raise a fault of the hook instead of answering "unknown".
        enabled: False gives the bare model.

    Raises:
        StateError: The monitor was fitted on another model, or is not there.
    """
    if weights:
        from .hosts.detectron2_build import load_weights

        load_weights(model, weights)
    if enabled:
        attach(model, Monitor.load(monitor) if isinstance(monitor, (str, Path)) else monitor, strict=strict)
    return model


def _format(model: Any, cfg: Any) -> dict[str, str]:
    given = cfg.INPUT.FORMAT
    return {"input_format": given} if given in ("BGR", "RGB") else {}


def __getattr__(name: str) -> Any:
    if name == "ReliabilityEvaluator":  # a subclass of Detectron2's, which is imported only where it is asked for
        from .hosts.detectron2_evaluator import ReliabilityEvaluator

        return ReliabilityEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
