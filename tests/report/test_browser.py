"""The page in a headless Chromium, at the width of a phone and of a desk, light and dark."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from ratfast.report.drawing import PALETTE
from ratfast.report.writing import read_sections, write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

# In a frame, since the browser's own window has a least width; all lies in files, which may read each other here.
FRAME = """<!DOCTYPE html><body style="margin:0"><iframe id="page" src="report.html" style="border:0;height:3000px;
width:{width}px"></iframe><pre id="found"></pre><script>
addEventListener("load", () => {{
  const page = document.getElementById("page").contentDocument;
  page.querySelectorAll("details").forEach((element) => element.open = true);
  const root = page.documentElement;
  const small = [...page.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().width < 250);
  document.getElementById("found").textContent = [root.scrollWidth, root.clientWidth, small.length,
    page.querySelectorAll("svg").length, getComputedStyle(page.body).backgroundColor].join("|");
}});
</script></body>"""


@pytest.fixture(scope="module")
def page(analysed, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(read_sections(analysed), analysed, path)
    return path


def browse(url: Path, profile: Path, *options: str, dark: bool = False) -> subprocess.CompletedProcess:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--hide-scrollbars", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", *options, url.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_scrolls_sideways_or_is_too_small(page, tmp_path, width, dark):
    frame = page.with_name(f"frame{width}{dark}.html")
    frame.write_text(FRAME.format(width=width))
    done = browse(frame, tmp_path, "--window-size=1300,3000", "--dump-dom", dark=dark)
    found = re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)
    assert found, done.stderr
    scroll, client, small, drawings, background = found[1].split("|")
    assert int(scroll) <= int(client) == width
    assert int(drawings) > 10 and int(small) == 0
    paper = PALETTE["paper"][dark].lstrip("#")
    assert background == f"rgb({', '.join(str(int(paper[i : i + 2], 16)) for i in (0, 2, 4))})"


def test_no_errors_on_the_console_and_no_requests(page, tmp_path):
    log = tmp_path / "net.json"
    done = browse(page, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}")
    assert "CONSOLE" not in done.stderr
    # The browser asks for things of its own; of what the page names nothing may be among them.
    asked = set(re.findall(r'"url":"(https?://[^"/]+)', log.read_text(encoding="utf-8", errors="replace")))
    assert not any(host in page.read_text(encoding="utf-8") for host in asked - {"http://www.w3.org"})


def test_the_console_of_a_page_with_a_request_is_not_silent(page, tmp_path):
    """What the test before looks for would be there."""
    bad = page.with_name("bad.html")
    bad.write_text(page.read_text().replace("</body>", '<img src="https://example.invalid/a.png"></body>'))
    done = browse(bad, tmp_path, "--dump-dom")
    assert "CONSOLE" in done.stderr and "Content Security Policy" in done.stderr


def test_something_is_drawn(page, tmp_path):
    shots = {}
    for dark in (False, True):
        shot = tmp_path / f"{dark}.png"
        browse(page, tmp_path / f"profile{dark}", "--window-size=600,900", f"--screenshot={shot}", dark=dark)
        with Image.open(shot) as image:
            shots[dark] = image.convert("L").resize((100, 150))
    light, night = (list(shots[dark].tobytes()) for dark in (False, True))
    assert sum(light) / len(light) > 200 and sum(night) / len(night) < 60
    assert len(set(light)) > 20 and len(set(night)) > 20
