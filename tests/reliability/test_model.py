from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from reliability_hooks.reliability.calibrators import EPS, Platt
from reliability_hooks.reliability.model import ReliabilityModel
from reliability_hooks.reliability.selection import CANDIDATES, GRIDS
from reliability_hooks.reliability.state import StateError, load_state, save_state

Data = tuple[
    dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]  # columns, scores, labels, correct, iou, groups


def make(n: int = 600, extra: int = 4, signal: float = 1.5, seed: int = 0, per_image: int = 10) -> Data:
    """Detections whose first column, beside the score, says whether they are right."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, extra, generator=g)
    confidence = torch.randn(n, generator=g)
    correct = torch.rand(n, generator=g) < (1.2 * confidence + signal * x[:, 0]).sigmoid()
    iou = torch.where(correct, 0.5, 0.0) + 0.4 * torch.rand(n, generator=g)
    x[torch.rand(n, extra, generator=g) < 0.05] = torch.nan
    held = {f"s/{j}": x[:, j] for j in range(extra)}
    return (
        held,
        confidence.sigmoid(),
        torch.randint(0, 5, (n,), generator=g),
        correct,
        iou,
        torch.arange(n) // per_image,
    )


def rows(data: Data, index: slice | torch.Tensor) -> Data:
    return ({n: c[index] for n, c in data[0].items()}, *(t[index] for t in data[1:]))  # type: ignore[return-value]


@pytest.fixture(scope="module", autouse=True)
def _fewer_trees() -> Iterator[None]:
    """Enough for these small samples, and several times faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRIDS, "boosting", (20, 40))
        yield
    fitted.cache_clear()


@cache
def fitted(*candidates: str) -> ReliabilityModel:
    return ReliabilityModel.fit(*make(), candidates=candidates or CANDIDATES)


def nll(p: torch.Tensor, correct: torch.Tensor) -> float:
    return float(log_loss(correct.numpy(), p.double().numpy(), labels=[False, True]))


def test_real_evidence_beats_the_confidence() -> None:
    model, test = fitted(), make(seed=9)
    p = model.predict(*test[:3])
    platt = Platt.fit(make()[1], make()[3]).predict(test[1])
    assert model.report["chosen"] in ("logistic", "boosting", "blend")
    assert model.report["chosen_iou"] in ("ridge", "boosting")
    assert model.columns == ("s/0", "s/1", "s/2", "s/3")
    assert nll(p["reliability"], test[3]) < nll(platt, test[3]) - 0.08
    iou = Platt.fit(make()[1], make()[4]).predict(test[1])
    assert (p["expected_iou"] - test[4]).square().mean() < 0.9 * (iou - test[4]).square().mean()
    # The honest estimate agrees with unseen data.
    assert model.cross_fitted is not None
    assert nll(model.cross_fitted, make()[3]) == pytest.approx(nll(p["reliability"], test[3]), abs=0.06)


def test_noise_is_not_worse_than_the_confidence() -> None:
    data, test = make(500, 12, signal=0.0, seed=1), make(2000, 12, signal=0.0, seed=2)
    model = ReliabilityModel.fit(*data)
    platt = Platt.fit(data[1], data[3]).predict(test[1])
    assert nll(model.predict(*test[:3])["reliability"], test[3]) < nll(platt, test[3]) + 0.01


def test_shuffled_target_leaves_no_ranking() -> None:
    held, scores, labels, correct, iou, groups = make(500, 6)
    labels = torch.arange(500) % 120  # many small classes tempt the class prior
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    model = ReliabilityModel.fit(
        held, scores, labels, correct[order], iou[order], groups, candidates=("logistic", "boosting", "blend")
    )
    assert model.cross_fitted is not None
    assert roc_auc_score(correct[order], model.cross_fitted) == pytest.approx(0.5, abs=0.08)


def test_cross_fitting_keeps_images_together() -> None:
    held, scores, labels, _, iou, groups = make(600, 1, signal=0.0, per_image=30)
    g = torch.Generator().manual_seed(0)
    held["s/image"] = torch.rand(20, generator=g)[groups]  # names the image
    correct = (torch.rand(20, generator=g) < 0.5)[groups]  # whole images are right or wrong, by chance

    def honest(ids: torch.Tensor) -> float:
        model = ReliabilityModel.fit(held, scores, labels, correct, iou, ids, candidates=("boosting",))
        assert model.cross_fitted is not None
        return float(roc_auc_score(correct, model.cross_fitted))

    assert honest(torch.arange(600)) > 0.8  # what it would look like with rows of one image on both sides
    assert honest(groups) < 0.6


def test_boosting_never_falls_in_the_score() -> None:
    model, data = fitted("boosting"), rows(make(), slice(0, 30))
    grid = torch.linspace(0, 1, 41)
    p = torch.stack(
        [model.predict(data[0], torch.full((30,), float(s)), data[2])["reliability"] for s in grid]
    )
    assert p.diff(dim=0).min() >= -1e-7
    assert (p[-1] - p[0]).min() > 0.05


def test_report_is_json_and_complete() -> None:
    report = fitted().report
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["rows"], report["images"], report["folds"]) == (600, 60, 5)
    assert report["base_rate"] == pytest.approx(float(make()[3].double().mean()))
    assert list(report["reliability"]["candidates"]) == list(CANDIDATES)
    assert list(report["expected_iou"]["candidates"]) == ["platt", "isotonic", "ridge", "boosting"]
    for row in report["reliability"]["candidates"].values():
        assert 0 < row["log_loss_se"] < row["log_loss"]
        assert 0 < row["brier_se"] < row["brier"] < 0.3
    assert report["columns"] == {"used": ["s/0", "s/1", "s/2", "s/3"], "dropped": {}}


def test_platt_in_the_report_is_grouped_cross_validation() -> None:
    """The reported loss, computed anew from the cross-fitted predictions."""
    model = fitted("platt")
    assert model.cross_fitted is not None
    row = model.report["reliability"]["candidates"]["platt"]
    assert model.report["reliability"]["slope"] == 1.0
    assert row["log_loss"] == pytest.approx(nll(model.cross_fitted, make()[3]), abs=1e-6)
    # Images as clusters: the sums over images, naively.
    loss = -torch.where(make()[3], model.cross_fitted, 1 - model.cross_fitted).double().log()
    sums = np.array([float((loss - loss.mean())[make()[5] == image].sum()) for image in range(60)])
    assert row["log_loss_se"] == pytest.approx(np.sqrt((sums**2).sum() * 60 / 59) / 600, rel=1e-4)


def test_overconfident_trees_are_recalibrated_and_honestly() -> None:
    model = fitted("boosting")
    found = model.report["reliability"]
    assert model.cross_fitted is not None
    if found["slope"] == 1.0:
        assert nll(model.cross_fitted, make()[3]) == pytest.approx(
            found["candidates"]["boosting"]["log_loss"], abs=1e-6
        )
    else:
        assert nll(model.cross_fitted, make()[3]) < found["candidates"]["boosting"]["log_loss"]
    assert model.correctness.slope == found["slope"]


@pytest.mark.parametrize(
    "candidates", [(), ("platt",), ("isotonic",), ("logistic",), ("boosting",), ("blend",)]
)
def test_round_trip_is_bit_identical(candidates: tuple[str, ...], tmp_path: Path) -> None:
    model = fitted(*candidates)
    data = make(seed=4)
    data[1][0], data[0]["s/1"][1] = torch.nan, torch.inf
    save_state(tmp_path, *model.state())
    again = ReliabilityModel.from_state(load_state(tmp_path))
    assert again.report == model.report
    for mine, theirs in [
        (model.predict(*data[:3]), again.predict(*data[:3])),
        (model.contributions(*data[:3]), again.contributions(*data[:3])),
    ]:
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value.dtype == torch.float32
            assert torch.equal(value.nan_to_num(-7.0), theirs[name].nan_to_num(-7.0))
            assert value.isnan().tolist() == data[1].isnan().tolist()


def test_incomplete_state_is_refused() -> None:
    tensors, meta = fitted("platt").state()
    with pytest.raises(StateError, match="'overlap'"):
        ReliabilityModel.from_state(
            (tensors, {**meta, "parts": {k: v for k, v in meta["parts"].items() if k != "overlap"}})
        )
    parts = json.loads(json.dumps(meta["parts"]))
    parts["correctness"]["parts"]["platt"]["kind"] = "oracle"
    with pytest.raises(StateError, match="oracle"):
        ReliabilityModel.from_state((tensors, {**meta, "parts": parts}))


@pytest.mark.parametrize("candidates", [("platt",), ("isotonic",), ("logistic",), ("blend",)])
def test_contributions_are_differences_to_the_median(candidates: tuple[str, ...]) -> None:
    model, data = fitted(*candidates), rows(make(), slice(0, 25))
    held, scores, labels = data[:3]
    got = model.contributions(held, scores, labels)
    base = model.predict(held, scores, labels)["reliability"]
    assert set(held) | {"score"} <= set(got)
    for name, column in held.items():
        middle = torch.full_like(column, float(make()[0][name].nanquantile(0.5)))
        expected = base - model.predict({**held, name: middle}, scores, labels)["reliability"]
        torch.testing.assert_close(got[name], expected, atol=1e-6, rtol=0)
    middle = torch.full_like(scores, float(make()[1].quantile(0.5)))
    expected = base - model.predict(held, middle, labels)["reliability"]
    torch.testing.assert_close(got["score"], expected, atol=1e-5, rtol=0)
    if "class_prior" in got:
        unseen = model.predict(held, scores, torch.full_like(labels, 77))["reliability"]
        torch.testing.assert_close(got["class_prior"], base - unseen, atol=1e-6, rtol=0)
        assert got["s/0"].abs().mean() > 3 * got["s/3"].abs().mean()  # the real evidence is the reason
    else:
        assert got["s/0"].abs().max() == 0


def test_many_rows_are_evaluated_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = fitted("blend"), rows(make(), slice(0, 100))
    whole = model.contributions(*data[:3])
    monkeypatch.setattr("reliability_hooks.reliability.model._CELLS", 1000)
    for name, value in model.contributions(*data[:3]).items():
        torch.testing.assert_close(value, whole[name])


def test_zero_detections() -> None:
    for model in (fitted(), fitted("platt")):
        data = rows(make(), slice(0, 0))
        assert [v.shape for v in model.predict(*data[:3]).values()] == [(0,), (0,)]
        assert all(v.shape == (0,) for v in model.contributions(*data[:3]).values())


def test_absent_columns_and_labels() -> None:
    held, scores, labels = rows(make(), slice(0, 5))[:3]
    with pytest.raises(ValueError, match=r"'s/2'.*signals.*'s'"):
        fitted("blend").predict({n: c for n, c in held.items() if n != "s/2"}, scores, labels)
    with pytest.raises(ValueError, match="labels"):
        fitted("blend").predict(held, scores)
    assert fitted("platt").columns == ()
    assert fitted("platt").predict({}, scores)["reliability"].isfinite().all()


def test_few_data_use_the_confidence_alone_and_say_so() -> None:
    for data in (make(90), make(400, per_image=50), rows(make(), make()[3].logical_not().cumsum(0) < 9)):
        model = ReliabilityModel.fit(*data)
        assert model.report["chosen"] in ("platt", "isotonic")
        assert "few data" in model.notes[0]
        assert model.columns == ()
    assert ReliabilityModel.fit(*make(50), candidates=("blend",)).report["chosen"] == "platt"


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 12),
    images=st.integers(1, 4),
    seed=st.integers(0, 99),
    right=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_few_rows_give_a_bounded_answer(n: int, images: int, seed: int, right: float) -> None:
    held, scores, labels, _, iou, _ = make(n, seed=seed)
    g = torch.Generator().manual_seed(seed)
    correct, groups = torch.rand(n, generator=g) < right, torch.randint(0, images, (n,), generator=g)
    model = ReliabilityModel.fit(held, scores, labels, correct, iou, groups)
    for value in model.predict(held, scores, labels).values():
        assert bool(((value >= 0) & (value <= 1)).all())
    assert model.cross_fitted is not None
    assert bool(model.cross_fitted.isnan().all()) == (len(groups.unique()) < 2)
    json.dumps(model.report, allow_nan=False)


def test_all_right_in_every_fold_but_one() -> None:
    """Wrong detections in so few images that a training side may hold one class only."""
    held, scores, labels, _, iou, groups = make(200)
    correct = groups != 3
    model = ReliabilityModel.fit(held, scores, labels, correct, iou, groups)
    assert model.predict(held, scores, labels)["reliability"].isfinite().all()


def test_rows_without_a_score_are_left_out() -> None:
    held, scores, _, correct, iou, groups = make(300)
    scores[:7] = torch.nan
    names = [f"image {int(i)}" for i in groups]
    model = ReliabilityModel.fit(held, scores, None, correct, iou, names, candidates=("logistic",))
    assert model.report["rows"] == 293
    assert "7 rows" in model.notes[0]
    assert model.cross_fitted is not None
    assert model.cross_fitted.isnan().nonzero().flatten().tolist() == list(range(7))
    assert model.predict(held, scores)["reliability"].isnan().nonzero().flatten().tolist() == list(range(7))


def test_gaps_and_infinities_stay_bounded() -> None:
    held, scores, labels = rows(make(), slice(0, 6))[:3]
    for value in (torch.nan, torch.inf, -torch.inf, 1e30, -1e30):
        for p in fitted("blend").predict({n: torch.full((6,), value) for n in held}, scores, labels).values():
            assert bool(((p >= 0) & (p <= 1)).all())
    assert fitted("isotonic").predict({}, torch.tensor([0.0, 1.0]))["reliability"].min() >= np.float32(EPS)


def test_same_seed_same_model() -> None:
    again = ReliabilityModel.fit(*make(), candidates=("boosting",))
    assert torch.equal(
        again.predict(*make()[:3])["reliability"], fitted("boosting").predict(*make()[:3])["reliability"]
    )


def test_bad_input() -> None:
    held, scores, labels, correct, iou, groups = make(20)
    fit = ReliabilityModel.fit
    with pytest.raises(ValueError, match="got 0: label"):
        fit(*rows(make(20), slice(0, 0)))
    with pytest.raises(ValueError, match="unknown candidates \\['forest'\\]"):
        fit(held, scores, labels, correct, iou, groups, candidates=("forest",))
    with pytest.raises(ValueError, match="no candidate"):
        fit(held, scores, labels, correct, iou, groups, candidates=())
    with pytest.raises(ValueError, match="'iou'"):
        fit(held, scores, labels, correct, iou[:3], groups)
    with pytest.raises(ValueError, match="'s/0'"):
        fit({"s/0": torch.zeros(20, 2)}, scores, labels, correct, iou, groups)
    with pytest.raises(ValueError, match="iou must lie"):
        fit(held, scores, labels, correct, iou * torch.nan, groups)
    with pytest.raises(ValueError, match="correct must be bool"):
        fit(held, scores, labels, iou, iou, groups)
    with pytest.raises(ValueError, match="not logits"):
        fit(held, scores * 9, labels, correct, iou, groups)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_gives_the_same_bits() -> None:
    data, model = make(), fitted("blend")
    there = model.predict({n: c.cuda() for n, c in data[0].items()}, data[1].cuda(), data[2].cuda())
    for name, value in model.predict(*data[:3]).items():
        assert there[name].is_cuda
        assert torch.equal(there[name].cpu(), value)
