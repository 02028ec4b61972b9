from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from reliability_hooks.reliability.betting import STAKES, betting_log_p, binomial_log_p, needed
from reliability_hooks.reliability.certify import miscoverage, rank_in_frame
from reliability_hooks.reliability.groups import Groups, size_codes
from reliability_hooks.reliability.guarantee import Guarantee

Draw = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Thousands of small fits: waking a second thread costs more than it does, most of all on a shared machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def clustered(images: int, seed: int, rate: float = 4.0, spread: float = 1.5, shift: float = 0.0) -> Draw:
    """Reliability, correct, image: an image's detections share a normal effect on the logit."""
    g = torch.Generator().manual_seed(seed)
    count = 1 + torch.poisson(torch.full((images,), rate - 1), generator=g).long()
    image = torch.repeat_interleave(torch.arange(images), count)
    r = 1 - 0.6 * torch.rand(len(image), generator=g).double() ** 2
    effect = spread * torch.randn(images, generator=g).double()[image]
    # The scale keeps the mean over the effect about where it was (MacKay 1992), so shift 0 is nearly calibrated.
    z = torch.logit(r.clamp(max=0.999)) * math.sqrt(1 + math.pi * spread**2 / 8) + shift + effect
    return r, torch.rand(len(image), generator=g).double() < z.sigmoid(), image


class Truth:
    """The precision of what a guarantee accepts, over a large population."""

    def __init__(self, **how: float) -> None:
        self.r, self.correct, self.image = clustered(30_000, 10**6, **how)
        self.rank = rank_in_frame(self.r, self.image, torch.zeros_like(self.image))
        self.known: dict[tuple[float, int], float] = {}

    def precision(self, g: Guarantee) -> float:
        key = (float(g.accept[0]), int(g.accept_limit[0]))
        if key not in self.known:
            accepted = (self.r >= key[0]) & (self.rank < key[1])
            if not self.known:
                assert torch.equal(accepted, g.apply(self.r, image=self.image) == 1)
            self.known[key] = float(self.correct[accepted].double().mean())
        return self.known[key]


def violations(draws: int, truth: Truth, images: int, how: dict[str, float], **options: object) -> tuple[float, float]:
    """Share of draws whose promise is broken, and share with a certificate."""
    broken = certified = 0
    for seed in range(draws):
        fit = Guarantee.fit(*clustered(images, seed, **how), max_reject_precision=None, **options)  # type: ignore[arg-type]
        if fit.describe()[0]["threshold"] is not None:
            certified += 1
            broken += truth.precision(fit) < fit.describe()[0]["promise"]
    return broken / draws, certified / draws


def test_the_promise_holds_in_at_least_1_minus_delta_of_1000_draws_and_is_of_use() -> None:
    how = {"spread": 2.0}
    broken, certified = violations(1000, Truth(**how), 80, how, target=0.8, delta=0.1)
    assert broken <= 0.1
    assert certified > 0.7


def test_where_thresholds_cross_the_border_the_promise_still_holds() -> None:
    how = {"spread": 3.0, "rate": 8.0, "shift": -3.15}
    broken, certified = violations(1000, Truth(**how), 60, how, target=0.8, delta=0.1, max_per_image=4)
    assert broken <= 0.1
    assert broken > 0.03  # not by being timid: the test is nearly sharp here
    assert certified > 0.25


def test_the_instance_test_breaks_its_promise_where_images_matter() -> None:
    how = {"spread": 3.0, "rate": 20.0, "shift": -3.15}
    truth = Truth(**how)
    assert 0.78 < float(truth.correct[truth.r >= 0.8].double().mean()) < 0.8  # any certificate is a broken promise
    naive, _ = violations(300, truth, 60, how, target=0.8, delta=0.1, unit="instance")
    assert naive > 0.1 + 3 * math.sqrt(0.1 * 0.9 / 300)
    ours, _ = violations(300, truth, 60, how, target=0.8, delta=0.1, max_per_image=20)
    assert ours <= 0.1


@pytest.mark.parametrize(("target", "n"), [(0.9, 22), (0.95, 45), (0.99, 230)])
def test_straight_true_positives_that_certify(target: float, n: int) -> None:
    assert needed(target, 0.1) == n
    ones = torch.ones(n, dtype=torch.bool)
    r = torch.full((n,), 0.995)
    options = {"target": target, "unit": "instance", "max_reject_precision": None}
    enough = Guarantee.fit(r, ones, torch.arange(n), **options)
    assert enough.describe()[0]["message"] == "certified"
    assert bool((enough.apply(r) == 1).all())
    short = Guarantee.fit(r[1:], ones[1:], torch.arange(n - 1), **options)
    assert short.describe()[0]["message"].startswith(f"not certifiable: needs n >= {n} detections, has {n - 1}")
    assert not bool(short.apply(r).any())


def test_straight_full_images_that_certify() -> None:
    n = needed(0.9, 0.1, "image")
    assert n == math.ceil(math.log(10) / math.log1p(STAKES[0] / 9))
    for images, message in ((n, "certified"), (n - 1, f"not certifiable: needs n >= {n} images, has {n - 1}")):
        r, image = torch.full((2 * images,), 0.95), torch.arange(images).repeat(2)
        row = Guarantee.fit(r, r > 0, image, max_per_image=2, max_reject_precision=None).describe()[0]
        assert row["message"].startswith(message)


def test_the_announced_n_is_enough_when_all_are_right() -> None:
    r, image = torch.full((30,), 0.95), torch.arange(15).repeat(2)
    row = Guarantee.fit(r, r > 0, image, max_reject_precision=None).describe()[0]
    n = int(row["message"].split(">= ")[1].split()[0])
    r, image = torch.full((2 * n + 20,), 0.95), torch.arange(n + 10).repeat(2)
    assert Guarantee.fit(r, r > 0, image, max_reject_precision=None).describe()[0]["message"] == "certified"


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 300), share=st.floats(0, 1), target=st.floats(0.05, 0.99))
def test_binomial_equals_scipy(n: int, share: float, target: float) -> None:
    k = round(n * share)
    found = float(binomial_log_p(torch.tensor([float(k)]), torch.tensor([float(n)]), target).exp())
    assert found == pytest.approx(binom.pmf(range(k, n + 1), n, target).sum(), abs=1e-9)


def test_betting_equals_a_plain_loop() -> None:
    gain = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.4 - 0.6
    found = betting_log_p(gain, 0.25)
    for t in range(3):
        earned = [20 * math.log1p(0.25 * f) for f in STAKES]
        wealth, most = 0.0, 0.0
        for x in gain[:, t].tolist():
            wealth += math.log1p(STAKES[earned.index(max(earned))] * x)
            most = max(most, wealth)
            earned = [e + math.log1p(f * x) for e, f in zip(earned, STAKES, strict=True)]
        assert float(found[t]) == pytest.approx(-most)
    assert betting_log_p(torch.zeros(0, 2, dtype=torch.float64), 0.1).tolist() == [0, 0]


@pytest.mark.parametrize("p", [0.5, 0.9, 0.97])
def test_betting_p_values_are_valid_for_single_detections(p: float) -> None:
    """Bernoulli(p) against target p, the hardest distribution for a mean on the border: level kept at 10 %."""
    g = torch.Generator().manual_seed(0)
    gain = ((torch.rand(200, 4000, generator=g).double() < p).double() - p) / p
    assert float((betting_log_p(gain, (1 - p) / p) <= math.log(0.1)).double().mean()) < 0.1 + 3 * 0.0048


def test_groups_share_delta_and_small_ones_say_what_they_need() -> None:
    r, correct, image = clustered(400, 0, spread=0.5)
    groups = torch.zeros_like(image)
    groups[:12] = 7
    fit = Guarantee.fit(r, correct, image, groups, target=0.8, names={0: "person", 7: "zebra"})
    table = {(row["group"], row["side"]): row for row in fit.describe()}
    assert len(table) == 4
    assert table["person", "accept"]["message"] == "certified"
    assert 0 < table["person", "accept"]["coverage"] <= 1
    assert table["person", "accept"]["observed"] >= 0.8
    assert table["zebra", "accept"]["message"].startswith("not certifiable: needs n >= ")
    assert table["zebra", "accept"]["threshold"] is None
    verdict = fit.apply(torch.full((3,), 0.999), torch.tensor([0, 7, 5]))
    assert verdict.tolist() == [1, 0, 0]  # a group without certificate, or not seen in the fit, is never accepted
    assert json.loads(json.dumps(fit.describe())) == fit.describe()
    assert Guarantee.fit(r, correct, image, torch.full_like(image, -1)).apply(r).any().item() is False


def test_more_groups_cost_evidence() -> None:
    r, correct, image = clustered(300, 1, spread=0.5)
    one = Guarantee.fit(r, correct, image, target=0.8, max_per_image=8, max_reject_precision=None)
    many = Guarantee.fit(r, correct, image, image % 6, target=0.8, max_per_image=8, max_reject_precision=None)
    certified = [row["threshold"] for row in many.describe() if row["threshold"] is not None]
    assert len(certified) < 6
    assert all(t >= float(one.accept[0]) for t in certified)


def test_rejection_is_certified_as_well_and_never_meets_acceptance() -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.arange(400).repeat_interleave(4)
    r = torch.rand(1600, generator=g).double()
    correct = torch.rand(1600, generator=g).double() < (8 * (r - 0.5)).sigmoid()
    fit = Guarantee.fit(r, correct, image, target=0.85, max_reject_precision=0.15)
    verdict = fit.apply(r, image=image)
    assert (verdict == 1).sum() > 300
    assert (verdict == -1).sum() > 300
    assert float(correct[verdict == -1].double().mean()) < 0.15
    assert float(r[verdict == -1].max()) < float(r[verdict == 1].min())
    row = next(row for row in fit.describe() if row["side"] == "reject")
    assert row["promise"] == 0.85
    overlapping = Guarantee.fit(r, correct, image, target=0.3, max_reject_precision=0.6)
    assert bool((1 - overlapping.reject < overlapping.accept).all())
    assert bool((overlapping.apply(r, image=image) == 1).any())


def test_the_limit_is_kept_in_every_image_of_apply() -> None:
    r, correct, image = clustered(300, 2, rate=8.0, spread=0.3)
    fit = Guarantee.fit(r, correct, image, target=0.7, max_per_image=3)
    accepted = fit.apply(r, image=image) == 1
    assert int(torch.bincount(image[accepted]).max()) == 3
    one = fit.apply(torch.tensor([0.9, 0.97, 0.96, 0.99, torch.nan]))
    assert one.tolist() == [0, 1, 1, 1, 0]  # the most reliable ones, of one image
    assert fit.apply(torch.zeros(0)).shape == (0,)


def test_a_learnt_limit_is_as_large_as_the_evidence_allows() -> None:
    r, image = torch.full((1200,), 0.95), torch.arange(400).repeat(3)
    plenty = Guarantee.fit(r, r > 0, image, max_reject_precision=None)
    assert int(plenty.accept_limit[0]) == 3
    lonely = torch.cat([torch.arange(40), torch.full((30,), 40)])  # forty images with one object, one with thirty
    tight = Guarantee.fit(torch.full((70,), 0.95), torch.ones(70) > 0, lonely, max_reject_precision=None)
    assert int(tight.accept_limit[0]) == 1
    assert tight.describe()[0]["message"] == "certified"


def test_versions_of_a_photograph_are_one_image() -> None:
    r, correct, image = clustered(100, 3, spread=0.5)
    thrice, frame = torch.cat([image] * 3), torch.arange(3).repeat_interleave(len(r))
    options = {"target": 0.8, "max_per_image": 6, "max_reject_precision": None}
    single = Guarantee.fit(r, correct, image, **options)
    triple = Guarantee.fit(torch.cat([r] * 3), torch.cat([correct] * 3), thrice, frame=frame, **options)
    assert torch.equal(single.accept, triple.accept)  # copies are no evidence
    naive = Guarantee.fit(torch.cat([r] * 3), torch.cat([correct] * 3), thrice + 100 * frame, **options)
    assert float(naive.accept[0]) < float(single.accept[0])


def test_miscoverage_and_a_risk_of_ones_own() -> None:
    accepted, correct = torch.tensor([True, False, False, True]), torch.tensor([True, True, False, False])
    assert miscoverage(accepted, correct, torch.tensor([0, 0, 0, 1])).tolist() == [0.5, 0]
    r, right, image = clustered(300, 4, spread=0.5)
    fit = Guarantee.fit(r, right, image, risk="miscoverage", target=0.2)
    kept = fit.apply(r, image=image) == 1
    assert float(miscoverage(kept, right, image).mean()) <= 0.2
    assert 0.5 < float(kept.double().mean()) < 1

    def any_error(accepted: torch.Tensor, correct: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros(int(image.max()) + 1).double()
        return loss.index_add_(0, image, (accepted & ~correct).double()).clamp(max=1)

    fit = Guarantee.fit(r, right, image, risk=any_error, target=0.3)
    accepted = fit.apply(r, image=image) == 1
    assert float(any_error(accepted, right, image).mean()) <= 0.3
    assert bool(accepted.any())
    few = Guarantee.fit(r[:5], right[:5], image[:5], risk=any_error, target=0.3)
    assert few.describe()[0]["message"].startswith("not certifiable: needs n >= 7 images")
    with pytest.raises(ValueError, match="losses in"):
        Guarantee.fit(r, right, image, risk=lambda a, c, i: 2.0 * any_error(a, c, i), target=0.3)


def test_a_users_risk_keeps_its_promise_too() -> None:
    truth = Truth(spread=1.0)
    broken = 0
    known: dict[float, float] = {}
    for seed in range(300):
        fit = Guarantee.fit(*clustered(60, seed, spread=1.0), risk="miscoverage", target=0.3, delta=0.1)
        t = float(fit.accept[0])
        if t not in known:
            known[t] = float(miscoverage(truth.r >= t, truth.correct, truth.image).mean())
        broken += math.isfinite(t) and known[t] > 0.3
    assert broken / 300 <= 0.1


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.one_of(st.floats(0, 1, width=32), st.just(math.nan)), st.booleans(), st.integers(0, 5),
                  st.integers(-1, 2)),
        max_size=25,
    ),
    unit=st.sampled_from(["image", "instance"]),
)
def test_any_data_give_verdicts_that_survive_the_state(
    rows: list[tuple[float, bool, int, int]], unit: str
) -> None:
    r, correct = torch.tensor([x[0] for x in rows]), torch.tensor([x[1] for x in rows], dtype=torch.bool)
    image, groups = (torch.tensor([x[k] for x in rows], dtype=torch.int64) for k in (2, 3))
    fit = Guarantee.fit(r, correct, image, groups, target=0.3, delta=0.4, unit=unit)
    verdict = fit.apply(r, groups, image)
    assert verdict.dtype == torch.int64
    assert set(verdict.tolist()) <= {-1, 0, 1}
    assert not bool(verdict[r.isnan() | (groups < 0)].any())
    assert torch.equal(Guarantee.from_state(fit.state()).apply(r, groups, image), verdict)


def test_bad_input() -> None:
    r, correct, image = clustered(5, 0)
    with pytest.raises(ValueError, match="target, delta"):
        Guarantee.fit(r, correct, image, target=1.0)
    with pytest.raises(ValueError, match="unit: 'image'"):
        Guarantee.fit(r, correct, image, unit="photo")
    with pytest.raises(ValueError, match="at least 1"):
        Guarantee.fit(r, correct, image, max_per_image=0)
    with pytest.raises(ValueError, match="shape"):
        Guarantee.fit(r, correct[1:], image)
    with pytest.raises(ValueError, match="one id for each"):
        Guarantee.fit(r, correct, image[1:])
    with pytest.raises(ValueError, match="not logits"):
        Guarantee.fit(5 * r, correct, image)


def test_rank_in_frame() -> None:
    value = torch.tensor([0.5, 0.9, 0.5, 0.1, torch.nan, 0.7])
    assert rank_in_frame(value, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 0, 0, 1])).tolist() == [
        1, 0, 2, 0, 1, 0,
    ]


def test_groups_by_class_size_and_condition() -> None:
    size = size_codes(torch.tensor([10.0, 32.0**2, 96.0**2, torch.nan]))
    assert size.tolist() == [0, 1, 2, -1]
    factors = {"class": torch.tensor([3, 3, 5, 5]), "size": size, "condition": torch.tensor([0, 1, 1, 0])}
    groups = Groups.fit(factors, {"class": {3: "cat", 5: "dog"}})
    codes = groups.codes(factors)
    assert [groups.name(c) for c in codes.tolist()] == [
        "cat, small, condition=0", "cat, medium, condition=1", "dog, large, condition=1", "unseen",
    ]
    again = Groups.from_state(json.loads(json.dumps(groups.state())))
    assert torch.equal(again.codes(factors), codes)
    assert again.name(int(codes[0])) == groups.name(int(codes[0]))
    new = {"class": torch.tensor([4]), "size": torch.tensor([0]), "condition": torch.tensor([0])}
    assert groups.codes(new).tolist() == [-1]
    with pytest.raises(ValueError, match="absent"):
        groups.codes({"class": torch.tensor([3])})


def test_real_detections_of_held_out_images(shared: Path) -> None:
    """Raw confidences of YOLO on COCO: certified on half of the photographs, true on the other half."""
    from reliability_hooks.evaluation.datasets import read_coco
    from reliability_hooks.evaluation.matching import match
    from reliability_hooks.reliability.calibrators import Platt

    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO(shared / "weights" / "yolo11n-seg.pt")
    folder = shared / "data/coco"
    ids = {name: i for i, name in model.names.items()}
    dataset = read_coco(folder / "instances_val2017.json", folder / "val2017", ids)
    rows: list[Draw] = []
    for k, record in enumerate(dataset.subset(range(90))):
        boxes = model.predict(record.path, conf=0.1, imgsz=320, verbose=False)[0].boxes
        truth = record.truth
        real = (truth.boxes, truth.labels, [k] * len(truth), truth.crowd)
        found = match(boxes.xyxy, boxes.conf, boxes.cls, [k] * len(boxes), *real)
        keep = ~torch.as_tensor(found.ignore)
        rows.append((boxes.conf.double()[keep], torch.as_tensor(found.tp)[keep], torch.full((int(keep.sum()),), k)))
    score, correct, image = (torch.cat(column) for column in zip(*rows, strict=True))
    third = image % 3
    r = Platt.fit(score[third == 0], correct[third == 0]).predict(score)
    fit = Guarantee.fit(
        r[third == 1], correct[third == 1], image[third == 1], target=0.6, delta=0.1, max_per_image=3
    )
    assert fit.describe()[0]["message"] == "certified"
    accepted = fit.apply(r[third == 2], image=image[third == 2]) == 1
    assert float(accepted.double().mean()) > 0.1
    assert float(correct[third == 2][accepted].double().mean()) >= 0.6
