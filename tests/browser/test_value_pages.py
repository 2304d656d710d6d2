"""Pages of a regression and of label maps in a real browser: dark, on a phone, short, without a serious finding."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image, ImageStat
from torch import nn

import unboxed as ub
from quick_reports import make_reports_quick

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    table = ub.Box(nn.Linear(3, 1).eval(), ub.Features(("a", "b", "c")), outputs="regression", classes=["price (USD)"])
    rows = torch.rand(160, 3)
    values = 3 * table(rows).detach() + 0.1 * torch.randn(160, 1)
    names = ["a background of trees", "upper", "lower"]
    maps = ub.Box(nn.Conv2d(1, 3, 3, padding=1).eval(), ub.Pixels((1, 8, 8)), classes=names)
    images = torch.rand(30, 1, 8, 8)
    labels = maps.predict(images)
    labels = torch.where(torch.rand(labels.shape) < 0.3, (labels + 1) % 3, labels)
    sections = ["overview", "gradients", "attacks", "ranking", "map"]
    with pytest.MonkeyPatch.context() as patch:
        make_reports_quick(patch)
        out = tmp_path_factory.mktemp("values")
        made = {
            "regression": ub.report(table, (rows, values), out / "rows", sections=sections, quiet=True),
            "label maps": ub.report(maps, (images, labels), out / "maps", sections=sections, quiet=True),
        }
    assert [report.failures for report in made.values()] == [{}, {}]
    return {name: report.path for name, report in made.items()}


def opened(browser: Browser, path: Path, **settings: Any) -> Page:
    page = browser.new_page(**settings)
    page.goto(path.as_uri())
    return page


def brightness(shown: Locator) -> float:
    """The mean brightness of what is seen of it, 0 to 255."""
    return float(ImageStat.Stat(Image.open(io.BytesIO(shown.screenshot())).convert("L")).mean[0])


@pytest.mark.parametrize("name", ["regression", "label maps"])
def test_the_page_is_short_and_fits_a_phone(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages[name], viewport=DESKTOP)
    assert page.evaluate("document.documentElement.scrollHeight") < 8 * 900
    page.close()
    page = opened(browser, pages[name], viewport=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.parametrize("name", ["regression", "label maps"])
def test_axe_has_no_serious_finding(name: str, browser: Browser, pages: dict[str, Path], grave_findings: Any) -> None:
    page = opened(browser, pages[name], viewport=DESKTOP, color_scheme="dark")
    assert grave_findings(page) == []
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert grave_findings(page) == []
    page.close()


def test_a_chart_is_dark_on_a_dark_page(browser: Browser, pages: dict[str, Path]) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page = opened(browser, pages["regression"], viewport=DESKTOP, color_scheme=scheme)
        chart = page.locator(".best img.chart").first
        seen[scheme] = brightness(chart)
        if scheme == "dark":
            page.locator("#theme").click()
            assert brightness(chart) == pytest.approx(seen["light"], abs=1)
        page.close()
    assert seen["light"] > 230
    assert seen["dark"] < 60


def test_the_colors_of_label_maps_have_an_edge_on_a_dark_page(browser: Browser, pages: dict[str, Path]) -> None:
    """Also that of errors, which is as dark as the page."""
    page = opened(browser, pages["label maps"], viewport=DESKTOP, color_scheme="dark")
    ground, words, edges = page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
            [...document.querySelectorAll('.best .color-key li')].map((e) => e.textContent.trim()),
            [...document.querySelectorAll('.best .color-key i')].map((e) => getComputedStyle(e).boxShadow)]"""
    )
    assert words == ["a background of trees", "upper", "lower", "wrong"]
    dark = max(int(v) for v in ground.removeprefix("rgb(").rstrip(")").split(","))
    for edge in edges:
        assert min(int(v) for v in edge.split(")")[0].removeprefix("rgb(").split(",")) > dark + 100
    page.close()


def test_two_figures_of_one_step_stand_side_by_side_on_a_phone(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["label maps"], viewport=PHONE)
    steps = page.evaluate(
        """() => [...document.querySelectorAll('#example .per-example > :not([hidden]) .steps > li')].map((li) =>
            [...li.querySelectorAll('img')].map((i) => i.getBoundingClientRect()).map((b) => [b.top, b.left]))"""
    )
    pairs = [step for step in steps if len(step) == 2]
    assert pairs
    for (top, left), (other_top, other_left) in pairs:
        assert top == pytest.approx(other_top, abs=1)
        assert other_left > left + 80
    page.close()
