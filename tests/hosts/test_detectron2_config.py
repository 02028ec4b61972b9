"""Hooks from Detectron2's yaml and LazyConfigs, and detectors from a config and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.config import get_cfg

from reliability_hooks import Monitor, attach
from reliability_hooks.detectron2 import (
    add_reliability_config,
    attach_from_config,
    build_reliable_model,
    load_config,
    with_reliability,
)
from reliability_hooks.hosts.base import find_host, load
from reliability_hooks.reliability.state import StateError

from .detectron2_cases import TINY, inputs_of

ZOO = "model_zoo:COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
SMALL = [item for pair in TINY.items() for item in pair]
IMAGE = (torch.rand(60, 80, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()


def judged(model: nn.Module) -> bool:
    with torch.no_grad():
        (output,) = model.eval()(inputs_of([IMAGE]))
    return bool(output["instances"].has("reliability"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A yaml that inherits one that inherits the zoo, weights, and a monitor of them."""
    folder = tmp_path_factory.mktemp("detectron2")
    own = load_config(ZOO, SMALL)
    own.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    keys = {"MODEL": own.MODEL, "INPUT": own.INPUT, "TEST": own.TEST}
    (folder / "base.yaml").write_text(f"_BASE_: {ZOO}\n" + type(own)(keys).dump())
    (folder / "mine.yaml").write_text("_BASE_: base.yaml\nMODEL:\n  RELIABILITY:\n    SIGNALS: [geometry]\n")
    torch.manual_seed(0)
    from detectron2.modeling import build_model

    torch.save({"model": build_model(own).state_dict()}, folder / "weights.pth")
    return folder


def test_keys_are_inherited_with_base(saved: Path) -> None:
    cfg = get_cfg()
    add_reliability_config(cfg)
    (saved / "plain.yaml").write_text("MODEL: {RELIABILITY: {MONITOR: there, STRICT: true}}\n")
    (saved / "child.yaml").write_text("_BASE_: plain.yaml\nMODEL: {RELIABILITY: {STRICT: false}}\n")
    cfg.merge_from_file(str(saved / "child.yaml"))  # Detectron2's own way
    assert dict(cfg.MODEL.RELIABILITY) == {"ENABLED": True, "MONITOR": "there", "SIGNALS": ("cheap",), "STRICT": False}
    mine = load_config(str(saved / "mine.yaml"), ["MODEL.RELIABILITY.STRICT", True])
    assert tuple(mine.MODEL.RELIABILITY.SIGNALS) == ("geometry",)
    assert mine.MODEL.RELIABILITY.STRICT
    assert TINY["MODEL.RESNETS.STEM_OUT_CHANNELS"] == mine.MODEL.RESNETS.STEM_OUT_CHANNELS
    assert mine.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"


def test_config_errors(saved: Path) -> None:
    (saved / "typo.yaml").write_text(f"_BASE_: {ZOO}\nMODEL: {{RELIABILITY: {{MONITR: there}}}}\n")
    with pytest.raises(ValueError, match="MONITR"):
        load_config(str(saved / "typo.yaml"))
    with pytest.raises(ValueError, match="Non-existent key"):
        load_config(ZOO, ["MODEL.NONE", 1])
    with pytest.raises(FileNotFoundError, match="MODEL_ZOO"):
        load_config("model_zoo:COCO-Detection/none.yaml")
    with pytest.raises(FileNotFoundError):
        load_config(str(saved / "none.yaml"))
    with pytest.raises(ValueError, match="add_reliability_config"):
        attach_from_config(nn.Linear(1, 1), get_cfg())


def test_a_model_from_a_config_is_hooked(saved: Path) -> None:
    weights = ["MODEL.WEIGHTS", str(saved / "weights.pth")]
    model = build_reliable_model(load_config(str(saved / "mine.yaml"), weights))
    assert judged(model)
    off = load_config(str(saved / "mine.yaml"), [*weights, "MODEL.RELIABILITY.ENABLED", False])
    assert not judged(build_reliable_model(off))
    with pytest.raises(StateError):
        attach_from_config(model, load_config(ZOO, ["MODEL.RELIABILITY.MONITOR", str(saved / "none")]))


def test_a_lazy_config_is_hooked_with_the_weights_of_its_monitor(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.config import LazyCall as L
    from detectron2.config import instantiate
    from detectron2.modeling import build_model
    from omegaconf import OmegaConf

    cfg = load_config(str(saved / "mine.yaml"))
    whole = OmegaConf.create({"train": {"init_checkpoint": str(saved / "weights.pth")}}, flags={"allow_objects": True})
    whole.model = L(with_reliability)(model=L(build_model)(cfg=None), weights="${train.init_checkpoint}", monitor=None)
    call = OmegaConf.to_container(whole.model, resolve=True)
    assert call["weights"] == str(saved / "weights.pth")
    model = with_reliability(build_model(cfg), weights=call["weights"])
    assert judged(model)
    assert not judged(with_reliability(build_model(cfg), enabled=False))
    given: dict[str, Any] = {}
    monkeypatch.setattr("reliability_hooks.detectron2.attach", lambda model, monitor, **more: given.update(more))
    instantiate(L(with_reliability)(model=nn.Identity(), strict=True))
    assert given == {"strict": True}


def test_load_runs_from_a_spec(saved: Path) -> None:
    spec = f"detectron2:{saved / 'mine.yaml'}:{saved / 'weights.pth'}"
    predictor = load(spec, names=list("abcde"), device="cpu").to("cpu")
    assert find_host(predictor).class_names() == dict(enumerate("abcde"))
    with attach(predictor, Monitor(["geometry"]), strict=True) as handle:
        (found,) = handle.predict([IMAGE])
        assert len(found) > 0
    bare = predictor(np.ascontiguousarray(IMAGE[..., ::-1]))["instances"]
    assert torch.equal(found.boxes, bare.pred_boxes.tensor)
    assert find_host(predictor).fingerprint() == find_host(load(spec, names=list("abcde"))).fingerprint()


def test_load_a_lazy_config(saved: Path) -> None:
    (saved / "lazy.py").write_text(
        "from detectron2.config import LazyCall as L\n"
        "from reliability_hooks.detectron2 import build_reliable_model, load_config, with_reliability\n"
        f"cfg = L(load_config)(file={str(saved / 'mine.yaml')!r}, opts=['MODEL.RELIABILITY.ENABLED', False])\n"
        "train = dict(init_checkpoint='')\n"
        "model = L(with_reliability)(model=L(build_reliable_model)(cfg=cfg), weights='${train.init_checkpoint}')\n"
    )
    predictor = load(f"detectron2:{saved / 'lazy.py'}:{saved / 'weights.pth'}", device="cpu")
    other = load(f"detectron2:{saved / 'mine.yaml'}:{saved / 'weights.pth'}", device="cpu")
    assert find_host(predictor.model).fingerprint() == find_host(other.model).fingerprint()
    assert predictor(IMAGE)["instances"].has("reliability")
    assert not other(IMAGE)["instances"].has("reliability")


def test_load_errors(saved: Path) -> None:
    with pytest.raises(ValueError, match="names no config"):
        load("detectron2:faster_rcnn")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load(f"detectron2:{saved / 'mine.yaml'}:nowhere.pth")
    with pytest.raises(ValueError, match=r"no weights of a detector.*allow_random"):
        load(f"detectron2:{saved / 'mine.yaml'}")
    with pytest.raises(FileNotFoundError, match="none"):
        load("detectron2:model_zoo:COCO-Detection/none.yaml")


def test_shipped_configs_inherit_the_zoo() -> None:
    folder = Path(__file__).resolve().parents[2] / "configs/detectron2"
    cfg = load_config(str(folder / "mask_rcnn.yaml"))
    assert cfg.MODEL.MASK_ON
    assert cfg.MODEL.RELIABILITY.MONITOR
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    lazy = LazyConfig.load(str(folder / "mask_rcnn_lazy.py"))
    assert lazy.model.weights == lazy.train.init_checkpoint
    assert OmegaConf.select(lazy, "model.model.roi_heads.num_classes") == 80
