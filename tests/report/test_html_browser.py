"""The page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

from reliability_hooks.report.html import write_page  # noqa: E402

from .pages import EVIL, page  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver is installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,860"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    chromium.get("about:blank")
    chromium.get(write_page(tmp_path / "report.html", page()).as_uri())
    yield chromium
    assert [line["message"] for line in chromium.get_log("browser")] == []


def text(browser: Any, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def rows(browser: Any) -> list[str]:
    return [e.text.split("\n")[0] for e in browser.find_elements(By.CSS_SELECTOR, "#list li")]


def press(browser: Any, keys: str) -> None:
    browser.find_element(By.TAG_NAME, "body").send_keys(keys)


def test_the_queue_names_and_the_first_object(browser: Any) -> None:
    assert rows(browser) == [EVIL, "dog", "cat"]  # unknown before all else
    assert text(browser, "#detail h2") == EVIL
    assert "do not take this for trust" in text(browser, "#detail")
    assert EVIL in text(browser, ".facts")
    assert browser.execute_script("return window.hacked") is None
    assert "3 objects" in text(browser, "#count")


def test_filters_and_order(browser: Any) -> None:
    Select(browser.find_element(By.ID, "class")).select_by_value("dog")
    assert rows(browser) == ["dog"]
    assert text(browser, "#detail h2") == "dog"
    browser.find_element(By.ID, "reset").click()
    Select(browser.find_element(By.ID, "sort")).select_by_value("-r")
    assert rows(browser) == ["cat", "dog", EVIL]
    Select(browser.find_element(By.ID, "condition")).select_by_value("blurred")
    assert rows(browser) == ["dog"]
    browser.find_element(By.ID, "reset").click()
    browser.find_element(By.CSS_SELECTOR, "[data-verdict=accept]").click()
    assert rows(browser) == ["cat"]
    browser.find_element(By.ID, "reset").click()
    search = browser.find_element(By.ID, "search")
    search.send_keys("zz")
    WebDriverWait(browser, 5).until(lambda b: "No object passes" in text(b, "#count"))
    assert rows(browser) == []
    assert "No object is chosen" in text(browser, "#detail")


def test_what_is_said_of_an_object(browser: Any) -> None:
    mark = browser.find_element(By.CSS_SELECTOR, "#svg .mark.reject")
    assert mark.get_attribute("aria-label") == "dog, reliability 0.25, verdict reject, blurred"
    mark.find_element(By.CSS_SELECTOR, ".box").click()
    said = text(browser, "#detail")
    for words in ("dog", "0.25", "90 % interval 0.20", "reject", "blurred", "+0.05", "0.04", EVIL,
                  "Taken for an unknown object", "Sharpened, it has .4."):  # fmt: skip
        assert words in said
    marker = browser.find_element(By.CSS_SELECTOR, ".histogram").get_attribute("aria-label")
    assert "75 %" in marker  # 3 on an axis from 0 to 4
    assert text(browser, "#list [aria-selected=true] b") == "dog"
    button = browser.find_element(By.CSS_SELECTOR, "[data-map]")
    button.click()
    assert "where it looked" in text(browser, "#detail")
    layer = browser.find_element(By.ID, "layer")
    WebDriverWait(browser, 5).until(lambda b: layer.get_attribute("href"))
    button.click()
    assert layer.get_attribute("href") is None


def test_keys(browser: Any) -> None:
    press(browser, "j")
    assert text(browser, "#detail h2") == "dog"
    assert text(browser, "#place") == "2 of 3"
    press(browser, "k")
    assert text(browser, "#detail h2") == EVIL
    before = browser.find_element(By.ID, "svg").get_dom_attribute("viewBox")
    press(browser, "z")
    assert browser.find_element(By.ID, "svg").get_dom_attribute("viewBox") != before
    press(browser, Keys.ARROW_RIGHT)
    assert "Nothing was detected" in text(browser, "#detail")
    assert EVIL in text(browser, "#image-name")
    press(browser, Keys.ARROW_LEFT)
    browser.find_element(By.CSS_SELECTOR, "#svg .mark.known").send_keys(Keys.ENTER)
    assert text(browser, "#detail h2") == "cat"
    browser.find_element(By.ID, "list").send_keys(Keys.ARROW_UP)
    assert text(browser, "#detail h2") == "dog"
    press(browser, "?")
    assert browser.find_element(By.ID, "help").is_displayed()


def test_tabs_pictures_and_a_narrow_window(browser: Any) -> None:
    picture = browser.find_element(By.CSS_SELECTOR, "#svg image")
    WebDriverWait(browser, 5).until(lambda b: (picture.get_attribute("href") or "").startswith("blob:"))
    browser.find_element(By.ID, "tab-data").click()
    assert "It shows it." in text(browser, "#data figcaption")
    assert EVIL in text(browser, "#data table")
    browser.find_element(By.ID, "tab-review").click()
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    for tab in ("tab-data", "tab-review"):
        browser.find_element(By.ID, tab).click()
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_monitor_and_no_detection(chromium: Any, tmp_path: Path) -> None:
    shown = page()
    chromium.get(write_page(tmp_path / "none.html", page([shown.images[1]], fitted=False, promise=None)).as_uri())
    assert "Nothing was detected on these images" in text(chromium, "#count")
    assert "Nothing was detected on this image" in text(chromium, "#detail")
    chromium.get(write_page(tmp_path / "nothing.html", page([])).as_uri())
    assert "No image was looked at" in text(chromium, "#review")
    assert [line["message"] for line in chromium.get_log("browser")] == []
