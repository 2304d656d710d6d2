"""The pages for people who use a keyboard or a screen reader: axe-core has no serious finding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import unboxed as ub

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def pages(report_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report, and one result as a page."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 14)).eval()
    result = ub.attribution.integrated_gradients(ub.Box(model, ub.Pixels((1, 8, 8))), torch.rand(3, 1, 8, 8))
    return {"report": report_file, "result": result.save(tmp_path_factory.mktemp("pages") / "result.html")}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
@pytest.mark.parametrize("name", ["report", "result"])
def test_axe_has_no_serious_finding(
    name: str, scheme: Any, width: int, browser: Browser, pages: dict[str, Path], grave_findings: Any
) -> None:
    """Folded and unfolded; what a width lays out otherwise, the bar, in the other colors as well."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(pages[name].as_uri())
    assert grave_findings(page) == []
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert grave_findings(page) == []
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    if page.locator(".bar").count():
        assert grave_findings(page, ".bar") == []
    page.close()


def test_axe_sees_a_planted_fault(browser: Browser, pages: dict[str, Path], grave_findings: Any) -> None:
    page = browser.new_page()
    page.goto(pages["result"].as_uri())
    page.evaluate("document.querySelector('img').removeAttribute('alt')")
    assert [rule for rule, _, _ in grave_findings(page)] == ["image-alt"]
    page.close()


def test_the_menu_works_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages["report"].as_uri())
    page.locator("#menu").focus()
    page.keyboard.press("Enter")
    assert page.locator("#contents").is_visible()
    assert page.locator("#menu").get_attribute("aria-expanded") == "true"
    page.keyboard.press("Escape")
    assert not page.locator("#contents").is_visible()
    assert page.evaluate("document.activeElement.id") == "menu"
    page.close()
