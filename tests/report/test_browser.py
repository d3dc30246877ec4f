"""The page in a real browser: it sorts, opens, fits a phone, and breaks nothing. Skipped without Chromium."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detbench.report.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

WATCH = "<script>window.problems = []; window.onerror = (message) => window.problems.push(message);</script>"

VISIT = """
<script>
const table = document.querySelector(".table table");
const [first, second] = [...table.tHead.rows[0].cells].map((head) => head.querySelector("button"));
const shown = (column) => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value);
const seen = { width: innerWidth, content: document.documentElement.scrollWidth };
seen.before = shown(0);
second.click();
seen.descending = shown(1);
seen.sort = second.parentElement.getAttribute("aria-sort");
second.click();
seen.ascending = shown(1);
first.click();
seen.after = shown(0);
const row = document.querySelector(".rows details");
const hidden = row.querySelector("caption");
seen.closed = hidden.checkVisibility();
row.querySelector("summary").click();
seen.opened = hidden.checkVisibility();
const dots = [...document.querySelectorAll("td .seeds")].map((line) => {
  const { left, right } = line.getBoundingClientRect();
  const places = [...line.children].map((dot) => (dot.getBoundingClientRect().left + 3 - left) / (right - left));
  return [line.getAttribute("aria-label"), places];
});
seen.dots = dots;
seen.background = getComputedStyle(document.body).backgroundColor;
seen.problems = window.problems;
const answer = Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) });
top.document.body.append(answer);
</script>
"""

Visit = Callable[..., dict[str, Any]]


@pytest.fixture
def visit(collect, special, tmp_path: Path) -> Visit:
    """Opens a page of three seeds from a file and says what a visitor saw.

    It stands in a frame, which can be as narrow as a phone; a window without a screen is 500 pixels wide at least.
    """

    def one(*flags: str, width: int = 1280) -> dict[str, Any]:
        text = page([collect("date/table5", 3), special])
        path = tmp_path / "index.html"
        text = text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{VISIT}</body>", 1)
        frame = f'<iframe width="{width}" height="900" frameborder="0" srcdoc="{html.escape(text)}"></iframe>'
        path.write_text(f"<!doctype html><body>{frame}</body>", encoding="utf-8")
        done = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
             f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", *flags, "--dump-dom",
             path.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr
        found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found
        seen: dict[str, Any] = json.loads(found[1])
        assert seen["problems"] == []
        return seen

    return one


def test_columns_sort_rows_open_and_the_paper_s_order_comes_back(visit: Visit):
    seen = visit()
    numbers = [float(number) for number in seen["descending"]]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) > 1
    assert seen["sort"] == "descending"
    assert [float(number) for number in seen["ascending"]] == sorted(numbers)
    assert seen["after"] == seen["before"]
    assert (seen["closed"], seen["opened"]) == (False, True)


def test_each_seed_is_a_dot_that_lies_within_its_cell_in_the_order_of_the_numbers(visit: Visit):
    dots = visit(width=390)["dots"]
    assert len(dots) > 30
    for label, places in dots:
        numbers = [float(number) for number in re.findall(r": (\d+\.\d)", label)]
        assert len(numbers) == len(places) >= 2
        assert all(-0.01 <= place <= 1.01 for place in places)
        by_place = [number for _, number in sorted(zip(places, numbers, strict=True))]
        assert by_place == sorted(numbers)


def test_the_page_is_no_wider_than_a_narrow_screen(visit: Visit):
    seen = visit(width=360)
    assert seen["width"] == 360
    assert seen["content"] <= seen["width"]


def test_the_page_is_dark_where_dark_is_preferred(visit: Visit):
    def lightness(seen: dict[str, Any]) -> int:
        return sum(int(part) for part in re.findall(r"\d+", seen["background"])[:3])

    assert lightness(visit("--blink-settings=preferredColorScheme=0")) < 150
    assert lightness(visit("--blink-settings=preferredColorScheme=1")) > 600
