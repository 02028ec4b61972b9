"""Summaries of methods: plain means, the same instances for all, paired intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reliability_hooks.evaluation.bootstrap import paired_bootstrap
from reliability_hooks.evaluation.faithfulness_summary import faithfulness_summary, mean

RNG = np.random.default_rng(0)
IDS = np.repeat(np.arange(30), 5)
EASY = np.repeat(RNG.normal(0, 1, 30), 5)  # what is easy in one image is easy for all methods
OURS, THEIRS = EASY + 0.1 + 0.02 * RNG.normal(size=150), EASY + 0.02 * RNG.normal(size=150)


def test_means_and_paired_differences() -> None:
    scores = {"ours": {"OA": OURS, "found": OURS > 0}, "theirs": {"OA": THEIRS, "found": THEIRS > 0}}
    out = faithfulness_summary(scores, IDS, against="theirs", draws=200, protocol={"fill": "grey"})
    assert out["ours"]["OA"].value == pytest.approx(OURS.mean())
    assert out["theirs"]["found"].value == pytest.approx((THEIRS > 0).mean())
    assert set(out["theirs"]) == {"OA", "found"}
    gain = out["ours"]["OA - theirs"]
    assert gain.value == pytest.approx((OURS - THEIRS).mean())
    assert 0.09 < gain.low < gain.value < gain.high < 0.11  # the images' own spread cancels
    assert out["ours"]["OA"].low < out["theirs"]["OA"].value < out["ours"]["OA"].high
    by_hand = paired_bootstrap(mean, IDS, [OURS], [THEIRS], draws=200)
    assert (gain.low, gain.high) == (by_hand.low, by_hand.high)
    assert gain.protocol["fill"] == "grey"
    assert gain.protocol["against"] == "theirs"


def test_an_instance_that_one_method_lacks_counts_for_none() -> None:
    holed = OURS.copy()
    holed[:7] = math.nan
    out = faithfulness_summary({"ours": {"OA": holed}, "theirs": {"OA": THEIRS}}, IDS, draws=20)
    assert out["theirs"]["OA"].value == pytest.approx(THEIRS[7:].mean())
    assert out["theirs"]["OA"].protocol["left_out"] == 7
    assert out["theirs"]["OA"].n == 143


def test_nothing_and_bad_input() -> None:
    out = faithfulness_summary({"a": {"OA": []}, "b": {"OA": []}}, [], against="a", draws=5)
    assert all(math.isnan(e.value) and e.n == 0 for own in out.values() for e in own.values())
    assert faithfulness_summary({}, []) == {}
    with pytest.raises(ValueError, match="none of the methods"):
        faithfulness_summary({"a": {"OA": OURS}}, IDS, against="b")
    with pytest.raises(ValueError, match="same scores"):
        faithfulness_summary({"a": {"OA": OURS}, "b": {"EPG": OURS}}, IDS)
    with pytest.raises(ValueError, match="one entry for each row"):
        faithfulness_summary({"a": {"OA": OURS[1:]}}, IDS)
