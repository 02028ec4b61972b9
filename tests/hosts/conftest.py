"""Prints the conformance table: checks x hosts."""

from __future__ import annotations

import re
from typing import Any

import torch

torch.set_num_threads(1)  # tiny inputs: a second thread costs more than it gives, above all on a busy machine

MARKS = {"passed": "ok", "failed": "FAIL", "error": "ERROR", "skipped": "skip", "xfailed": "xfail"}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    table: dict[str, dict[str, str]] = {}
    hosts: list[str] = []
    for outcome, mark in MARKS.items():
        for report in terminalreporter.stats.get(outcome, []):
            found = re.search(r"test_conformance\.py::test_(\w+)\[([^\]]+)\]", getattr(report, "nodeid", ""))
            if found:
                check, host = found.groups()
                host, _, variant = host.partition("-")
                check += f"[{variant}]" if variant else ""
                table.setdefault(check, {})[host] = mark
                hosts += [] if host in hosts else [host]
    if not table:
        return
    hosts.sort()
    left = max(len(check) for check in table)
    terminalreporter.section("host conformance")
    # The framework above, the model below
    widths = [max(len(part) for part in (*host.partition("/")[::2], "ERROR")) for host in hosts]
    for part in (0, 2):
        names = (host.partition("/")[part] for host in hosts)
        header = "  ".join(n.ljust(w) for n, w in zip(names, widths, strict=True))
        terminalreporter.write_line(f"{'':{left}}  {header}")
    for check in sorted(table):
        row = (table[check].get(host, "").ljust(w) for host, w in zip(hosts, widths, strict=True))
        terminalreporter.write_line(f"{check:{left}}  {'  '.join(row)}")
