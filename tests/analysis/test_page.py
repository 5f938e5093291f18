"""The report's page in headless Chromium."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from study.analysis.crops import Tile
from study.analysis.rendering import render
from study.analysis.sections import Section
from study.analysis.sliders import make_sliders
from study.analysis.tables import Column, Entry, Table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """
--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync
--no-first-run --hide-scrollbars --window-size=1300,1600 --enable-logging=stderr --v=0
"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium command: the page's scripts were not run")
RED, BLUE = (220, 20, 40), (20, 40, 220)
# What a reader does, written down as JSON.
DRIVER = """
const seen = {};
const heads = document.querySelectorAll("#table-numbers thead tr:last-child th");
const order = () => [...document.querySelectorAll("#table-numbers tbody th")].map((cell) => cell.textContent).join(" ");
const click = (column) => { heads[column].querySelector("button").click(); return order(); };
seen.original = order();
seen.number = [click(1), heads[1].ariaSort, click(1), heads[1].ariaSort, click(1), heads[1].ariaSort];
seen.text = [click(2), click(2), click(0), heads[2].ariaSort];
seen.focusable = heads[1].querySelector("button").tabIndex;
const detail = document.querySelector("#table-numbers .detail");
const shown = () => getComputedStyle(detail).display;
seen.detail = [shown()];
detail.parentElement.focus(); seen.detail.push(shown());
dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })); seen.detail.push(shown());
const [after, before] = document.querySelectorAll(".stage img"), range = document.querySelector(".stage input");
const clip = () => getComputedStyle(before).clipPath;
seen.clip = [clip()];
range.value = 20; range.dispatchEvent(new Event("input")); seen.clip.push(clip());
const selects = document.querySelectorAll(".pick select");
seen.labels = [...selects[0].options].map((option) => option.text);
seen.chosen = [before.alt, after.alt];
selects[1].selectedIndex = 3; selects[1].dispatchEvent(new Event("change")); seen.chosen.push(after.alt);
seen.same = after.src === document.querySelectorAll(".shot img")[3].src;
seen.width = before.getBoundingClientRect().width;
const box = (name) => document.querySelector(name).getBoundingClientRect();
seen.side = box("nav").right < box("main").left;
document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
console.info("driven");
"""


def browse(page: Path, *flags: str) -> tuple[str, list[str]]:
    """What Chromium prints of a page, and its console's lines."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={page.parent / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page with a table and a slider alone: red LR and bicubic, blue outputs and HR."""
    columns = (Column("name"), Column("PSNR", "dB", ".1f"), Column("p"))
    rows = (
        ("b", Entry(30.12, detail="3 seeds"), Entry("< 0.0001", order=1e-5)),
        ("a10", 30.11, Entry("0.2", order=0.2)),
        ("a9", None, Entry("—")),
        ("c", 30.12, Entry("0.05", order=0.05)),
    )
    table = Table("numbers", "Numbers.", columns, rows)
    colours = {"LR": RED, "bicubic": RED, "hard": BLUE, "HR": BLUE}
    tiles = [Tile(name, "30 dB", np.full((16, 16, 3), colour, np.uint8)) for name, colour in colours.items()]
    sections = [Section("results", "Results", (table, *make_sliders({("Set5", "baby"): tiles})))]
    empty = {
        "title": "t",
        "question": "q",
        "answers": [],
        "counts": {},
        "problems": [],
        "declared": {},
        "codes": [],
        "changes": [],
        "command": "c",
    }
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_bytes(render("report", "html", {**empty, "sections": sections}))
    return path


def test_tables_sort_and_sliders_slide(page):
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text().replace("</body>", f"<script>{DRIVER}</script></body>"))
    dom, console = browse(driven, "--dump-dom")
    assert len(console) == 1
    assert "driven" in console[0]  # so an error would have been seen
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom)
    assert found
    seen = json.loads(unescape(found[1]))
    assert seen["original"] == "b a10 a9 c"
    # Equal numbers keep their order in both directions, and what has none comes last.
    assert seen["number"] == ["a10 b c a9", "ascending", "b c a10 a9", "descending", "b a10 a9 c", None]
    assert seen["text"] == ["b c a10 a9", "a10 c b a9", "a9 a10 b c", None]
    assert seen["focusable"] == 0
    assert seen["detail"] == ["none", "block", "none"]
    assert seen["clip"] == ["inset(0px 50% 0px 0px)", "inset(0px 80% 0px 0px)"]
    assert seen["labels"] == ["LR 30 dB", "bicubic 30 dB", "hard 30 dB", "HR 30 dB"]
    assert seen["chosen"] == ["bicubic 30 dB", "hard 30 dB", "HR 30 dB"]
    assert seen["same"]
    assert seen["width"] == 448
    assert seen["side"]


def test_without_scripts_all_pictures_stand_side_by_side(page):
    policy = '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">'
    plain, picture = page.with_name("plain.html"), page.with_name("plain.png")
    plain.write_text(page.read_text().replace("<head>", f"<head>{policy}"))
    _, console = browse(plain, f"--screenshot={picture}")
    assert len(console) == 1
    assert "Content Security Policy" in console[0]  # so the script did not run
    counts = count_colours(picture)
    assert counts[RED] == counts[BLUE] == 2 * 192 * 192


def test_the_slider_shows_both_of_its_pictures(page):
    picture = page.with_name("live.png")
    assert browse(page, f"--screenshot={picture}")[1] == []
    counts = count_colours(picture)
    half, small = 448 * 448 / 2, 2 * 104 * 104  # the stage, and the pictures beside it
    assert counts[RED] == pytest.approx(half + small, rel=0.02)
    assert counts[BLUE] == pytest.approx(half + small, rel=0.02)


def count_colours(path: Path) -> Counter:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return Counter({colour: int((pixels == colour).all(axis=1).sum()) for colour in (RED, BLUE)})


def test_no_name_runs_as_a_script(hostile, tmp_path):
    copy = tmp_path / "report.html"
    copy.write_bytes(hostile["report.html"].read_bytes())
    dom, console = browse(copy, "--dump-dom")
    assert console == []
    assert "<title>groups</title>" in dom  # every hostile script would change it
    assert '<figure class="slider live"' in dom
    assert len(re.findall(r"<script[ >]", dom)) == 1
    assert "onerror" not in re.sub(r">[^<]*<|\"[^\"]*\"", "", dom)
