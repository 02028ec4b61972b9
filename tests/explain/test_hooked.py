"""Targets that the monitor answers: what goes to it are pictures, and what comes back is that of the same object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from reliability_hooks.explain.base import Probe
from reliability_hooks.explain.explainer import explain, explain_frame
from reliability_hooks.explain.hooked import Asked, Ood, Reliability, answer, partners, pictures
from reliability_hooks.frame import Frame
from reliability_hooks.instances import Instances

from .toy import BOXES, CUES, SIZE, toy

IMAGE = np.zeros((*SIZE, 3), dtype=np.uint8)


class Judged:
    """A handle whose reliability is the brightness of an object's cue, and 1 - p-value that of its other half."""

    def __init__(self, frame: Frame, lost: float = 0.0, columns: tuple[str, ...] = ("reliability", "ood_p_value")):
        self.frame, self.lost, self.columns = frame, lost, columns
        self.shapes: list[tuple[int, ...]] = []
        self.kept: list[Frame] = []

    @contextmanager
    def frames(self, *needs: str) -> Iterator[list[Frame]]:
        outer, self.kept = self.kept, []
        yield self.kept
        self.kept = outer

    def predict(self, images: Sequence[np.ndarray], **options: Any) -> list[Instances]:
        self.kept += [self.frame] * len(images)
        self.shapes += [image.shape for image in images]
        return [self.look(image) for image in images]

    def look(self, image: np.ndarray) -> Instances:
        scale = image.shape[0] / SIZE[0]
        light = torch.tensor([image[y1:y2, x1:x2].mean() / 255 for x1, y1, x2, y2 in (CUES * scale).int().tolist()])
        given = {"reliability": light, "ood_p_value": 1 - light / 2}
        found = Instances(BOXES * scale, torch.full((3,), 0.9), torch.tensor([0, 1, 0]), image_size=image.shape[:2],
                          columns={name: given[name] for name in self.columns})
        return found[(light >= self.lost).nonzero()[:, 0].flip(0)]  # in another order


def test_pixels_go_back_to_the_picture_that_they_are_of() -> None:
    view = toy().view
    assert view is not None
    shown = pictures(view, SIZE, torch.stack([view.pixels, 1 - view.pixels]))
    assert [p.shape for p in shown] == [(96, 128, 3)] * 2
    expected = (view.pixels[:, 8:-8].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(shown[0], expected)
    normal = replace(view, pixels=(view.pixels - 0.4) / 0.2, mean=(0.4,) * 3, std=(0.2,) * 3)
    assert np.abs(pictures(normal, SIZE, normal.pixels[None])[0].astype(int) - expected).max() <= 1
    tiny = replace(view, pixels=torch.ones(3, 5, 5), scale=(1.0, 1.0), offset=(2.0, 2.0))
    assert [p.shape for p in pictures(tiny, (1, 1), tiny.pixels[None])] == [(1, 1, 3)]


def test_an_object_is_found_again_by_class_and_place() -> None:
    given = Instances(BOXES, torch.ones(3), torch.tensor([0, 1, 0]))
    found = Instances(torch.cat([BOXES[[1]], BOXES[[0]] + 1, BOXES[[2]]]), torch.ones(3), torch.tensor([1, 0, 1]),
                      columns={"reliability": torch.tensor([0.3, 0.7, 0.9])})
    assert partners(given, found).tolist() == [1, 0, -1]
    torch.testing.assert_close(answer(given, found), torch.tensor([0.7, 0.3, torch.nan]), equal_nan=True)
    assert answer(given, found[:0]).isnan().all()
    assert len(partners(given[:0], found)) == 0


def test_auto_masks_and_finds_what_the_reliability_rests_on() -> None:
    frame = replace(toy(), look=None)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a target that is not raw needs no look")

    handle = Judged(replace(frame, look=never, rerun=never))
    found = explain(handle, IMAGE, targets=["reliability"])
    assert found.method == "bayes"
    assert "without gradients" in found.notes[0]
    assert found.passes == 64 == len(handle.shapes) - 1
    assert set(handle.shapes[1:]) == {(96, 128, 3)}
    many = explain(handle, IMAGE, targets=["reliability"], budget=300).maps["reliability"]
    for map_, (x1, y1, x2, y2) in zip(many, CUES.int().flip(0).tolist(), strict=True):
        assert map_[y1:y2, x1:x2].mean() > map_.mean() + map_.std()


def test_both_share_the_pictures_and_leave_other_targets_as_they_are() -> None:
    handle = Judged(toy())
    settings: Any = {"method": "drise", "budget": 24, "grid": 8}
    both = explain(handle, IMAGE, targets=["joint", "reliability", "ood"], **settings)
    assert len(handle.shapes) == 1 + 24 + 1  # the image, the masks, the untouched view
    alone = explain(handle, IMAGE, targets=["joint"], **settings)
    torch.testing.assert_close(both.maps["joint"], alone.maps["joint"])
    assert both.maps["ood"].shape == (3, *SIZE)


def test_values_of_lost_objects() -> None:
    frame = toy()
    assert frame.view is not None
    asked = Asked(Judged(frame, lost=0.9))
    targets = [Reliability(asked), Ood(asked)]
    probe = Probe(frame, torch.tensor([2, 0]), targets)
    values = probe(torch.stack([frame.view.pixels, frame.view.pixels * 0]))
    assert values.shape == (2, 2, 2)
    torch.testing.assert_close(values[0], torch.tensor([[1.0, 0.5], [1.0, 0.5]]))
    torch.testing.assert_close(values[1], torch.tensor([[0.0, 0.5], [0.0, 0.5]]))  # lost: 0, and as it was


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(ValueError, match="'reliability' has no gradient; choose a perturbation method"):
        explain(Judged(toy()), IMAGE, targets=["reliability"], method="odam")
    with pytest.raises(ValueError, match="needs the handle"):
        explain_frame(toy(), targets=["ood"], method="drise")
    with pytest.raises(ValueError, match="gives no ood_p_value: attach one that was fitted with an out-of-dist"):
        explain(Judged(toy(), columns=("reliability",)), IMAGE, targets=["ood"])
    with pytest.raises(ValueError, match="gives no reliability: attach one that was fitted"):
        explain(Judged(toy(), columns=()), IMAGE, targets=["reliability"])
    with pytest.raises(ValueError, match="did you mean 'reliability'"):
        explain(Judged(toy()), IMAGE, targets=["reliable"])
    with pytest.raises(ValueError, match="budget must be at least 1"):
        explain(Judged(toy()), IMAGE, targets=["reliability"], budget=0)
    empty = Judged(toy(), lost=2.0, columns=())
    bare = toy()
    empty.frame = bare.with_instances(bare.instances[:0])
    assert explain(empty, IMAGE, targets=["reliability"]).maps["reliability"].shape == (0, *SIZE)
