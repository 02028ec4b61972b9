"""Finding a host, hooks that cannot do harm, and what identifies a model."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import nn

from reliability_hooks.hosts.base import (
    HOSTS,
    Hook,
    Host,
    ListEntry,
    device_of,
    dropouts,
    dropping,
    find_host,
    host_class,
    inert,
    load,
)


class Toy(Host):
    name = "toy"

    def __init__(self, model: nn.Module, names: dict[int, str]) -> None:
        super().__init__(model)
        self.names = names

    def class_names(self) -> dict[int, str]:
        return self.names

    def module(self) -> nn.Module:
        module: nn.Module = self.model
        return module


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Faulty:
    """Picklable, unlike a closure."""

    def __call__(self, *args: Any) -> None:
        raise ValueError("inside the hook")


def test_unknown_models_and_hosts() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn.*ultralytics, torchvision"):
        find_host(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"no host for builtins\.int"):
        find_host(3)
    with pytest.raises(ValueError, match=r"unknown host 'keras'.*torchvision"):
        host_class("keras")


@pytest.mark.parametrize("name", HOSTS)
def test_registered_hosts_exist(name: str) -> None:
    pytest.importorskip(name)
    assert host_class(name).name == name


@pytest.mark.parametrize(("spec", "host", "message"), [
    ("model.onnx", None, "HOST:model.onnx"),
    ("keras:model", None, "cannot tell the framework"),
    ("model.pt", "keras", "unknown host 'keras'"),
    ("torchvision:nonsense", None, "unknown architecture 'nonsense'"),
])
def test_load_errors(spec: str, host: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(spec, host)


def test_hook_reports_a_fault() -> None:
    faults: list[Exception] = []
    hook = Hook(Faulty(), faults.append)
    model = toy()
    handle = model.register_forward_hook(hook)
    assert model(torch.zeros(1, 3, 8, 8)) is not None
    assert [str(f) for f in faults] == ["inside the hook"]
    handle.remove()


def test_hook_lets_results_through() -> None:
    assert Hook(lambda x: x + 1, pytest.fail)(1) == 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])
def test_copies_of_a_hooked_model_are_inert(duplicate: Any) -> None:
    model, faults = toy(), []
    model.register_forward_hook(Hook(Faulty(), faults.append))
    twin = duplicate(model)
    assert list(twin._forward_hooks.values()) == [inert]
    twin(torch.zeros(1, 3, 8, 8))
    assert faults == []
    model(torch.zeros(1, 3, 8, 8))
    assert len(faults) == 1


def test_list_entry() -> None:
    entries: list[Any] = [[]]
    mine: list[Any] = []  # equal to the first entry, but another
    entry = ListEntry(entries, mine)
    assert entries[1] is mine
    entry.remove()
    entry.remove()
    assert len(entries) == 1
    assert entries[0] is not mine
    first = ListEntry(entries, mine, first=True)
    assert entries[0] is mine
    first.remove()
    assert len(entries) == 1


def test_fingerprint_tells_models_apart() -> None:
    names = {0: "cat", 1: "dog"}
    model = toy()
    reference = Toy(model, names).fingerprint()
    assert Toy(copy.deepcopy(model), dict(reversed(names.items()))).fingerprint() == reference
    assert Toy(copy.deepcopy(model).half(), names).fingerprint() == reference

    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[0].weight[0, 0, 0, 0] += 0.01
    differing = {
        "weights": Toy(changed, names).fingerprint(),
        "classes": Toy(model, {0: "cat", 1: "cow"}).fingerprint(),
        "architecture": Toy(nn.ModuleList(model.children()), names).fingerprint(),
    }
    for part, other in differing.items():
        assert [key for key in reference if other[key] != reference[key]] == [part]


def test_device_of() -> None:
    assert device_of(toy()) == torch.device("cpu")
    assert device_of(nn.ReLU()) == torch.device("cpu")


@pytest.mark.parametrize("fails", [False, True])
def test_dropping_puts_every_flag_back(fails: bool) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout2d(0.1), nn.Dropout(0.0)))
    model.eval()
    model[2][0].train()  # as somebody who keeps dropout on
    before = [m.training for m in model.modules()]
    assert dropouts(model) == [model[0], model[2][0]]
    try:
        with dropping(model):
            assert [m for m in model.modules() if m.training] == [model[0], model[2][0]]
            if fails:
                raise ArithmeticError
    except ArithmeticError:
        assert fails
    assert [m.training for m in model.modules()] == before


def test_dropping_in_two_threads() -> None:
    """The second must not take the first one's flags for the model's own."""
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    entered, waiting = threading.Event(), threading.Event()

    def second() -> None:
        waiting.set()
        with dropping(model):
            entered.set()

    with dropping(model):
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait(5)
        assert not entered.wait(0.1)
    thread.join(5)
    assert entered.is_set()
    assert not model[0].training
