"""The floors of the house: an arrow never runs up, frameworks stay in their rooms, importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import reliability_hooks
from reliability_hooks.hosts.base import HOSTS

ROOT = Path(reliability_hooks.__file__).parent
FLOORS = [
    {"instances", "frame", "images", "config", "crops", "clip"},
    {"hosts", "export", "reliability", "evaluation", "report"},
    {"signals", "explain"},
    {"monitor", "reasons"},
    {"hook"},
    {"cli", "__main__", "detectron2"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FRAMEWORKS = {"ultralytics", "detectron2", "transformers", "segment_anything", "sam2", "sahi"}


def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"
    }


def imports(name: str, path: Path) -> list[tuple[str, bool]]:
    """(absolute dotted name, whether it runs when the module is imported)."""
    package = ["reliability_hooks", *name.split(".")]
    package = package[:-1]  # for m and for p/__init__ alike: the package that relative imports start from
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - (child.level - 1)] if child.level else []
                target = ".".join([*base, *([child.module] if child.module else [])])
                found.extend((f"{target}.{alias.name}" if not child.module else target, at_import)
                             for alias in child.names)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            visit(child, at_import and not inside and not typing_only)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def test_every_module_has_a_floor() -> None:
    assert {name.partition(".")[0] for name in modules()} <= FLOOR.keys()


def test_no_arrow_runs_up() -> None:
    up = []
    for name, path in modules().items():
        for target, _ in imports(name, path):
            parts = target.split(".")
            ours = parts[0] == "reliability_hooks" and len(parts) > 1 and parts[1] in FLOOR
            if ours and FLOOR[parts[1]] > FLOOR[name.partition(".")[0]]:
                up.append(f"{name} -> {target}")
    assert not up


def test_frameworks_stay_in_hosts_and_open_clip_in_clip() -> None:
    stray = []
    # a module that is itself imported only inside functions may import its framework at its top
    imported_at_import = {
        target.removeprefix("reliability_hooks.")
        for name, path in modules().items()
        for target, at_import in imports(name, path)
        if at_import
    } | {f"hosts.{entry.partition(':')[0]}" for entry in HOSTS.values()}
    for name, path in modules().items():
        for target, at_import in imports(name, path):
            root = target.partition(".")[0]
            if root in FRAMEWORKS and (not name.startswith("hosts.") or (at_import and name in imported_at_import)):
                stray.append(f"{name} -> {target}")
            if root in ("open_clip", "timm") and not name.startswith("clip."):
                stray.append(f"{name} -> {target}")
            if target.startswith("torchvision.models") and not name.startswith("hosts."):
                stray.append(f"{name} -> {target}")
    assert not stray


def test_the_check_sees_an_arrow_that_runs_up(tmp_path: Path) -> None:
    bad = tmp_path / "rows.py"
    bad.write_text("from ..monitor import Monitor\nimport ultralytics\ndef f():\n    import sklearn\n")
    assert imports("hosts.rows", bad) == [
        ("reliability_hooks.monitor", True), ("ultralytics", True), ("sklearn", False),
    ]


def test_importing_is_cheap_and_loads_no_framework() -> None:
    code = """
import sys
import reliability_hooks
heavy = {"torchvision", "sklearn", "ultralytics", "cv2", "matplotlib", "pycocotools"}
assert not (heavy | {"torch", "numpy"}) & set(sys.modules), (heavy | {"torch", "numpy"}) & set(sys.modules)
from reliability_hooks import attach, Monitor, Instances
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
