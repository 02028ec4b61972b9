"""A page as one HTML file that needs nothing else: no network, no server; open it and review."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from .. import __version__
from ..export.optional import require
from .page import Page
from .page_data import as_data

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("data.js", "draw.js", "queue.js", "stage.js", "detail.js", "main.js")
"""In this order, as one script."""
EXTRA = "report"
VERDICTS = ("accept", "unknown", "reject")


def check_installed() -> None:
    """Raise ImportError, which names the extra, where what a report needs is not installed."""
    for package in ("jinja2", "matplotlib"):
        require(package, EXTRA)


def write_page(path: str | Path, page: Page) -> Path:
    """Write all of it or nothing: what was there before stays until the new file is whole.

    Every name is text: Jinja escapes it in the markup, its `tojson` in the data, and the script only ever sets text.

    Args:
        path: Of the file; its folder is made.
        page: What it shows. Instances are listed least reliable first, unknown ones before all others.

    Raises:
        ImportError: Jinja2 is not installed; the message names the extra.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(parts(page))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)  # gone already where all went well
    return path


def parts(page: Page) -> Iterator[str]:
    """The text of the file, piece by piece: pictures make it large."""
    jinja = require("jinja2", EXTRA)
    env = jinja.Environment(
        loader=jinja.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    safe = require("markupsafe", EXTRA).Markup
    images = page.images or ()
    found = [i for image in images for i in image.instances]
    yield from env.get_template("report.html").generate(
        page=page,
        version=__version__,
        style=safe((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=safe(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        data=as_data(page),
        base64=lambda raw: b64encode(raw).decode(),
        by_doubt=sorted(range(len(images)), key=lambda k: images[k].least),
        maps=[m for i in found for m in i.maps],
        detections=len(found),
        verdicts={name: sum(i.verdict == name for i in found) for name in VERDICTS},
    )
