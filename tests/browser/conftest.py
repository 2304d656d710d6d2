"""One browser for all pages. Skipped, with the reason, where there is no Chromium; where CI=true it fails instead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

AXE_FILES = (os.environ.get("UNBOXED_AXE", ""), str(Path(__file__).parent / "node_modules/axe-core/axe.min.js"))

if TYPE_CHECKING:
    from playwright.sync_api import Browser

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


def missing(why: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI the page must be seen in a browser: {why}")
    pytest.skip(why)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        missing("there is no Chromium")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which checks a page for people who use a keyboard or a screen reader."""
    found = next((Path(name) for name in AXE_FILES if name and Path(name).is_file()), None)
    if found is None:
        pytest.skip("axe-core is not there: npm install --prefix tests/browser --no-save axe-core, or set UNBOXED_AXE")
    return found.read_text(encoding="utf-8")
