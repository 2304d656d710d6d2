"""One browser for all pages. Skipped, with the reason, where there is no Chromium; where CI=true it fails instead."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from torch import nn

from quick_reports import make_reports_quick
from unboxed import Box, Pixels
from unboxed.report import report

AXE_FILES = (os.environ.get("UNBOXED_AXE", ""), str(Path(__file__).parent / "node_modules/axe-core/axe.min.js"))

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUIET = ("--no-sandbox", "--disable-gpu", "--in-process-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         "--disable-features=SpareRendererForSitePerProcess,IsolateOrigins,site-per-process")  # fmt: skip


class Reused:
    """A browser whose closed pages are opened again, blank: of a page, its process takes most of the time."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._closed: defaultdict[str, list[Page]] = defaultdict(list)

    def new_page(self, **settings: Any) -> Page:
        closed = self._closed[repr(sorted(settings.items()))]
        page = closed.pop() if closed else self._browser.new_page(**settings)

        def close() -> None:
            page.evaluate("try { localStorage.clear() } catch { /* none on a page that is blank */ }")
            page.goto("about:blank")
            scheme, motion = settings.get("color_scheme", "light"), settings.get("reduced_motion", "no-preference")
            page.emulate_media(media="null", color_scheme=scheme, reduced_motion=motion)
            page.mouse.move(0, 0)
            closed.append(page)

        page.close = close  # type: ignore[method-assign, assignment]
        return page

    def new_context(self, **settings: Any) -> SimpleNamespace:
        """A context of one page."""
        page = self.new_page(**settings)
        return SimpleNamespace(new_page=lambda: page, close=page.close)


def missing(why: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI the page must be seen in a browser: {why}")
    pytest.skip(why)


@pytest.fixture(scope="session")
def browser() -> Iterator[Reused]:
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
        yield Reused(browser)
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


GRAVE = ("serious", "critical")


@pytest.fixture(scope="session")
def grave_findings(axe: str) -> Callable[..., list[tuple[str, str, str]]]:
    """(rule, impact, the first element) of what axe-core calls serious or critical on a page, or within an element."""

    def find(page: Any, within: str = "html") -> list[tuple[str, str, str]]:
        page.evaluate(axe)
        found = page.evaluate("(within) => axe.run(within, { resultTypes: ['violations'], selectors: false })", within)[
            "violations"
        ]
        return [(v["id"], v["impact"], v["nodes"][0]["html"][:160]) for v in found if v["impact"] in GRAVE]

    return find
