"""Mahalanobis, relative Mahalanobis and nearest neighbours against pytorch-ood and float64 loops."""

from __future__ import annotations

import warnings

import pytest
import torch
from sklearn.covariance import OAS
from torch import Tensor

from reliability_hooks.signals.ood.base import Rows, Score
from reliability_hooks.signals.ood.knn import KNearest
from reliability_hooks.signals.ood.mahalanobis import ClassMoments, Mahalanobis, RelativeMahalanobis, whitening

SCORES = [Mahalanobis, RelativeMahalanobis, KNearest]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def known(n: int = 400, d: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features far from the origin, about the means of their classes."""
    y = torch.arange(n) * 7 % classes
    mix = random(d, d, seed=91) / 4 + torch.eye(d)
    return 5 + 2 * random(classes, d, seed=90)[y] + random(n, d, seed=seed) @ mix, y


def taught(score: Score, z: Tensor, y: Tensor, batch: int = 7) -> Score:
    for rows, classes in zip(torch.split(z, batch), torch.split(y, batch), strict=True):
        score.learn(Rows(classes, features=rows))
    score.finish()
    return score


def judged(score: Score, z: Tensor, y: Tensor | None = None) -> Tensor:
    return score.score(Rows(torch.zeros(len(z), dtype=torch.int64) if y is None else y, features=z))


def loop(z: Tensor, y: Tensor, test: Tensor, relative: bool) -> Tensor:
    """From the formulas, in float64, the covariances inverted as they are."""
    z, test = z.double(), test.double()
    means = {c: z[y == c].mean(0) for c in y.unique().tolist()}
    inside = sum(torch.outer(r - means[int(c)], r - means[int(c)]) for r, c in zip(z, y, strict=True)) / len(z)
    around = sum(torch.outer(r - z.mean(0), r - z.mean(0)) for r in z) / len(z)
    out = []
    for t in test:
        nearest = min(((t - m) @ torch.linalg.inv(inside) @ (t - m)).item() for m in means.values())
        t = t - z.mean(0)
        out.append(nearest - (t @ torch.linalg.inv(around) @ t).item() * relative)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("relative", [False, True])
def test_mahalanobis_is_the_loop_and_pytorch_ood(relative: bool) -> None:
    detector = pytest.importorskip("pytorch_ood.detector")
    (z, y), (test, _) = known(), known(60, seed=1)
    test = torch.cat([test, 10 * random(60, 12, seed=2)])
    got = judged(taught(RelativeMahalanobis() if relative else Mahalanobis(), z, y), test)
    expected = loop(z, y, test, relative)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-3)
    # theirs is of sums instead of means over the rows, and Mahalanobis halved
    theirs = (detector.RMD if relative else detector.Mahalanobis)(None).fit_features(z, y).predict_features(test)
    theirs = theirs * len(z) * (1 if relative else 2)
    torch.testing.assert_close(theirs.double(), expected, rtol=1e-3, atol=1e-2)


def test_gaps_in_class_ids_and_order_of_rows_do_not_matter() -> None:
    (z, y), (test, _) = known(), known(40, seed=1)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    names = torch.tensor([700, 3, 50, -1])
    for kind in (Mahalanobis, RelativeMahalanobis):
        straight, turned = taught(kind(), z, y), taught(kind(), z[order], names[y][order], 31)
        torch.testing.assert_close(judged(straight, test), judged(turned, test), rtol=1e-4, atol=1e-3)


def test_a_class_of_one_row_counts_among_all_rows_only() -> None:
    z, y = known()
    alone = torch.full((1, 12), 40.0)
    both = taught(RelativeMahalanobis(), torch.cat([z, alone]), torch.cat([y, torch.tensor([9])])).tensors
    without = taught(RelativeMahalanobis(), z, y).tensors
    torch.testing.assert_close(both["means"], without["means"])
    torch.testing.assert_close(both["whiten"].abs(), without["whiten"].abs(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(both["mean"], torch.cat([z, alone]).mean(0))


def test_classes_of_one_row_each_are_one_class() -> None:
    z = known(50)[0]
    moments = ClassMoments()
    moments.update(z, torch.arange(50))
    means, inside, mean, total, n = moments.result()
    torch.testing.assert_close(means, mean[None])
    torch.testing.assert_close(inside, z.double().T.cov(correction=0))
    assert n == 50
    assert inside is total


def test_a_singular_covariance_is_shrunk_as_scikit_learn_does_and_a_regular_one_is_left() -> None:
    few = random(10, 30).double()
    whiten = whitening(few.T.cov(correction=0), 10)
    torch.testing.assert_close(whiten @ whiten.T, torch.from_numpy(OAS().fit(few.numpy()).precision_))
    many = random(100, 30).double().T.cov(correction=0)
    whiten = whitening(many, 100)
    torch.testing.assert_close(whiten @ whiten.T, torch.linalg.inv(many))


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("constant", [False, True])
def test_few_rows_and_constant_features_are_ordinary(kind: type[Score], rows: int, constant: bool) -> None:
    z = torch.full((rows, 6), 0.5) if constant else random(rows, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = taught(kind(), z, torch.zeros(rows, dtype=torch.int64))
        near, far = judged(score, torch.cat([z[:1], z[:1] + 20 * random(1, 6, seed=5)]))
    assert torch.stack([near, far]).isfinite().all()
    if kind is not RelativeMahalanobis:  # of one class: the two distances are the same
        assert far > near


@pytest.mark.parametrize("kind", SCORES)
def test_state_empty_and_learning_anew(kind: type[Score]) -> None:
    (z, y), (test, labels) = known(), known(30, seed=1)
    score, again = taught(kind(), z, y), kind("late")
    again.load_state(*score.state())
    first = judged(score, test, labels)
    assert torch.equal(judged(again, test, labels), first)
    assert judged(score, test[:0]).shape == (0,)
    with pytest.raises(ValueError, match="no detections to learn"):
        kind().finish()
    taught(score, z * 3, y)
    fresh = taught(kind(), z * 3, y)
    assert torch.equal(judged(score, test, labels), judged(fresh, test, labels))


def test_knn_is_that_of_pytorch_ood() -> None:
    detector = pytest.importorskip("pytorch_ood.detector")
    (z, y), (test, _) = known(500), known(40, seed=1)
    expected = detector.KNN(None, 50).fit_features(z, y).predict_features(test).float()
    torch.testing.assert_close(judged(taught(KNearest(), z, y), test), expected, rtol=1e-4, atol=1e-6)
