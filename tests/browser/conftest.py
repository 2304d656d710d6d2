"""One browser for all pages. Skipped, with the reason, where there is no Chromium; where CI=true it fails instead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import torch
from torch import nn

from quick_reports import make_reports_quick
from unboxed import Box, Pixels
from unboxed.report import report

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


LONG = tuple(f"a class with the long name number {k} <b>" for k in range(14))


@pytest.fixture(scope="session")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a small model with many classes of long names, on noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, len(LONG))).eval()
    box = Box(model, Pixels((1, 8, 8)), classes=LONG)
    examples = (torch.rand(60, 1, 8, 8), torch.arange(60) % len(LONG))
    with pytest.MonkeyPatch.context() as patch:
        make_reports_quick(patch)
        return report(box, examples, tmp_path_factory.mktemp("page"), judge=box, training=examples, quiet=True).path


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which checks a page for people who use a keyboard or a screen reader."""
    found = next((Path(name) for name in AXE_FILES if name and Path(name).is_file()), None)
    if found is None:
        pytest.skip("axe-core is not there: npm install --prefix tests/browser --no-save axe-core, or set UNBOXED_AXE")
    return found.read_text(encoding="utf-8")
