"""What a large report costs: seconds to make it, its size, and how it feels in Chromium.

A page of 1,000 photographs (val2017, repeated) with 2,000 objects that have boxes, masks, reasons and a place in a
histogram. Chromium (Debian: chromium, chromium-driver; `pip install selenium`) is told to open it from disk: `usable`
is the time from the start of the navigation until the queue, the first object and every control are there, `pictured`
until its photograph is drawn as well. The others are the longest of several filters and orders, and the mean step to
the next object, each until the layout is done.

    python tools/bench/report.py --json report.json
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, arguments, finish, machine, show

from reliability_hooks.images import find_images, read_image
from reliability_hooks.instances import Instances
from reliability_hooks.report.html import write_page
from reliability_hooks.report.page import Histogram, Page, ReportImage, ReportInstance, Strangeness
from reliability_hooks.report.pictures import jpeg, outlines

WORDS = ("the detector's score", "blurred", "raw boxes scatter", "small", "no class is convincing", "at the top")
CLASSES = ("person", "dog", "car", "knife", "bottle", "chair", "bird", "boat")
CHANGES = {"sort": ("-r", "ood", "gap", "name", "image", "r"), "class": ("dog", ""), "from": ("0.5", ""),
           "search": ("00", "")}  # fmt: skip
TIMED = """
const [id, value] = arguments, element = document.getElementById(id), start = performance.now();
element.value = value; element.dispatchEvent(new Event(id === "search" ? "input" : "change"));
if (id === "search") return null;
document.body.offsetHeight;
return performance.now() - start;
"""
STEPS = """
const start = performance.now();
for (let k = 0; k < 50; k++) { document.getElementById("next").click(); document.body.offsetHeight; }
return (performance.now() - start) / 50;
"""


def main() -> None:
    args = arguments(__doc__, images={"type": int, "default": 1000}, per_image={"type": int, "default": 2})
    count = 100 if args.quick else args.images
    paths = find_images(SHARED / "data/coco/val2017")
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    images = [image(paths[k % len(paths)], k, args.per_image, rng) for k in range(count)]
    gathered = time.perf_counter() - start
    cells = [Histogram("all", np.linspace(0, 5, 25).tolist(), np.linspace(9, 1, 24).tolist(), 60)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = write_page(Path(folder) / "report.html", Page("A large report", images=images, calibration=cells))
        written = time.perf_counter() - start
        figures = {"gather_s": gathered, "write_s": written, "megabytes": path.stat().st_size / 1e6, **opened(path)}
    table = [{"figure": name, "value": value} for name, value in figures.items()]
    show(f"{count} images, {count * args.per_image} objects", ["figure", "value"], [list(r.values()) for r in table])
    protocol = {**machine(), "images": count, "objects": count * args.per_image, "what": __doc__}
    finish(args, protocol, table, figures)


def image(path: Path, k: int, n: int, rng: np.random.Generator) -> ReportImage:
    """A photograph with objects at random places; reading it is part of the cost, as in a command."""
    pixels = read_image(path)
    height, width = pixels.shape[:2]
    corner, side = rng.uniform(0, 0.6, (n, 2)), rng.uniform(0.05, 0.4, (n, 2))
    boxes = np.concatenate([corner, corner + side], 1) * [width, height, width, height]
    y, x = np.mgrid[:160, :160] / 160
    middle, half = (corner + side / 2)[..., None, None], (side / 2)[..., None, None]
    masks = ((x - middle[:, 0]) / half[:, 0]) ** 2 + ((y - middle[:, 1]) / half[:, 1]) ** 2 < 1
    found = Instances(torch.from_numpy(boxes), torch.zeros(n), torch.zeros(n, dtype=torch.int64),
                      masks=torch.from_numpy(masks), image_size=(height, width))  # fmt: skip
    rows = []
    for box, path_, r in zip(boxes.tolist(), outlines(found), rng.beta(0.7, 0.7, n).tolist(), strict=True):
        shares = [(words, float(v)) for words, v in zip(WORDS, rng.normal(0, 0.08, len(WORDS)), strict=True)]
        rows.append(ReportInstance(
            str(rng.choice(CLASSES)), float(rng.uniform(0.1, 1)), tuple(box), r, (max(r - 0.05, 0), min(r + 0.05, 1)),
            "accept" if r > 0.9 else "reject" if r < 0.1 else "unknown", r, str(rng.choice(["", "blurred", "dark"])),
            shares, path_, Strangeness(float(rng.gamma(2)), float(rng.uniform()), False, 0),
        ))  # fmt: skip
    return ReportImage(f"{k:05d}-{path.name}", jpeg(pixels), (height, width), rows)


def opened(path: Path) -> dict[str, float]:
    """Seconds and milliseconds in Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    options.page_load_strategy = "none"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,860"):
        options.add_argument(flag)
    browser: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(path.as_uri())
        ready = waited(browser, "return document.documentElement.dataset.ready ?? null")
        pictured = waited(browser, "return document.querySelector('#svg image')?.getAttribute('href') ? "
                                   "performance.now() : null")  # fmt: skip
        loaded = waited(browser, "return document.readyState === 'complete' ? performance.now() : null")
        changes = [browser.execute_script(TIMED, id_, value) for id_, values in CHANGES.items() for value in values]
        time.sleep(1)
        return {
            "usable_s": ready / 1000, "pictured_s": pictured / 1000, "loaded_s": loaded / 1000,
            "change_ms": max(v for v in changes if v is not None), "step_ms": browser.execute_script(STEPS),
        }  # fmt: skip
    finally:
        browser.quit()


def waited(browser: Any, script: str, seconds: float = 60) -> float:
    """The number that a script gives once it gives one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (value := browser.execute_script(script)) is not None:
            return float(value)
        time.sleep(0.02)
    raise TimeoutError(f"nothing came of {script!r} in {seconds} s")


if __name__ == "__main__":
    main()
