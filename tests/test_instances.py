from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reliability_hooks import Instances


def make(n: int, seed: int = 0, **without: None) -> Instances:
    g = torch.Generator().manual_seed(seed)
    full = {
        "boxes": torch.rand(n, 4, generator=g),
        "scores": torch.rand(n, generator=g),
        "labels": torch.arange(n),
        "masks": torch.rand(n, 3, 5, generator=g) > 0.5,
        "logits": torch.randn(n, 7, generator=g),
        "features": torch.randn(n, 2, generator=g),
        "track_ids": torch.arange(n) + 100,
        "columns": {"a": torch.arange(n).float(), "b": torch.rand(n, 3, generator=g)},
        "head": "sigmoid",
        "image_size": (30, 50),
    }
    return Instances(**{**full, **without})


def same(a: Instances, b: Instances) -> bool:
    arrays = ("boxes", "scores", "labels", "masks", "logits", "features", "track_ids")
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in arrays) and all(
        torch.equal(a.columns[k], b.columns[k]) for k in a.columns.keys() | b.columns.keys()
    )


@given(n=st.integers(0, 9), data=st.data())
def test_every_kind_of_index_selects_the_same_rows_of_every_array(n: int, data: st.DataObject) -> None:
    instances = make(n)
    keep = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    rows = [i for i, k in enumerate(keep) if k]
    mask = torch.tensor(keep, dtype=torch.bool)
    for index in (mask, mask.numpy(), rows, np.array(rows, dtype=int), torch.tensor(rows, dtype=torch.int32)):
        chosen = instances[index]
        assert chosen.labels.tolist() == rows
        assert chosen.columns["a"].tolist() == rows
        assert chosen.track_ids is not None
        assert chosen.track_ids.tolist() == [r + 100 for r in rows]
        assert chosen.image_size == (30, 50)
    start, stop = sorted(data.draw(st.tuples(st.integers(-9, 9), st.integers(-9, 9))))
    assert instances[start:stop].labels.tolist() == list(range(n))[start:stop]


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_cat_of_parts_is_the_whole(sizes: list[int]) -> None:
    whole = make(sum(sizes))
    ends = np.cumsum([0, *sizes])
    parts = [whole[int(a) : int(b)] for a, b in pairwise(ends)]
    assert same(Instances.cat(parts), whole)


@given(n=st.integers(1, 6), i=st.integers(-6, 5))
def test_an_int_gives_one_row_or_an_error(n: int, i: int) -> None:
    instances = make(n)
    if -n <= i < n:
        assert instances[i].labels.tolist() == [i % n]
        assert len(instances[np.int64(i)]) == 1
    else:
        with pytest.raises(IndexError, match=f"row {i} of {n}"):
            instances[i]


def test_iteration_gives_rows() -> None:
    assert [int(row.labels) for row in make(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2)}, "scores"),
        ({"boxes": torch.zeros(3, 5)}, "xyxy"),
        ({"labels": [0, 1, 2]}, "labels must be a tensor"),
        ({"masks": torch.zeros(3, 4)}, "masks"),
        ({"head": None}, "logits need a head"),
        ({"head": "softmax+background"}, "background"),
        ({"background": 0}, "background"),
        ({"columns": {"x": torch.zeros(4)}}, "columns\\['x'\\]"),
        ({"columns": {"x": torch.zeros(3, 2, 2)}}, "columns\\['x'\\]"),
    ],
)
def test_inconsistent_fields_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(3).replace(**change)


def test_cat_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Instances.cat([])
    with pytest.raises(ValueError, match="logits is missing"):
        Instances.cat([make(2), make(2, logits=None, head=None)])
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\]"):
        Instances.cat([make(2), make(2).replace(columns={})])
    mixed = [make(1, masks=None), make(1, masks=None).replace(image_size=(9, 9))]
    assert Instances.cat(mixed).image_size is None


def test_to_changes_floats_only_and_keeps_the_original() -> None:
    instances = make(2)
    half = instances.to(torch.float16)
    assert half.boxes.dtype == half.columns["a"].dtype == torch.float16
    assert half.labels.dtype == torch.int64
    assert half.masks is not None
    assert half.masks.dtype == torch.bool
    assert instances.boxes.dtype == torch.float32
    assert instances.to("cpu").device.type == "cpu"


def test_columns_are_not_shared_with_the_caller() -> None:
    mine = {"a": torch.zeros(0)}
    instances = Instances.empty().replace(columns=mine)
    mine["b"] = torch.zeros(5)
    assert set(instances.columns) == {"a"}
    more = instances.with_columns({"c": torch.zeros(0)})
    assert set(more.columns) == {"a", "c"}
    assert set(instances.columns) == {"a"}
    with pytest.raises(KeyError, match="no column 'reliability'"):
        instances.reliability  # noqa: B018


def test_probabilities_and_background() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    base = make(1).replace(logits=logits)
    assert torch.allclose(base.probabilities(), logits.sigmoid())
    for background in (0, 1, -1):
        soft = base.replace(head="softmax+background", background=background)
        assert torch.allclose(soft.probabilities(), logits.softmax(-1))
        left = [v for i, v in enumerate([0.0, 1.0, 2.0]) if i != background % 3]
        assert soft.without_background(logits).tolist() == [left]


def test_masks_at_another_size() -> None:
    instances = make(2)
    assert torch.equal(instances.masks_at((3, 5)), instances.masks)
    doubled = instances.masks_at((6, 10))
    assert torch.equal(doubled[:, ::2, ::2], instances.masks)
    assert instances[:0].masks_at((6, 10)).shape == (0, 6, 10)
    with pytest.raises(ValueError, match="no masks"):
        make(1, masks=None).masks_at((2, 2))
