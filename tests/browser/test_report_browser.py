"""The defense card in a real browser: its script works, and no other script runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import synthetic_run
from backfire.report import build

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome on this machine"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    few = ("verified_harm", "capability_retention")
    measurements = [m for m in synthetic_run.make()[0]["measurements"] if m["metric"] in few]
    folder = tmp_path_factory.mktemp("browser")
    return build(synthetic_run.write_run(folder, {"measurements": measurements})).read_text("utf-8")


def _after(page: str, script: str, folder: Path) -> str:
    """Return the document a browser holds after loading the page and running one more script."""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout


def _without_policy(page: str) -> str:
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)


def _column(document: str, table: str) -> list[str]:
    body = re.search(rf'id="table-{table}".*?<tbody.*?>(.*?)</tbody>', document, re.DOTALL)
    assert body is not None
    rows = re.findall(r"<tr(.*?)>(.*?)</tr>", body[1], re.DOTALL)
    cells = [
        re.search(r'data-column="2"[^>]*data-sort="([^"]*)"', row)
        for head, row in rows
        if "hidden" not in head
    ]
    return [cell[1] for cell in cells if cell is not None]


def test_header_buttons_sort_down_and_up(page: str, tmp_path: Path) -> None:
    click = "document.querySelectorAll('#table-main thead th[data-column] button')[2].click();"
    unsorted = [float(v) for v in _column(page, "main")]
    once = _after(_without_policy(page), click, tmp_path)
    assert [float(v) for v in _column(once, "main")] == sorted(unsorted)
    assert unsorted != sorted(unsorted)
    assert 'aria-sort="ascending"' in once
    twice = _after(_without_policy(page), click + click, tmp_path)
    assert [float(v) for v in _column(twice, "main")] == sorted(unsorted, reverse=True)


def test_filter_keeps_rows_with_every_word(page: str, tmp_path: Path) -> None:
    script = (
        "const box = document.querySelector('#main-table .filter input'); box.value = 'SDD lora';"
        "box.dispatchEvent(new Event('input'));"
    )
    document = _after(_without_policy(page), script, tmp_path)
    assert len(_column(document, "main")) == 2  # sdd and sdd-reject, after mft-100-lora
    assert "2 of 15" in document


def test_policy_stops_every_other_script(page: str, tmp_path: Path) -> None:
    document = _after(page, "document.title = 'taken over'", tmp_path)
    assert "<title>taken over</title>" not in document
    assert 'class="filter"' in document, "our own script must still run"
