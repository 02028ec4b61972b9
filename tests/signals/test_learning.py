"""Signals that learn from in-distribution frames: features and activations."""

from __future__ import annotations

import torch
from sklearn.decomposition import PCA
from torch.nn.functional import normalize

from reliability_hooks.frame import MAPS, Frame, View
from reliability_hooks.instances import Instances
from reliability_hooks.signals.activations import Activations
from reliability_hooks.signals.features import COMPONENTS, FeatureComponents


def frame(features: torch.Tensor, maps: dict[str, torch.Tensor] | None = None) -> Frame:
    n = len(features)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 56.0]]).expand(n, 4)
    kept = Instances(boxes, torch.ones(n), torch.zeros(n, dtype=torch.int64), features=features, image_size=(64, 64))
    return Frame(kept, View(torch.zeros(3, 64, 64)), maps=maps)


def known(seed: int, n: int = 20, d: int = 40) -> torch.Tensor:
    """Features near a plane of few dimensions."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(6, d, generator=torch.Generator().manual_seed(99)) * torch.linspace(3, 0.5, 6)[:, None]
    return 5 + torch.randn(n, 6, generator=g) @ basis + 0.1 * torch.randn(n, d, generator=g)


def test_components_are_those_of_scikit_learn() -> None:
    signal, rows = FeatureComponents(), torch.cat([known(s) for s in range(30)])
    for seed in range(30):
        signal.update(frame(known(seed)))
    signal.finish()
    fresh = known(100)
    got = signal(frame(fresh))
    pca = PCA(COMPONENTS, whiten=True, svd_solver="full").fit(normalize(rows, dim=1).double().numpy())
    expected = torch.from_numpy(pca.transform(normalize(fresh, dim=1).double().numpy())).float()
    for i in range(6):  # those that hold more than noise; the sign of a component is arbitrary
        ours = got[f"features/pc{i:02}"]
        assert torch.allclose(ours.abs(), expected[:, i].abs(), atol=2e-2)


def test_unknown_features_leave_a_residual() -> None:
    signal = FeatureComponents()
    for seed in range(30):
        signal.update(frame(known(seed)))
    signal.finish()
    usual = signal(frame(known(200)))["features/residual"]
    odd = signal(frame(torch.randn(20, 40, generator=torch.Generator().manual_seed(1)) * 10))["features/residual"]
    assert usual.median().abs() < 1
    assert odd.min() > usual.max()


def maps(seed: int, shift: float = 0.0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(8, 64 // s, 64 // s, generator=g) + shift
            for name, s in zip(MAPS, (4, 8, 16), strict=True)}


def taught() -> Activations:
    signal = Activations()
    for seed in range(200):
        signal.update(frame(torch.zeros(3, 1), maps(seed)))
    signal.finish()
    return signal


def test_known_activations_are_near_zero_and_shifted_ones_far() -> None:
    signal = taught()
    usual = [signal(frame(torch.zeros(2, 1), maps(seed))) for seed in range(1000, 1050)]
    odd = signal(frame(torch.zeros(2, 1), maps(1, shift=3.0)))
    for name in signal.columns:
        mean_square = torch.stack([u[name][0] for u in usual]).exp().mean()
        assert 0.6 < mean_square < 1.6  # of standardised channels
        assert odd[name].min() > 3


def test_a_box_is_judged_by_what_lies_in_it() -> None:
    signal, level = taught(), maps(5)
    level["early"][:, :8, :8] += 20  # the top left quarter
    inside = torch.tensor([[0.0, 0.0, 28.0, 28.0], [36.0, 36.0, 60.0, 60.0]])
    there = frame(torch.zeros(2, 1), level)
    got = signal(there.with_instances(there.instances.replace(boxes=inside)))["activations/early"]
    assert got[0] > got[1] + 2


def test_what_was_learnt_is_saved_and_needed() -> None:
    for signal, again in ((taught(), Activations()), (FeatureComponents(), FeatureComponents())):
        if isinstance(signal, FeatureComponents):
            signal.update(frame(known(0)))
            signal.finish()
        again.load_state(*signal.state())
        there = frame(known(3), maps(3))
        first, second = signal(there), again(there)
        assert all(torch.equal(first[name], second[name]) for name in signal.columns)
