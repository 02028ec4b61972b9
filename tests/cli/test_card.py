"""The card of a monitor says what it was fitted on, and what is in a name stays text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reliability_hooks import Instances, Monitor
from reliability_hooks.cli.calibrate import before_and_after
from reliability_hooks.cli.card import card, counted
from reliability_hooks.config import DetectorSettings, Settings
from reliability_hooks.evaluation.datasets import GroundTruth
from reliability_hooks.frame import Frame

BOX = torch.tensor([[10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]])


@pytest.fixture(scope="module")
def text() -> str:
    g = torch.Generator().manual_seed(0)
    monitor, pairs, images = Monitor(["geometry"]), [], []
    for k in range(40):
        scores = torch.rand(2, generator=g)
        there = torch.rand(2, generator=g) < scores
        found = monitor.apply(Frame(Instances(BOX, scores, torch.tensor([0, 1]), image_size=(100, 100))))
        truth = GroundTruth(BOX[there].numpy(), np.array([0, 1])[there], np.zeros(int(there.sum()), bool))
        pairs.append((found, truth))
        images.append((k // 2, ("clean", "blur")[k % 2]))
    monitor.fit(pairs, groups=[p for p, _ in images], fingerprint={"host": "toy", "weights": "abc"})
    settings = Settings(detector=DetectorSettings(weights="folder/toy.pt"))
    metrics = before_and_after(monitor, pairs, images)
    return card(monitor, settings, pairs, images, {0: "cat", 1: "<script>|x"}, metrics, "how it was measured", failed=3)


def test_what_it_was_fitted_on(text: str) -> None:
    assert "`toy.pt`" in text
    assert "host `toy`, weights `abc`" in text
    assert "20 photographs, 40 pictures" in text
    assert "80 detections; 3 could not be read" in text
    assert "| blur | 40 |" in text
    assert "| cat | 40 |" in text
    assert "how it was measured." in text
    assert "accept, all:" in text


def test_names_stay_text(text: str) -> None:
    assert "<script>" not in text
    assert "| &lt;script>\\|x | 40 |" in text


def test_groups_are_averaged() -> None:
    values = np.array([[1, 0, 1.0], [0.5, 0.5, 0.25], [0.75, np.nan, 1.0]])
    lines = counted("class", np.array(["b", "b", "a"]), values)
    assert lines[2:] == [
        "| b | 2 | 0.500 | 0.500 | 0.750 | 0.250 | 0.062 |",
        "| a | 1 | 1.000 | 0.250 | 1.000 | 0.562 | 0.000 |",
    ]
