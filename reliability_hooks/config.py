"""Settings: YAML files with `_BASE_`, dotted overrides, and an error that names the nearest key for a typo."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

BASE_KEY = "_BASE_"


class ConfigError(ValueError):
    """A setting that cannot be used; the message says where and what would be right."""


@dataclass(frozen=True)
class DetectorSettings:
    """The detector.

    Attributes:
        weights: A weights file, or HOST:SPEC (`torchvision:maskrcnn_resnet50_fpn_v2:weights.pth`).
        host: Framework, where it cannot be told from `weights`.
        device: `cpu`, `cuda`, `cuda:1`...; the framework's own choice without it.
        load: Further options of the host's `load`.
        predict: Options of the detector's own call (ultralytics: `conf`, `imgsz`, `iou`...; torchvision: `conf`).
    """

    weights: str | None = None
    host: str | None = None
    device: str | None = None
    load: dict[str, Any] = field(default_factory=dict)
    predict: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MonitorSettings:
    """The monitor.

    Attributes:
        path: Directory of a fitted monitor; what `calibrate` writes and `predict` reads.
        signals: Signals to compute, when a new one is fitted: names, or the presets `cheap` and `full`.
        clip: open_clip model of the signals that read one: MODEL/PRETRAINED, `local-dir:PATH` or the embedded one.
        conditions: YAML file with conditions of one's own for the signal `condition` (`assets/conditions.yaml`).
        iou_threshold: IoU from which a detection counts as right.
        target: Precision that is promised of accepted detections.
        delta: Probability with which that promise may fail.
        groups: Factors (`class`, `size`) whose every combination gets a promise of its own.
        taus: Stricter IoU thresholds at which P(right) is given too.
        novelty: Column of the out-of-distribution score that `is_ood` and the caution about unknown objects are made
            from; `auto` for one that the signals have, null for none.
        false_alarm: Greatest share of known objects, in each class and size, that `is_ood` may take for unknown.
        caution: Share of the Brier score on known objects that may be paid for caution about unknown ones.
        strict: Raise a fault of the hook instead of answering "unknown".
    """

    path: str | None = None
    signals: list[str] = field(default_factory=lambda: ["cheap"])
    clip: str = "condition-clip"
    conditions: str | None = None
    iou_threshold: float = 0.5
    target: float = 0.9
    delta: float = 0.1
    groups: list[str] = field(default_factory=list)
    taus: list[float] = field(default_factory=lambda: [0.75])
    novelty: str | None = "auto"
    false_alarm: float = 0.05
    caution: float = 0.01
    strict: bool = False


@dataclass(frozen=True)
class DataSettings:
    """Labelled images.

    Attributes:
        images: Directory of the images.
        annotations: COCO `instances.json`.
        conditions: Synthetic conditions under which each image is seen (`clean`, `blur`, `noise`, `low_light`,
            `low_resolution`, `fog`, `jpeg`; `all` for every one).
        severity: Strength of the conditions in (0, 1].
        limit: Use this many images only.
        bank: Directory of images that signals which learn are shown; the images above, out of fold, without it.
        bank_annotations: COCO json of the bank, if it has one: out-of-distribution scores then learn from the
            detections that are right, instead of those that are sure.
    """

    images: str | None = None
    annotations: str | None = None
    conditions: list[str] = field(default_factory=lambda: ["clean"])
    severity: float = 0.5
    limit: int | None = None
    bank: str | None = None
    bank_annotations: str | None = None


@dataclass(frozen=True)
class OodSet:
    """Images that show objects of no class of the detector.

    Attributes:
        images: Directory of the images.
        annotations: COCO json, or a directory of VOC xml.
        distance: `near`, `far` or any word for how unlike the known classes they are; shown beside the name.
        exhaustive: Nothing else is to be seen on them: every detection counts, not only those on an annotated object.
        limit: Use this many images only.
    """

    images: str
    annotations: str
    distance: str = ""
    exhaustive: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class OodSettings:
    """What `evaluate-ood` compares.

    Attributes:
        sets: Name -> images of unknown objects.
        false_alarm: Share of known objects that a threshold may take for unknown.
        intensities: Severities in (0, 1] at which the ID images are seen again, to see whether scores follow them; only
            objects that are found at each of them count.
        intensity_limit: ID images used for that.
        draws: Of the bootstrap.
    """

    sets: dict[str, OodSet] = field(default_factory=dict)
    false_alarm: float = 0.05
    intensities: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.35, 0.5])
    intensity_limit: int = 24
    draws: int = 200


@dataclass(frozen=True)
class Settings:
    """Everything that a command needs.

    Attributes:
        detector: The detector.
        monitor: The monitor.
        data: Labelled images, for `calibrate`, `evaluate` and `evaluate-ood`.
        ood: Unknown objects, for `evaluate-ood`.
        batch: Images in one call of the detector.
        seed: Of everything that draws.
    """

    detector: DetectorSettings = field(default_factory=DetectorSettings)
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    data: DataSettings = field(default_factory=DataSettings)
    ood: OodSettings = field(default_factory=OodSettings)
    batch: int = 8
    seed: int = 0


def load_settings(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a file and overrides.

    Args:
        path: A YAML file; its `_BASE_` (a path relative to it) is read first.
        overrides: `KEY VALUE KEY VALUE ...` with dotted keys, as in Detectron2; each value is read as YAML.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown (the nearest is named), a type is wrong.
    """
    tree = read_tree(Path(path)) if path is not None else {}
    if len(overrides) % 2:
        raise ConfigError(f"overrides come in pairs KEY VALUE; {overrides[-1]!r} has no value")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise ConfigError(f"value of {key}: {text!r} is no YAML ({e})") from e
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    settings: Settings = _build(Settings, tree, "")
    return settings


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file with its bases merged under it."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{BASE_KEY} goes round in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot read the config {path}: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is no valid YAML: {e}") from e
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, not {type(tree).__name__}")
    base = tree.pop(BASE_KEY, None)
    return tree if base is None else merge(read_tree(path.parent / str(base), (*seen, path)), tree)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings joined; `over` wins, lists are replaced."""
    out = dict(under)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _build(cls: type, tree: Any, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where or 'the config'} must hold `key: value` lines, not {tree!r}")
    known = {f.name: f for f in fields(cls)}
    hints = get_type_hints(cls)
    for key in tree:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {where + near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"unknown setting {where + str(key)!r}; {hint}")
    values = {key: _value(hints[key], value, where + key) for key, value in tree.items()}
    if absent := [n for n, f in known.items() if n not in values and f.default is f.default_factory is MISSING]:
        raise ConfigError(f"{where}{absent[0]} is missing")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, {} if value is None else value, where + ".")
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if origin is list and isinstance(value, list):
        return [_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        of = args[1]
        return {k: _value(of, v, f"{where}.{k}") for k, v in value.items()} if is_dataclass(of) else value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and origin is None and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{where} must be {name}, not {value!r}")
