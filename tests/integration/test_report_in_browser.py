"""The report as a real browser shows it: rendered, silent, alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from kif_lightning.reporting.run_report import write_report
from tests.helpers.fake_runs import fake_run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
NOT_A_PAGE = "not an origin"
"""Who asked for what the browser itself wants, such as its updates."""


@dataclass(frozen=True)
class Seen:
    dom: str
    complaints: list[str]
    requests: list[str]
    screenshot: Path


def opened(page: Path, folder: Path, *, width: int = 1300, height: int = 2000) -> Seen:
    """Load it from the disk; no name is resolved, so nothing leaves this machine."""
    screenshot, log = folder / "page.png", folder / "net.json"
    common = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"),
        *("--enable-logging=stderr", "--v=0", f"--window-size={width},{height}"),
    ]
    shown, pictured = (
        subprocess.run(
            [*common, *what, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        for what in (["--dump-dom", f"--log-net-log={log}"], [f"--screenshot={screenshot}"])
    )
    said = [*shown.stderr.splitlines(), *pictured.stderr.splitlines()]
    return Seen(
        dom=shown.stdout,
        complaints=[line for line in said if "CONSOLE" in line],
        requests=_asked_by_pages(log),
        screenshot=screenshot,
    )


def _asked_by_pages(log: Path) -> list[str]:
    """What pages wanted from the network."""
    text = log.read_text(encoding="utf-8").rstrip()
    try:
        found = json.loads(text)
    except ValueError:  # the browser may end before the list does
        found = json.loads(text.rstrip(",") + "]}")
    events = [event.get("params", {}) for event in found["events"]]
    return [e["url"] for e in events if e.get("initiator", NOT_A_PAGE) != NOT_A_PAGE]


@pytest.mark.parametrize("width", [1300, 500])
def test_it_renders_without_a_word_or_a_request(tmp_path: Path, width: int) -> None:
    report = write_report(fake_run(tmp_path / "run", num_tasks=3))
    seen = opened(report, tmp_path, width=width)
    assert seen.complaints == []
    assert seen.requests == []
    assert "</footer>" in seen.dom
    assert seen.dom.count("<svg") >= 5, "its figures are drawn"
    with Image.open(seen.screenshot) as image:
        colours = image.convert("RGB").getcolors(image.width * image.height)
    assert colours is not None
    most = max(number for number, _ in colours)
    assert len(colours) > 100
    assert most < 0.97 * sum(number for number, _ in colours), "more than an empty page"


def test_what_others_wrote_does_nothing(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", num_tasks=2)
    hostile = "<script>document.title='run'</script><img src='http://127.0.0.1:9/seen'>"
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["protocol"]["method"] = hostile
    path.write_text(json.dumps(results))
    seen = opened(write_report(folder), tmp_path)
    assert seen.complaints == seen.requests == []
    assert "<title>Report of a run: &lt;script&gt;" in seen.dom


def test_these_tests_would_see_a_page_that_is_not_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/seen'><script>console.error('told')</script>")
    seen = opened(page, tmp_path)
    assert seen.requests == ["http://127.0.0.1:9/seen"]
    assert any("told" in line for line in seen.complaints)
