from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reliability_hooks.explain.base import Probe
from reliability_hooks.explain.explainer import explain_frame
from reliability_hooks.explain.masks import GridMasks
from reliability_hooks.explain.moments import Estimate, Moments
from reliability_hooks.explain.perturbation import DRISE, BoxDRISE
from reliability_hooks.explain.places import centres
from reliability_hooks.explain.targets import TARGETS
from reliability_hooks.frame import Candidates, Frame

from .toy import BOXES, CUES, SIZE, toy


def iou(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(wide, 0) * max(high, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def pictures(frame: Frame, masks: Tensor) -> Tensor:
    """The masked views, by loops over the padded view at twice the size of the image."""
    pixels = frame.view.pixels  # type: ignore[union-attr]
    mean = pixels.mean((1, 2), keepdim=True)
    keep = torch.ones(len(masks), *pixels.shape[1:])
    keep[:, 8:-8] = masks
    return torch.stack([pixels * k + mean * (1 - k) for k in keep])


def test_masks_are_enlarged_shifted_grids() -> None:
    masks = GridMasks.draw(5, SIZE, (6, 7), 0.4, torch.Generator().manual_seed(3))
    y, x = (centres(side, side) for side in SIZE)
    cell = (8, 10)  # ceil(48 / 6), ceil(64 / 7)
    for mask, grid, (down, across) in zip(masks.at(y, x), masks.grids, masks.shifts.tolist(), strict=True):
        large = interpolate(grid[None, None], (7 * cell[0], 8 * cell[1]), mode="bilinear")[0, 0]
        torch.testing.assert_close(mask, large[down : down + 48, across : across + 64])
    assert masks.shifts.amin() >= 0
    assert bool((masks.shifts.amax(0) < torch.tensor(cell)).all())


@pytest.mark.parametrize("method", [DRISE, BoxDRISE])
def test_drise_is_the_loop_of_the_formula(method: type[DRISE]) -> None:
    frame, count = toy(), 40
    made = method(grid=(4, 5), p=0.6, seed=7, batch=16, estimate="sum")
    heat = made.heats(frame, torch.arange(3), [TARGETS["joint"]], count).maps["joint"][0]
    drawn = list(made.masked(frame.view, SIZE, BOXES, count, 16))  # type: ignore[arg-type]
    y, x = (centres(4 * n, side) for n, side in zip((4, 5), SIZE, strict=True))
    lattice = torch.cat([masks.at(y, x) for masks, _, _ in drawn])
    fine = [torch.arange(2 * side) / 2 + 0.25 for side in SIZE]
    shown = pictures(frame, torch.cat([masks.at(*fine) for masks, _, _ in drawn]))
    torch.testing.assert_close(torch.cat([s for _, s, _ in drawn]), shown)
    boxes = frame.view.to_view(frame.instances.boxes)  # type: ignore[union-attr]
    for i in range(3):
        total = torch.zeros_like(lattice[0])
        for mask, picture in zip(lattice, shown, strict=True):
            if method is BoxDRISE:
                raw = frame.rerun(picture[None])[0]  # type: ignore[misc]
                weight = max(iou(boxes[i].tolist(), raw.boxes[j].tolist()) * float(raw.scores[j])
                             for j in range(len(raw)) if raw.labels[j] == frame.instances.labels[i])
            else:
                glance = frame.look(picture[None], ("boxes", "masks"))  # type: ignore[misc]
                first = frame.look(frame.view.pixels[None], ("masks",)).masks[0, i]  # type: ignore[misc, union-attr]
                inside = torch.zeros(28, 32)
                x1, y1, x2, y2 = boxes[i].tolist()
                for r in range(28):
                    for c in range(32):
                        inside[r, c] = x1 <= 4 * c + 2 <= x2 and y1 <= 4 * r + 2 <= y2
                was, now = (first > 0) * inside, glance.masks[0, i].sigmoid() * inside  # type: ignore[index]
                common = (was * now).sum()
                p = glance.logits[0, i, frame.instances.labels[i]].sigmoid()
                weight = float(p * common / (was.sum() + now.sum() - common))
            total += weight * mask / count
        torch.testing.assert_close(heat.values[i], total - total.min(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("estimate", get_args(Estimate))
def test_moments_are_those_of_all_at_once(estimate: Estimate) -> None:
    random = torch.Generator().manual_seed(1)
    w, m = torch.rand(30, 2, generator=random).double(), torch.rand(30, 5, generator=random).double()
    moments = Moments(2, 5, torch.device("cpu"))
    for start in (0, 7, 8, 20):
        stop = {0: 7, 7: 8, 8: 20, 20: 30}[start]
        moments.add(w[start:stop].float(), m[start:stop].float())
    w, m = w.float().double(), m.float().double()
    mean, error = moments.effect(estimate)
    whole = w[:, :, None] * m[:, None]
    if estimate == "ratio":  # its error by leaving one out
        expected = whole.mean(0) / m.mean(0)
        left = torch.stack([whole[torch.arange(30) != i].mean(0) / m[torch.arange(30) != i].mean(0) for i in range(30)])
        spread = left.std(0, correction=0) * 29**0.5
        torch.testing.assert_close(error, spread, rtol=0.1, atol=0)
    else:
        terms = (w - w.mean(0))[:, :, None] * (m - m.mean(0))[:, None] if estimate == "centred" else whole
        expected = terms.mean(0)
        torch.testing.assert_close(error, terms.std(0) / 30**0.5)
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("estimate", get_args(Estimate))
def test_it_finds_the_cue_also_outside_of_the_box_and_its_error_falls(estimate: Estimate) -> None:
    frame, targets = toy(), [TARGETS["joint"], TARGETS["class"]]
    made = DRISE(grid=8, estimate=estimate, batch=32)
    many, few = (made.heats(frame, torch.arange(3), targets, count) for count in (320, 64))
    assert many.passes == 321
    for i, (x1, y1, x2, y2) in enumerate(CUES.tolist() if estimate != "sum" else []):  # it takes thousands
        map_ = many.maps["class"][0].values[i]
        y, x = divmod(int(map_.argmax()), map_.shape[1])
        assert x1 - 6 <= (x + 0.5) * SIZE[1] / map_.shape[1] <= x2 + 6
        assert y1 - 6 <= (y + 0.5) * SIZE[0] / map_.shape[0] <= y2 + 6
    ratio = many.maps["joint"][0].errors.mean() / few.maps["joint"][0].errors.mean()  # type: ignore[union-attr]
    assert 0.35 < ratio < 0.55  # sqrt(64 / 320) = 0.45


def test_an_object_that_every_mask_removes_is_zero_and_an_unknown_one_nan() -> None:
    frame = toy(unknown=1)

    def rerun(pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        return [Candidates.empty() for _ in pixels]

    gone = explain_frame(replace(frame, rerun=rerun), method="drise_boxes", budget=20)
    for values in (gone.maps["joint"], gone.errors["joint"]):
        assert bool((values == 0).all())
    found = explain_frame(frame, method="drise", budget=20, targets=TARGETS)
    assert all(m[1].isnan().all() and m[[0, 2]].isfinite().all() for m in found.maps.values())
    assert any("1 of 3" in note for note in found.notes)
    assert any("3 of 3 survive no mask" in note for note in gone.notes)


def test_seeds_batches_and_stopping() -> None:
    frame = toy()
    first, again, other, wide = (
        explain_frame(frame, method="drise", budget=50, **settings).maps["joint"]
        for settings in ({}, {}, {"seed": 1}, {"batch": 50})
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.05)
    torch.testing.assert_close(first, wide, rtol=1e-3, atol=1e-4)
    with_more = [DRISE().masked(frame.view, SIZE, BOXES, count, 16) for count in (10, 80)]  # type: ignore[arg-type]
    assert torch.equal(next(with_more[0])[0].shifts, next(with_more[1])[0].shifts[:10])
    loose = explain_frame(frame, method="drise", budget=5000, tolerance=0.2)
    assert 64 < loose.passes < 1000
    assert any("stopped" in note for note in loose.notes)
    for fill in ("grey", "blur"):
        assert explain_frame(frame, method="drise", budget=8, fill=fill).maps["joint"].isfinite().all()


def test_the_probe_is_one_in_the_untouched_picture_and_blind_in_none() -> None:
    frame = toy()
    for rerun in (False, True):
        targets = [TARGETS[name] for name in (("joint", "class", "box") if rerun else TARGETS)]
        probe = Probe(frame, torch.tensor([2, 0]), targets, rerun)
        values = probe(torch.stack([frame.view.pixels, frame.view.pixels * 0]))  # type: ignore[union-attr]
        assert values.shape == (2, 2, len(targets))
        assert bool(((values >= 0) & (values <= 1)).all())
        assert bool((values[0] > 0.7).all())
        assert values[1, 0, 0] < 0.1
    with pytest.raises(ValueError, match="needs a detector that can look"):
        Probe(frame, torch.tensor([0]), [TARGETS["mask"]], True)(frame.view.pixels[None])  # type: ignore[union-attr]


def test_settings_that_make_no_sense() -> None:
    for settings in ({"grid": 0}, {"p": 0.0}, {"p": 1.0}, {"batch": 0}, {"fill": "gray"}, {"estimate": "mean"}):
        with pytest.raises(ValueError, match=r"grid|fill|estimate"):
            explain_frame(toy(), method="drise", **settings)  # type: ignore[arg-type]
