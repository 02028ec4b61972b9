"""Every block of docs/ runs as it stands, in the order of its page; every link of the prose leads somewhere."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from reliability_hooks.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>file|not run): (?P<said>[^\n]+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
KNOWN, HELD_OUT, UNKNOWN, BANK = 24, 8, 8, 6
"""Photographs: to calibrate on, to evaluate on, of raccoons, and of the detector's training."""


@dataclass(frozen=True)
class Block:
    """What stands between fences. `mark` is `file` (written as `said`), `not run` (for the reason `said`) or None."""

    kind: str
    text: str
    line: int
    mark: str | None
    said: str | None

    @property
    def runs(self) -> bool:
        return self.mark is None and self.kind in ("bash", "python")


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(m["kind"], m["text"], text.count("\n", 0, m.start("text")), m["mark"], m["said"])
        for m in BLOCK.finditer(text)
    ]
    assert text.count("```") == 2 * len(found), f"{page.name}: a fence without a language, or one that is not closed"
    return found


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    """As a user's shell and interpreter there; modules that were imported from there are forgotten."""
    before = Path.cwd()
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        os.chdir(before)
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(directory)):
                del sys.modules[name]


def run(page: Path, directory: Path) -> None:
    """Commands of ours in this process, which has imported torch already; the rest by `sh`."""
    names: dict[str, Any] = {"__name__": "__main__"}
    skip_where_missing(page)
    with inside(directory):
        for block in blocks(page):
            if block.mark == "file":
                Path(str(block.said)).write_text(block.text, encoding="utf-8")
            elif block.runs and block.kind == "python":  # lines and file as a traceback should show them
                exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
            elif block.runs:
                for line in block.text.replace("\\\n", " ").splitlines():
                    command(line)


def command(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[:1] == ["reliability-hooks"]:
        assert main(words[1:]) == 0, line
    else:
        subprocess.run(["sh", "-e", "-c", line], check=True)


def skip_where_missing(page: Path) -> None:
    """Packages that a page imports beside those that this one needs."""
    written = {Path(str(b.said)).stem for b in blocks(page) if b.mark == "file"}
    for block in blocks(page):
        if block.kind == "python" and block.mark != "not run":
            for node in ast.walk(ast.parse(block.text)):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for root in {name.partition(".")[0] for name in modules} - written:
                    if find_spec(root) is None:
                        pytest.skip(f"{root} is not installed")


@pytest.fixture(scope="session")
def world(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of."""
    pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    here = tmp_path_factory.mktemp("world")
    data = json.loads((shared / "data/coco/instances_val2017.json").read_text())
    photographs = data["images"][: KNOWN + HELD_OUT]
    (here / "images").mkdir()
    for image in photographs:
        (here / "images" / image["file_name"]).symlink_to(shared / "data/coco/val2017" / image["file_name"])
    for name, images in (("instances.json", photographs[:KNOWN]), ("test.json", photographs[KNOWN:])):
        ids = {image["id"] for image in images}
        own = [a for a in data["annotations"] if a["image_id"] in ids]
        (here / name).write_text(json.dumps({**data, "images": images, "annotations": own}))
    for part in ("images", "annotations"):
        (here / "unknown" / part).mkdir(parents=True)
        for path in sorted((shared / "data/ood/raccoon" / part).iterdir())[:UNKNOWN]:
            (here / "unknown" / part / path.name).symlink_to(path)
    (here / "train").mkdir()
    for path in sorted((shared / "data/coco/train2017").glob("*.jpg"))[:BANK]:
        (here / "train" / path.name).symlink_to(path)
    (here / "photo.jpg").symlink_to(shared / "data/coco/val2017" / photographs[-1]["file_name"])
    (here / "detector.pt").symlink_to(shared / "weights/yolo11n-seg.pt")
    return here


def links(source: Path, target: Path) -> Path:
    """`target`, with a link to each thing in `source`."""
    for path in source.iterdir():
        (target / path.name).symlink_to(path)
    return target


@pytest.fixture(scope="session")
def calibrated(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where calibrate.md was run: its `monitor` serves the other pages."""
    here = links(world, tmp_path_factory.mktemp("calibrate"))
    run(DOCS / "calibrate.md", here)
    return here


@pytest.fixture
def place(world: Path, calibrated: Path, tmp_path: Path) -> Path:
    """A folder as a reader has it who has calibrated."""
    (tmp_path / "monitor").symlink_to(calibrated / "monitor")
    return links(world, tmp_path)


def test_calibrate_writes_what_it_says(calibrated: Path) -> None:
    for name in ("monitor/CARD.md", "monitor/report.json", "evaluated/evaluation.json", "monitor-python/monitor.json"):
        assert (calibrated / name).is_file(), name


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "calibrate.md" and any(b.runs for b in blocks(p))], ids=lambda p: p.stem
)
def test_page_runs(page: Path, place: Path) -> None:
    run(page, place)


def test_tour_runs(place: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    tour = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    nbformat.validate(tour)
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "commit the notebook without outputs"
    nbclient.NotebookClient(tour, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    pictures = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_is_not_run_is_python_all_the_same(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "python":
            ast.parse(block.text)


def prose(page: Path) -> str:
    """Without what stands between fences, which links and headings are not looked for in."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        outside = re.match(r"\w+:", link)
        if not outside and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_the_check_sees_a_broken_link(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# What is promised?\n\n## `predict`\n")
    page = tmp_path / "a.md"
    page.write_text("[1](b.md#what-is-promised) [2](b.md#predict) [3](b.md#no) [4](c.md) [5](https://x.y/z#a) [6](#a)")
    assert broken_links(page) == ["b.md#no", "c.md", "#a"]
