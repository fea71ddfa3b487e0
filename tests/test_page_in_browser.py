"""The page of a comparison in a browser, where there is one, as wide as a screen and as a telephone."""

import html
import json
import re
import shutil
import subprocess

import pytest
from conftest import explaining

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
# Without them a browser that has no network tries to reach its maker at each start.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Does what a reader would do with a mouse; what it finds is written to the body of the frame's page.
PROBE = """
<script>
const wide = [...document.querySelectorAll('h1, h2, p, li, dt, dd, figcaption, td, th')]
  .filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.textContent);
const boxes = [...document.querySelectorAll('.panels > figure')].map(each => each.getBoundingClientRect());
const overlaps = boxes.filter((a, i) => boxes.slice(i + 1).some(
  b => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length;
const head = document.querySelectorAll('thead th')[1], column = () =>
  [...document.querySelectorAll('tbody tr')].map(row => row.cells[1].dataset.value)
    .filter(each => each !== '').map(Number);
head.querySelector('button').click();
const up = column();
head.querySelector('button').click();
const down = column();
document.querySelectorAll('figure button')[1].click();
const large = document.querySelector('dialog img');
parent.document.body.dataset.found = JSON.stringify({
  screen: innerWidth, page: document.documentElement.scrollWidth, wide, overlaps, panels: boxes.length,
  up, down, isOpen: document.querySelector('dialog').open, largePicture: large.src.length,
  numbers: document.querySelectorAll('dialog dd').length });
</script>
"""
explain = explaining("compare-explanations.py")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium, Chrome or Edge is installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_whole_at_every_width_sorts_and_enlarges(explain, subject_folder, tmp_path, width):
    flags = ("--grid", 2, "--budget", 16, "--steps", 2, "--probed", 1)
    done = explain("--restore-file", subject_folder / "own.pt", "--input", "digits:7", *flags, own=False)
    assert done.status == 0, done.err
    page = (tmp_path / "comparison" / "comparison.html").read_text(encoding="utf-8")
    # In a frame, since a browser's window is never narrower than 500 pixels.
    probed = html.escape(page.replace("</body>", PROBE + "</body>"))
    frame = tmp_path / "frame.html"
    whole = f'<meta charset="utf-8"><iframe width="{width}" height="900" srcdoc="{probed}"></iframe>'
    frame.write_text(whole, encoding="utf-8")
    found = opened(frame, tmp_path / "profile")
    assert found["screen"] == width
    assert found["page"] <= width
    assert found["wide"] == []
    assert found["overlaps"] == 0
    assert found["panels"] > 8
    assert found["up"] == sorted(found["up"])
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["up"] != found["down"]
    assert found["isOpen"]
    assert found["largePicture"] > 100
    assert found["numbers"] > 0


def opened(page, profile):
    """What the probe found in the page."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--window-size=1400,1000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(re.search('data-found="(.*?)"', done.stdout)[1]))
