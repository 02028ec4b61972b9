"""D-RISE against an independent implementation, given the same masks and the same raw boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reliability_hooks import Monitor, attach
from reliability_hooks.explain.explainer import EVIDENCE
from reliability_hooks.explain.perturbation import BoxDRISE
from reliability_hooks.explain.places import centres
from reliability_hooks.explain.targets import TARGETS

from ..hosts.test_look import built

stats = pytest.importorskip("scipy.stats")
drise = pytest.importorskip("xaitk_saliency.impls.gen_detector_prop_sal.drise_scoring",
                            reason="xaitk-saliency is not installed")


def test_drise_ranks_pixels_as_xaitk_does() -> None:
    own, count = built("torchvision/FCOS"), 48
    method = BoxDRISE(grid=(5, 6), seed=2)
    with attach(own.model, Monitor([]), strict=True) as handle, handle.frames(*EVIDENCE) as frames:
        own.run(own.images[:1])
        frame = frames[0]
        view, kept, size = frame.view, frame.instances, frame.instances.image_size
        heat = method.heats(frame, torch.arange(len(kept)), [TARGETS["joint"]], count).maps["joint"][0]
        y, x = (centres(4 * n, side) for n, side in zip((5, 6), size, strict=True))  # type: ignore[arg-type]
        masks, found = [], []
        for drawn, shown, _ in method.masked(view, size, kept.boxes, count, 8):  # type: ignore[arg-type]
            masks.append(drawn.at(y, x))
            found += frame.rerun(shown)  # type: ignore[misc]
    most = max(map(len, found))

    def rows(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, pad: int) -> np.ndarray:
        """Their layout: a box, an objectness and a probability for each class; unused rows have objectness 0.

        In thousandths of a pixel: they count a pixel more on each side of a box.
        """
        table = np.zeros((pad, 10))
        table[:, 5] = 1
        classes = torch.nn.functional.one_hot(labels, 5)
        table[: len(boxes)] = torch.cat([boxes * 1000, scores[:, None], classes], 1).numpy()
        return table

    expected = drise.DRISEScoring().generate(
        rows(view.to_view(kept.boxes), kept.scores, kept.labels, len(kept)),  # type: ignore[union-attr]
        np.stack([rows(c.boxes, c.scores, c.labels, most) for c in found]),
        torch.cat(masks).numpy(),
    )
    for ours, theirs in zip(heat.values, expected, strict=True):
        assert stats.spearmanr(ours.flatten(), theirs.ravel()).statistic > 0.999
