from __future__ import annotations

from pathlib import Path

import pytest

from reliability_hooks.config import ConfigError, load_settings


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_base_file_then_own_then_overrides(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "detector: {weights: a.pt, predict: {conf: 0.1, imgsz: 640}}\nbatch: 4\n")
    path = write(tmp_path / "own.yaml", "_BASE_: base.yaml\ndetector: {predict: {conf: 0.2}}\n")
    settings = load_settings(path, ["detector.predict.iou", "0.5", "monitor.signals", "[geometry]", "batch", "2"])
    assert settings.detector.weights == "a.pt"
    assert settings.detector.predict == {"conf": 0.2, "imgsz": 640, "iou": 0.5}
    assert settings.monitor.signals == ["geometry"]
    assert settings.batch == 2


def test_defaults_and_empty_file(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path / "e.yaml", "")) == load_settings()
    assert load_settings(None, ["data.severity", "1"]).data.severity == 1.0
    assert load_settings(None, ["detector.weights", "null"]).detector.weights is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("detektor: {}", "unknown setting 'detektor'; did you mean 'detector'"),
        ("monitor: {signal: []}", "did you mean 'monitor.signals'"),
        ("batch: many", "batch must be int, not 'many'"),
        ("batch: true", "batch must be int"),
        ("monitor: {signals: geometry}", "monitor.signals must be list"),
        ("monitor: {signals: [1]}", r"monitor.signals\[0\] must be str"),
        ("monitor: 3", "must hold `key: value`"),
        ("- a\n- b", "must hold `key: value`"),
        ("a: [", "no valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "no valid YAML"),
        ("_BASE_: c.yaml", "circle"),
        ("_BASE_: nowhere.yaml", "cannot read the config"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(write(tmp_path / "c.yaml", text))


def test_bad_overrides() -> None:
    with pytest.raises(ConfigError, match="pairs KEY VALUE"):
        load_settings(None, ["batch"])
    with pytest.raises(ConfigError, match="no YAML"):
        load_settings(None, ["batch", "[1"])
    with pytest.raises(ConfigError, match=r"did you mean 'detector\.predict'"):
        load_settings(None, ["detector.predct.conf", "0.1"])


def test_every_shipped_config_is_valid() -> None:
    root = Path(__file__).resolve().parents[1] / "configs"
    files = sorted(p for p in root.rglob("*.yaml") if p.parent.name != "detectron2")  # those are Detectron2's own
    assert files
    for path in files:
        load_settings(path)
