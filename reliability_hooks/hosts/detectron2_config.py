"""Detectron2's configs with hooks: `cfg.MODEL.RELIABILITY`, and configs that inherit one of the model zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ZOO = "model_zoo:"
"""What a path inside the model zoo begins with."""


def add_reliability_config(cfg: Any) -> None:
    """Give a config the keys of the hooks, as Detectron2's projects give it theirs: before `merge_from_file`.

    `MODEL.RELIABILITY.ENABLED` (True), `MONITOR` (directory of a fitted monitor; without one the signals are computed
    and the reliability is NaN), `SIGNALS` (those of a monitor that is not fitted: `("cheap",)`), `STRICT` (False: a
    fault of the hook answers "unknown" instead of raising).

    Args:
        cfg: Of `detectron2.config.get_cfg()`.
    """
    from detectron2.config import CfgNode

    cfg.MODEL.RELIABILITY = CfgNode({"ENABLED": True, "MONITOR": "", "SIGNALS": ("cheap",), "STRICT": False})


def load_config(file: str, opts: Sequence[Any] = ()) -> Any:
    """A yaml config with the hooks' keys, those of PointRend where it is installed, and overrides.

    Args:
        file: Path of a yaml, or `model_zoo:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml`. Its `_BASE_` may be
            either, too; Detectron2's own `merge_from_file` knows paths only.
        opts: Key, value, key, value ...

    Raises:
        FileNotFoundError: There is no such file, or none in the zoo.
        ValueError: A key is not known.
    """
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_reliability_config(cfg)
    _add_projects(cfg)
    try:
        _merge(cfg, file)
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError) as error:
        raise ValueError(f"{file}: {error.args[0] if error.args else error}") from error
    return cfg


def zoo_file(name: str) -> str:
    """Path of a config of the zoo.

    Raises:
        FileNotFoundError: It is not there.
    """
    from detectron2 import model_zoo

    try:
        return str(model_zoo.get_config_file(name))
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} Detectron2's MODEL_ZOO.md lists them") from error


def _merge(cfg: Any, file: str) -> None:
    import yaml
    from detectron2.config import CfgNode

    if file.startswith(ZOO):
        cfg.merge_from_file(zoo_file(file.removeprefix(ZOO)))
        return
    text = Path(file).expanduser().read_text(encoding="utf-8")
    own = yaml.safe_load(text)
    base = own.get("_BASE_") if isinstance(own, Mapping) else None
    if base is None or not _inherits_zoo(file):
        cfg.merge_from_file(str(Path(file).expanduser()), allow_unsafe=False)
        return
    _merge(cfg, base if base.startswith(ZOO) else str(Path(file).expanduser().parent / Path(base).expanduser()))
    cfg.merge_from_other_cfg(CfgNode({key: value for key, value in own.items() if key != "_BASE_"}))


def _inherits_zoo(file: str) -> bool:
    """Whether a config, or one that it inherits, names the zoo."""
    import yaml

    path = Path(file).expanduser()
    own = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    base = own.get("_BASE_") if isinstance(own, Mapping) else None
    if not isinstance(base, str):
        return False
    return base.startswith(ZOO) or _inherits_zoo(str(path.parent / Path(base).expanduser()))


def _add_projects(cfg: Any) -> None:
    try:
        from detectron2.projects import point_rend
    except ImportError:  # a build without the projects
        return
    point_rend.add_pointrend_config(cfg)
