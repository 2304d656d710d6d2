"""The pages for people who use a keyboard or a screen reader: axe-core has no serious finding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import unboxed as ub
from quick_reports import make_reports_quick
from unboxed.report import report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

GRAVE = ("serious", "critical")


def model_and_examples() -> tuple[ub.Box, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 14)).eval()
    box = ub.Box(model, ub.Pixels((1, 8, 8)), classes=[f"a class with a long name {k}" for k in range(14)])
    return box, (torch.rand(60, 1, 8, 8), torch.arange(60) % 14)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report, and one result as a page."""
    out = tmp_path_factory.mktemp("pages")
    box, examples = model_and_examples()
    result = ub.attribution.integrated_gradients(box, examples[0][:3])
    result.save(out / "result.html")
    with pytest.MonkeyPatch.context() as patch:
        make_reports_quick(patch)
        made = report(box, examples, out / "report", judge=box, training=examples, quiet=True)
    return {"report": made.path, "result": out / "result.html"}


def grave_findings(page: Any, axe: str) -> list[tuple[str, str, str]]:
    """(rule, impact, the first element) of what axe-core calls serious or critical."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [(v["id"], v["impact"], v["nodes"][0]["html"][:160]) for v in found if v["impact"] in GRAVE]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "result"])
def test_axe_has_no_serious_finding(
    name: str, scheme: Any, width: int, browser: Browser, pages: dict[str, Path], axe: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(pages[name].as_uri())
    assert grave_findings(page, axe) == []
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert grave_findings(page, axe) == []
    page.close()


def test_axe_sees_a_planted_fault(browser: Browser, pages: dict[str, Path], axe: str) -> None:
    page = browser.new_page()
    page.goto(pages["result"].as_uri())
    page.evaluate("document.querySelector('img').removeAttribute('alt')")
    assert [rule for rule, _, _ in grave_findings(page, axe)] == ["image-alt"]
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
