"""The table of hosts is the README's, and versions that nobody tried are named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from reliability_hooks.hosts import info
from reliability_hooks.hosts.base import HOSTS, host_class

README = Path(__file__).parents[2] / "README.md"


def test_readme_has_the_table() -> None:
    assert info.table() in README.read_text(encoding="utf-8"), "python -m reliability_hooks.hosts.info prints it"


@pytest.mark.parametrize("name", HOSTS)
def test_every_host_is_in_it(name: str) -> None:
    assert host_class(name).info.tested
    assert f"| `{name}` |" in info.table()


def test_untested_version_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(info, "version", lambda name: "9.1")
    info.warn_untested.cache_clear()
    with caplog.at_level(logging.WARNING, "reliability_hooks"):
        for _ in range(2):
            info.warn_untested("framework>=8.4,<8.5")
        info.warn_untested("framework>=9")
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "framework 9.1 is outside of the versions that the hooks are tested with (<8.5,>=8.4)"
    ]
    info.warn_untested.cache_clear()


def test_no_framework_no_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reliability_hooks"):
        info.warn_untested("no-such-framework-anywhere>=1")
    assert not caplog.records
