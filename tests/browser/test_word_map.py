"""The page of a word map in a real browser: words are written, found, and lead to their nearest words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import unboxed as ub

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

N = 70_000  # more than two bytes count
WORDS = ("the", "king", "kin", "Kingdom", "queen", "making", "<b>&", *(f"word{i}" for i in range(7, N)))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(N, 2, generator=draw)
    nearest = (torch.arange(N)[:, None] + torch.arange(1, 11)) % N  # the words after each in the list
    nearest[1, 0] = N - 1
    result = ub.language.WordMap(WORDS, points, 0.4, 0.001, 10, "made-up", nearest)
    return result.save(tmp_path_factory.mktemp("words") / "map.html")


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    faults: list[str] = []
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    tab.on("pageerror", lambda e: faults.append(str(e)))
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url))
    tab.goto(page_file.as_uri())
    yield tab
    assert faults == []
    tab.close()


def view(page: Page) -> dict[str, Any]:
    return dict(page.evaluate("document.querySelector('.map').map.view()"))


def found(page: Page, text: str) -> list[str]:
    page.fill(".map-search input", text)
    return page.locator(".map-found button").all_inner_texts()


def test_words_are_found_the_same_ones_first(page: Page) -> None:
    assert found(page, "kin") == ["kin", "king", "Kingdom", "making"]
    assert found(page, f" WORD{N - 1} ") == [f"word{N - 1}"]
    assert found(page, "<b") == ["<b>&"]
    assert found(page, "no such word") == []
    assert page.locator(".map-found").inner_text() == "no such word on the map"
    assert found(page, "") == []
    assert page.locator(".map-found").inner_text() == ""


def test_a_word_leads_to_its_nearest_words_in_the_middle_of_the_view(page: Page) -> None:
    found(page, "king")
    page.keyboard.press("Enter")
    assert view(page)["chosen"] == 1
    x, y = page.evaluate("document.querySelector('.map').map.place(1)")
    size = page.locator(".map-stage canvas").bounding_box()
    assert size is not None
    assert (abs(x - size["width"] / 2) < 2, abs(y - size["height"] / 2) < 2) == (True, True)
    near = page.locator(".map-near button")
    assert near.all_inner_texts()[:2] == [WORDS[N - 1], WORDS[3]]
    near.first.click()
    assert view(page)["chosen"] == N - 1
    assert page.locator(".map-about").inner_text() == WORDS[N - 1]


def test_words_are_written_in_the_map_and_not_over_each_other(page: Page) -> None:
    boxes = page.evaluate("""() => {
        const { map } = document.querySelector('.map'), pen = document.querySelector('.map-stage canvas').getContext('2d');
        const boxes = [], fill = pen.fillText.bind(pen);
        pen.fillText = (text, x, y) => { boxes.push([text, x - pen.measureText(text).width / 2, y - 8, x + pen.measureText(text).width / 2, y + 8]); fill(text, x, y); };
        map.paint();
        return boxes; }""")  # noqa: E501
    assert len(boxes) > 20
    assert "the" in [b[0] for b in boxes]  # the most frequent word
    for i, (text, left, top, right, bottom) in enumerate(boxes):
        for other, *b in boxes[:i]:
            assert not (left < b[2] and b[0] < right and top + 4 < b[3] and b[1] + 4 < bottom), (text, other)


def test_the_page_is_small_and_says_how_far_the_map_can_be_believed(page: Page, page_file: Path) -> None:
    assert page_file.stat().st_size < 90 * N
    assert "40.0% are also among its 10 nearest on the map" in page.locator("main").inner_text()
