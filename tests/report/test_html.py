from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from reliability_hooks.report import html
from reliability_hooks.report.html import parts, write_page
from reliability_hooks.report.page import DatasetFigures, Page, ReportImage, ReportInstance

from .pages import EVIL, instances, page, picture


class Elements(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def data(self) -> dict:
        return json.loads(next(t for t in self.text if t.startswith("{") and '"palette"' in t))


def found(given: Page) -> Elements:
    return Elements("".join(parts(given)))


def test_names_stay_text() -> None:
    shown = found(page())
    scripts = [a for tag, a in shown.tags if tag == "script"]
    assert [s.get("id") for s in scripts] == ["page", None, "picture-0", "picture-1", "map-0"]
    assert not [a for _, a in shown.tags if "onerror" in a or a.get("src") == "x"]
    assert EVIL in shown.text  # in the facts and in the table
    data = shown.data()
    assert data["images"][1]["name"] == EVIL
    assert data["instances"][2]["name"] == EVIL
    assert data["instances"][0]["shares"][2] == [EVIL, -0.03]


def test_it_needs_no_network_and_no_other_script_may_run() -> None:
    shown = found(page())
    links = [v for _, a in shown.tags for k, v in a.items() if k in ("src", "href")]
    assert all(v.startswith("data:") for v in links)
    policy = next(a["content"] for tag, a in shown.tags if tag == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'$", policy)


def test_unknown_is_null_and_ranks_first() -> None:
    data = found(page()).data()
    assert [row["r"] for row in data["instances"]] == [0.25, 0.95, None]
    assert "interval" not in data["instances"][2]
    assert data["instances"][2]["verdict"] == "unknown"
    assert page().images[0].least == -1
    assert ReportImage("x", b"", (1, 1)).least == 2
    assert "NaN" not in json.dumps(data)


def test_pictures_of_the_most_doubtful_images_come_first() -> None:
    sure = ReportImage("sure.jpg", picture(), (60, 80), [instances()[1]])
    doubtful = ReportImage("doubtful.jpg", picture(), (60, 80), [instances()[0]])
    shown = found(page([ReportImage("none.jpg", picture(), (60, 80)), sure, doubtful]))
    assert [a["id"] for tag, a in shown.tags if str(a.get("id")).startswith("picture-")] == [
        "picture-2", "picture-1", "picture-0",
    ]  # fmt: skip


def test_what_is_missing_is_left_out() -> None:
    bare = found(page([ReportImage("a.jpg", picture(), (60, 80), [ReportInstance("dog", 0.5, (1, 1, 9, 9))])],
                      calibration=[], promise=None, fitted=False, data=DatasetFigures()))  # fmt: skip
    (row,) = bare.data()["instances"]
    assert set(row) == {"image", "name", "score", "r", "verdict", "box"}
    assert not [a for tag, a in bare.tags if a.get("role") == "tab" or tag == "figure"]


@pytest.mark.parametrize(("given", "words"), [
    (page([]), "No image was looked at."),
    (Page("Nothing"), "There is nothing to show."),
    (page(left_out=7), "7 images with more reliable detections"),
    (page(remarks=["A <remark>"]), "A <remark>"),
])  # fmt: skip
def test_what_is_not_there_is_said(given: Page, words: str) -> None:
    assert words in " ".join(found(given).text)


def test_figures_and_tables_have_words() -> None:
    shown = found(page())
    (diagram,) = [a for tag, a in shown.tags if tag == "img"]
    assert diagram["alt"] == "It shows it."
    assert [a.get("scope") for tag, a in shown.tags if tag == "th"] == ["col", "col", "row"]


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_page(tmp_path / "new/report.html", page())
    whole = path.read_bytes()
    assert whole.endswith(b"</html>")
    monkeypatch.setattr(html, "b64encode", lambda raw: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_page(path, page())
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_names_that_no_encoding_holds(tmp_path: Path) -> None:
    odd = "a\udcff\u2028.jpg"  # how Python names a file whose bytes are no UTF-8
    path = write_page(tmp_path / "r.html", page([ReportImage(odd, picture(), (60, 80))], facts=[("Source", odd)]))
    assert found_in(path)["images"][0]["name"] == odd


def test_without_jinja_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"reliability_hooks\[report\]"):
        write_page(tmp_path / "r.html", page())
    assert not list(tmp_path.iterdir())


def test_a_box_that_is_nowhere() -> None:
    nowhere = ReportInstance("dog", 0.5, (math.nan, 1, 9, 9), 0.5)
    (row,) = found(page([ReportImage("a.jpg", picture(), (60, 80), [nowhere])])).data()["instances"]
    assert row["box"] == [None, 1, 9, 9]


def found_in(path: Path) -> dict:
    return Elements(path.read_text(encoding="utf-8")).data()
