"""The CLIP that comes with the package, on photographs that it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.metrics import roc_auc_score

from reliability_hooks.clip.embed import Embed
from reliability_hooks.clip.encoder import Encoder, load
from reliability_hooks.clip.models import ASSETS, EMBEDDED
from reliability_hooks.evaluation.datasets import read_coco
from reliability_hooks.frame import Frame, View
from reliability_hooks.images import read_image
from reliability_hooks.instances import Instances
from reliability_hooks.signals.agreement import Agreement
from reliability_hooks.signals.condition import Condition

pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load()


def bad(image: Image.Image, name: str) -> Image.Image:
    if name == "blur":
        return image.filter(ImageFilter.GaussianBlur(4))
    if name == "low_light":
        return ImageEnhance.Brightness(image).enhance(0.25)
    if name == "low_resolution":
        return image.reduce(5).resize(image.size)
    grain = np.random.default_rng(0).normal(0, 35, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def test_it_fits_into_the_package_and_has_a_card() -> None:
    folder = ASSETS / EMBEDDED
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 24e6
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Data", "Licence", "Figures", "Limits"))


def test_it_is_what_its_config_says(encoder: Encoder) -> None:
    config = json.loads((ASSETS / EMBEDDED / "open_clip_config.json").read_text(encoding="utf-8"))
    assert (encoder.dim, encoder.image_size) == (config["model_cfg"]["embed_dim"], config["preprocess_cfg"]["size"])
    assert encoder.logit_scale > 1


def test_it_says_which_words_it_has_learnt(encoder: Encoder) -> None:
    assert encoder.knows(["a blurry photo of a dog", "television", "flibbertigibbet"]).tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["blur", "low_light", "low_resolution", "noise"])
def test_it_sees_a_condition_and_the_class(shared: Path, encoder: Encoder, name: str) -> None:
    coco = shared / "data" / "coco"
    dataset = read_coco(coco / "instances_val2017.json", coco / "val2017")
    names = dict(enumerate(dataset.names))
    values: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    rank = []
    for record in list(dataset)[:16]:
        image = Image.fromarray(read_image(record.path))
        boxes = torch.from_numpy(record.truth.boxes)[:3]
        found = Instances(boxes, torch.ones(len(boxes)), torch.from_numpy(record.truth.labels)[:3])
        for degraded in (False, True):
            shown = np.array(bad(image, name) if degraded else image)
            view = View(torch.from_numpy(shown).permute(2, 0, 1).float() / 255)
            frame = Frame(found, view, names=names, embed=Embed(encoder, view, found))
            values[degraded].append(Condition()(frame)[f"condition/{name}"])
            if not degraded:
                rank.append(Agreement()(frame)["agreement/rank"])
    clean, worse = (torch.cat(values[k]) for k in (False, True))
    ok = clean.isfinite() & worse.isfinite()
    y = np.repeat([0, 1], int(ok.sum()))
    assert roc_auc_score(y, torch.cat([clean[ok], worse[ok]])) > 0.85
    assert float(torch.cat(rank).nanmedian()) < 0.06  # among the five best of 80
