from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reliability_hooks.explain.cause import ABOVE, CLEAR, LEAD, causes, clearest
from reliability_hooks.instances import Instances

NAMES = ("blur", "noise", "clutter")
WORDS = {f"condition/{n}": (f"no {n}", n) for n in NAMES}


def objects(*rows: tuple[float, float, float]) -> Instances:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(len(rows), 1)
    columns = {f"condition/{n}": torch.tensor([row[k] for row in rows]) for k, n in enumerate(NAMES)}
    small = torch.tensor([float(row[0] != row[0]) for row in rows])
    return Instances(boxes, torch.ones(len(rows)), torch.zeros(len(rows)).long(),
                     columns={**columns, "condition/too_small": small})


def judge(**usual: float) -> Any:
    table = SimpleNamespace(names=tuple(usual), center=torch.tensor([0.0, *usual.values()]))
    return SimpleNamespace(model=SimpleNamespace(table=table))


def odds(p: float) -> float:
    return float(torch.tensor(p, dtype=torch.float64).logit())


def test_excess_over_what_is_usual_names_the_cause() -> None:
    usual = judge(**{"condition/blur": 0.01, "condition/noise": 0.2, "condition/clutter": 0.5})
    first = causes(usual, WORDS, objects((0.4, 0.6, 0.8)))[0]
    assert [c.name for c in first] == ["blur", "noise", "clutter"]
    assert first[0].phrase == "blur"
    assert first[0].excess == pytest.approx(odds(0.4) - odds(0.05), abs=1e-6)  # no less than .05 is usual
    assert first[1].excess == pytest.approx(odds(0.6) - odds(0.2), abs=1e-6)
    assert causes(usual, WORDS, objects((0.01, 0.2, 0.5))) == [[]]


def test_the_picture_comes_before_the_object_unless_that_leads_clearly() -> None:
    lead = float(torch.tensor(odds(0.6) + LEAD, dtype=torch.float64).sigmoid())
    for clutter, first in ((lead - 0.01, "noise"), (lead + 0.01, "clutter")):
        found = causes(None, WORDS, objects((0.4, 0.6, clutter)))[0]
        assert found[0].name == first
        assert {c.name: c.excess for c in found}["clutter"] == pytest.approx(odds(clutter) - odds(0.05), abs=1e-4)
    alone = causes(None, WORDS, objects((0.01, 0.1, 0.2)))[0]  # noise exceeds what is usual, but by less than `ABOVE`
    assert [c.name for c in alone] == ["clutter"]


def test_what_is_clear_is_named_of_any_object() -> None:
    values = torch.tensor([CLEAR - 0.1, CLEAR + 0.1], dtype=torch.float64)
    some, clear = (values + odds(0.05)).sigmoid().tolist()
    assert ABOVE < CLEAR
    assert clearest(None, WORDS, objects((0.01, some, 0.01))) == [""]
    assert clearest(None, WORDS, objects((0.01, clear, 0.01))) == ["noise"]
    assert clearest(None, WORDS, objects()) == []
    assert clearest(None, {}, objects((0.9, 0.9, 0.9))) == [""]


def test_the_other_objects_are_witnesses_of_the_picture_but_not_of_clutter() -> None:
    nan = float("nan")
    found = causes(None, WORDS, objects((0.9, 0.01, 0.9), (0.5, 0.01, 0.01), (nan, nan, nan)))
    excess = [{c.name: c.excess for c in row} for row in found]
    together = (odds(0.9) + odds(0.5)) / 2
    assert excess[0]["blur"] == pytest.approx((odds(0.9) + together) / 2 - odds(0.05), abs=1e-4)
    assert excess[0]["clutter"] == pytest.approx(odds(0.9) - odds(0.05), abs=1e-4)
    assert "clutter" not in excess[1]
    assert excess[2]["blur"] == pytest.approx(together - odds(0.05), abs=1e-4)


def test_nothing_to_name() -> None:
    nan = float("nan")
    assert causes(None, WORDS, objects()) == []
    assert causes(None, WORDS, objects((nan, nan, nan)), above=-torch.inf) == [[]]
    assert causes(None, WORDS, objects((0.9, 0.9, 0.9)).replace(columns={})) == [[]]
    assert causes(None, {}, objects((0.9, 0.9, 0.9))) == [[]]
