from __future__ import annotations

import torch

from reliability_hooks.frame import Candidates, Frame, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.consistency import GAMMA, GREY, Consistency, changed

SIZE = (60, 80)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)


def view(seed: int = 0, normalised: bool = False) -> View:
    pixels = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(seed))
    if not normalised:
        return View(pixels, scale=(2.0, 2.0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return View((pixels - mean) / std, mean=MEAN, std=STD)


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Candidates:
    return Candidates(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels))


def apply(kept: Instances, *answers: Candidates) -> dict[str, torch.Tensor]:
    columns = Consistency()(Frame(kept, view(), rerun=lambda pixels: list(answers)))
    return {name.partition("/")[2]: value for name, value in columns.items()}


def kept(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Instances:
    return Instances(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), image_size=(30, 40))


def test_the_views() -> None:
    for normalised in (False, True):
        seen = view(normalised=normalised)
        mirrored, shrunk, bright = changed(seen)
        assert torch.equal(mirrored, seen.pixels.flip(2))
        assert torch.allclose(seen.rgb(bright), seen.rgb() ** GAMMA, atol=1e-5)
        assert torch.allclose(seen.rgb(shrunk)[:, 45:, 60:], torch.tensor(GREY), atol=1e-5)
        assert (seen.rgb(shrunk)[:, :45, :60].mean((1, 2)) - seen.rgb().mean((1, 2))).abs().max() < 0.02


def test_an_object_is_found_again_where_the_views_put_it() -> None:
    # in the image (5, 4, 15, 20), in the view (10, 8, 30, 40); the view is 80 wide
    one = kept([[5.0, 4.0, 15.0, 20.0]], [0.9], [3])
    out = apply(
        one,
        found([[50, 8, 70, 40], [10, 8, 30, 40]], [0.8, 0.99], [3, 3]),  # mirrored; the other lies elsewhere
        found([[7.5, 6, 22.5, 30]], [0.6], [3]),
        found([[10, 8, 30, 36], [10, 8, 30, 40]], [0.7, 0.5], [3, 7]),
    )
    assert torch.allclose(out["mirrored_score"], torch.tensor([0.8]))
    assert torch.allclose(out["mirrored_iou"], torch.tensor([1.0]))
    assert torch.allclose(out["shrunk_score"], torch.tensor([0.6]))
    assert torch.allclose(out["shrunk_iou"], torch.tensor([1.0]))
    assert torch.allclose(out["brightened_score"], torch.tensor([0.7]))
    assert torch.allclose(out["brightened_iou"], torch.tensor([28 / 32]))
    assert torch.allclose(out["mean_score"], torch.tensor([0.7]))
    assert torch.allclose(out["worst_score"], torch.tensor([0.6]))
    assert torch.allclose(out["other_class"], torch.tensor([0.5]))
    scores = torch.tensor([0.8, 0.6, 0.7])
    assert torch.allclose(out["drop"], torch.tensor([0.9]).logit() - scores.logit().mean())


def test_an_object_that_is_lost() -> None:
    nothing = Candidates.empty()
    out = apply(kept([[5.0, 4.0, 15.0, 20.0]], [0.9], [3]), nothing, nothing, nothing)
    assert all(out[name].item() == 0 for name in ("mean_score", "worst_score", "mirrored_iou", "other_class"))
    assert out["drop"] > 5


def test_boxes_that_are_not_finite_have_no_answer() -> None:
    nan = float("nan")
    there = found([[50, 8, 70, 40]], [0.8], [0])
    three = kept([[nan] * 4, [0.0, 0.0, 9.0, 9.0], [5.0, 4.0, 15.0, 20.0]], [0.5, nan, 0.5], [0, 0, 0])
    out = apply(three, there, there, there)
    for value in out.values():
        assert value[:2].isnan().all()
        assert value[2].isfinite()
