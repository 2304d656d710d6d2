"""The report in a real browser: it works, fits a phone, and makes no requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from unboxed.report import SECTIONS as ALL_SECTIONS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 3, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
SECTIONS = [section for section in ALL_SECTIONS if "texts" not in section.needs]  # of a report on images


class Seen:
    """A page, with what went wrong on it and what it asked for."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.faults: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda m: self.faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.faults.append(str(e)))
        page.on("requestfailed", lambda r: self.faults.append(r.url[:100]))
        page.on("request", lambda r: self.asked.append(r.url))
        page.goto(url)
        page.locator("#all").click()

    @property
    def outside(self) -> list[str]:
        return [url for url in self.asked if not url.startswith(("file:", "data:"))]

    def color(self) -> str:
        return str(self.page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.fixture(params=["desktop", "phone"], scope="module")
def opened(request: pytest.FixtureRequest, browser: Browser, report_file: Path) -> Iterator[Seen]:
    settings: dict[str, Any] = PHONE if request.param == "phone" else DESKTOP
    context = browser.new_context(**settings)
    yield Seen(context.new_page(), report_file.as_uri())
    context.close()


@pytest.fixture
def seen(opened: Seen) -> Iterator[Seen]:
    """One page for all tests, as it was at first: at its top, its folds closed or open, its sliders at their start."""
    folds = opened.page.evaluate("[...document.querySelectorAll('details')].map((d) => d.open)")
    starts = opened.page.evaluate("[...document.querySelectorAll('.morph input')].map((s) => s.value)")
    yield opened
    opened.page.evaluate(
        """([folds, starts]) => {
            document.querySelectorAll('details').forEach((d, i) => { d.open = folds[i]; });
            document.querySelectorAll('.morph input').forEach((s, i) => {
                s.value = starts[i]; s.dispatchEvent(new Event('input', { bubbles: true }));
            });
            window.scrollTo(0, 0);
        }""",
        [folds, starts],
    )
    opened.page.emulate_media(color_scheme="light")


def test_it_opens_without_an_error_or_a_request(seen: Seen) -> None:
    assert seen.page.locator("h1").inner_text().endswith("accuracy")
    for _ in range(8):
        seen.page.mouse.wheel(0, 4000)
        seen.page.wait_for_timeout(20)
    assert seen.faults == []
    assert seen.outside == []
    assert len(seen.asked) >= 1


def test_nothing_hangs_over_the_side_with_everything_open(seen: Seen) -> None:
    page = seen.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    width = page.viewport_size["width"]  # type: ignore[index]  # a phone's innerWidth grows with what hangs over
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    over = page.evaluate(
        """(width) => [...document.querySelectorAll('main *')]
        .filter((e) => !e.closest('.scroll') && !e.closest('pre') && e.getBoundingClientRect().right > width + 1)
        .map((e) => e.outerHTML.slice(0, 120))""",
        width,
    )
    assert over == []


def test_the_page_is_short_until_it_is_opened(browser: Browser, report_file: Path) -> None:
    page = browser.new_page(**DESKTOP)  # type: ignore[arg-type]
    page.goto(report_file.as_uri())
    assert page.evaluate("document.documentElement.scrollHeight") < 8 * 900
    assert page.locator("details.section[open]").count() == 0
    chapters = {section.chapter for section in SECTIONS}
    assert page.locator(".chapter > .lead").count() == len(chapters)  # the answer of its first section
    assert page.locator(".answer").count() == len(SECTIONS) - len(chapters)
    assert all(page.locator(".answer, .chapter > .lead").all_inner_texts())
    assert page.locator(".best img").count() > 10
    page.close()


def test_the_top_of_the_page_answers_the_three_questions(browser: Browser, report_file: Path) -> None:
    """How good, what is wrong with it, can its explanations be believed: within three screens, without a click."""
    page = browser.new_page(**DESKTOP)  # type: ignore[arg-type]
    page.goto(report_file.as_uri())
    for words in ("accuracy", "most common confusion", "pass their checks"):
        found = page.get_by_text(words).first.bounding_box()
        assert found is not None
        assert found["y"] + found["height"] < 3 * 900, words
    page.close()


def test_one_example_is_followed_through_the_sections(browser: Browser, report_file: Path) -> None:
    page = browser.new_page(**DESKTOP)  # type: ignore[arg-type]
    page.goto(report_file.as_uri())
    row = page.locator("#example .soft:visible").inner_text().split(".")[0].split()[-1]
    steps = page.locator(".steps li:visible")
    assert steps.count() >= 6
    assert f"example {row}" in steps.first.inner_text()
    for link in page.locator(".steps li:visible > a").all():
        slug = (link.get_attribute("href") or "#").removeprefix("#")
        link.click()
        page.wait_for_function("(slug) => document.querySelector(`#${slug} > details`).open", arg=slug)
        texts = page.locator(f"#{slug}").inner_text()
        assert slug in ("class-images", "map") or row in texts, slug  # of its predicted class; a canvas
    page.close()


def test_another_example_is_chosen_for_all_chapters(browser: Browser, report_file: Path) -> None:
    page = browser.new_page(**DESKTOP)  # type: ignore[arg-type]
    page.goto(report_file.as_uri())
    buttons, story = page.locator(".chooser button"), page.locator("#example .soft:visible")
    first = story.inner_text()
    assert buttons.count() == 6
    for k in (1, 5):
        buttons.nth(k).click()
        assert page.locator('.chooser [aria-pressed="true"]').count() == 1
        assert story.inner_text().split(".")[0] == buttons.nth(k).get_attribute("title")
        row = story.inner_text().split(".")[0].split()[-1]
        for chapter in ("chapter-looks", "chapter-believe", "chapter-knows"):
            shown = page.locator(f"#{chapter} > .best .per-example > :visible").first
            assert row in shown.inner_text(), chapter
        assert page.evaluate("document.documentElement.scrollHeight") < 8 * 900
    assert story.inner_text() != first
    page.close()


def test_without_scripts_the_first_example_is_shown(browser: Browser, report_file: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(report_file.as_uri())
    assert page.locator("#example .soft:visible").count() == 1
    assert not page.locator(".chooser").is_visible()
    page.close()


def test_a_link_opens_its_section_and_one_button_opens_all(browser: Browser, report_file: Path) -> None:
    page = browser.new_page(**DESKTOP)  # type: ignore[arg-type]
    page.goto(f"{report_file.as_uri()}#{SECTIONS[3].slug}")
    page.wait_for_timeout(100)
    is_open = "(slug) => document.querySelector(`#${slug} > details`).open"
    assert page.evaluate(is_open, SECTIONS[3].slug)
    page.locator(f'.bar nav a[href="#{SECTIONS[5].slug}"]').click()
    page.wait_for_function(is_open, arg=SECTIONS[5].slug)
    page.locator("#all").click()
    assert page.locator("details.section[open]").count() == len(SECTIONS)
    page.locator("#all").click()
    assert page.locator("details.section[open]").count() == 0
    page.goto(f"{report_file.as_uri()}#morph-1")  # within a section
    page.wait_for_function(is_open, arg="morphs")
    page.close()


def n_printed_pages(page: Page) -> int:
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(prefer_css_page_size=True)))


def test_what_is_seen_is_what_is_printed(browser: Browser, report_file: Path) -> None:
    """The answers and the best pictures; a section only where the reader has opened it or it has an answer to print."""
    page = browser.new_page(**DESKTOP)  # type: ignore[arg-type]
    page.goto(report_file.as_uri())
    closed = n_printed_pages(page)
    assert 2 <= closed <= 12
    page.locator(f"#{SECTIONS[0].slug} summary").first.click()
    page.emulate_media(media="print")
    assert page.locator("details.section[open]").count() == 1
    assert not page.locator(".bar").is_visible()
    assert page.locator("h1").bounding_box()["y"] < 120  # type: ignore[index]
    assert page.locator(".best").first.is_visible()
    assert page.locator("footer .on-paper").is_visible()
    printed = [s for s in page.locator("details.section").all() if s.is_visible()]
    assert 1 < len(printed) < page.locator("details.section").count()
    for section in printed:  # no heading stands bare
        is_open = section.get_attribute("open") is not None
        assert is_open or section.locator(".answer").inner_text().strip()
    for button in page.locator("button").all():
        assert not button.is_visible()
    assert n_printed_pages(page) > closed
    page.close()


def unfold_contents(page: Page) -> None:
    """On a phone the table of contents is a menu."""
    if page.locator("#menu").is_visible() and not page.locator(".bar nav").is_visible():
        page.locator("#menu").click()


JUMPS = """async (slugs) => {  // what is wrong after a click on each link of the contents, where one touches it
    const wrong = [], menu = document.querySelector('#menu'), nav = document.querySelector('.bar nav');
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
    for (const slug of slugs) {
        if (menu.checkVisibility() && !nav.checkVisibility()) menu.click();
        const link = nav.querySelector(`a[href="#${slug}"]`);
        link.scrollIntoView({ block: 'nearest' });
        const at = link.getBoundingClientRect();
        const touched = document.elementFromPoint(at.left + at.width / 2, at.top + at.height / 2);
        if (!link.contains(touched)) wrong.push([slug, 'the link is covered', touched?.outerHTML.slice(0, 80)]);
        link.click();
        for (let k = 0; k < 60 && !document.querySelector(`#${slug} > details`).open; k++) await frame();
        await frame(); await frame();
        const heading = document.querySelector(`#${slug} .title`), box = heading.getBoundingClientRect();
        const bar = document.querySelector('.bar').getBoundingClientRect();
        if (location.hash !== '#' + slug) wrong.push([slug, 'another address', location.hash]);
        if (box.top < -10 || box.top > innerHeight) wrong.push([slug, 'out of sight', box.top]);
        if (document.elementFromPoint(box.left + 4, box.top + 2) !== heading) wrong.push([slug, 'something is on top']);
        if (bar.bottom > box.top && bar.right > box.left) wrong.push([slug, 'the bar hides it', box.top, bar.bottom]);
    }
    return wrong;
}"""


def test_every_section_is_reached_from_the_bar(seen: Seen) -> None:
    assert seen.page.evaluate(JUMPS, [section.slug for section in SECTIONS]) == []
    seen.page.wait_for_selector("nav a[aria-current]", state="attached")
    assert seen.page.locator("nav a[aria-current]").count() == 1
    assert seen.faults == []


@pytest.fixture(params=[390, 768, 1024, 1280, 1920], scope="module")
def wide(request: pytest.FixtureRequest, browser: Browser, report_file: Path) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": request.param, "height": 844})
    page.goto(report_file.as_uri())
    yield page
    page.close()


def test_every_link_of_the_navigation_lies_inside_its_bar(wide: Page) -> None:
    wide.evaluate("window.scrollTo(0, 0)")
    unfold_contents(wide)
    bar, width = wide.locator(".bar").bounding_box(), wide.viewport_size["width"]  # type: ignore[index]
    assert bar is not None
    assert bar["x"] == bar["y"] == 0
    assert bar["width"] <= width
    links = [wide.locator(f'.bar nav a[href="#{section.slug}"]').bounding_box() for section in SECTIONS]
    assert [b for b in links if b is None or not _inside(b, bar)] == []


def _inside(box: Any, bar: Any) -> bool:
    across = bar["x"] <= box["x"] and box["x"] + box["width"] <= bar["x"] + bar["width"]
    return bool(across and bar["y"] <= box["y"] and box["y"] + box["height"] <= bar["y"] + bar["height"])


def test_every_link_of_the_navigation_jumps_to_a_heading_that_the_bar_does_not_hide(wide: Page) -> None:
    assert wide.evaluate(JUMPS, [section.slug for section in SECTIONS]) == []


def test_the_link_of_the_section_in_sight_is_marked(wide: Page) -> None:
    middle = SECTIONS[len(SECTIONS) // 2]
    unfold_contents(wide)
    wide.locator(f'.bar nav a[href="#{middle.slug}"]').click()
    current = f'.bar nav a[href="#{middle.slug}"][aria-current]'
    wide.wait_for_selector(current, state="attached")
    assert wide.locator(".bar nav a[aria-current]").count() == 1


def test_every_fold_opens_and_shows_what_it_holds(seen: Seen) -> None:
    folds = seen.page.locator("main details:not(.section, .ranking details)")
    assert folds.count() >= 4
    for i in range(folds.count()):
        fold = folds.nth(i)
        opened = fold.evaluate("(d) => d.open")
        fold.locator("summary").first.click()
        assert fold.evaluate("(d) => d.open") != opened
        if not opened:
            inside = fold.locator(".folded").first.bounding_box()
            assert inside is not None
            assert inside["height"] > 20


def test_the_slider_moves_the_image_and_the_probabilities(seen: Seen) -> None:
    morphs = seen.page.locator(".morph")
    assert morphs.count() >= 3
    for i in range(3):
        morph = morphs.nth(i)
        slider, picture = morph.locator("input[type=range]"), morph.locator(".stage > img")
        last = slider.get_attribute("max")
        assert int(last or 0) > 0
        before = picture.get_attribute("src"), morph.locator(".step").inner_text()
        target = morph.locator(".target output")
        p = float(target.inner_text().strip("<>"))
        slider.fill(last or "0")
        assert picture.get_attribute("src") != before[0]
        assert morph.locator(".step").inner_text() != before[1]
        assert float(target.inner_text().strip("<>")) > p
        full = morph.locator(".target .track").bounding_box()
        seen.page.wait_for_timeout(150)  # the bar glides
        bar = morph.locator(".target .fill").bounding_box()
        assert full is not None
        assert bar is not None
        assert bar["width"] / full["width"] == pytest.approx(float(target.inner_text().strip("<>")), abs=0.02)
        slider.press("ArrowLeft")
        assert slider.input_value() == str(int(last or 0) - 1)
    assert seen.faults == []


def test_the_bars_of_a_morph_start_at_one_place(seen: Seen) -> None:
    starts = seen.page.evaluate(
        "[...document.querySelectorAll('.morph')].map((m) => [...m.querySelectorAll('.track')]"
        ".map((t) => Math.round(t.getBoundingClientRect().left)))"
    )
    assert len(starts) >= 3
    assert all(len(own) > 1 and len(set(own)) == 1 for own in starts)


def test_rows_of_figures_are_even(seen: Seen) -> None:
    """Where a row breaks on a wide page, the last one is not left with one or two of many."""
    if seen.page.viewport_size != DESKTOP["viewport"]:
        return
    rows = seen.page.evaluate(
        "[...document.querySelectorAll('#class-images .folded > .figures')].map((f) => Object.values("
        "Object.groupBy([...f.children], (c) => c.offsetTop)).map((row) => row.length))"
    )
    assert rows
    assert all(max(own) - min(own) <= 1 for own in rows)


def test_play_runs_to_the_end_and_stops(seen: Seen) -> None:
    morph = seen.page.locator(".morph").first
    slider, play = morph.locator("input[type=range]"), morph.locator(".play")
    last = int(slider.get_attribute("max") or 0)
    slider.fill(str(max(0, last - 2)))
    play.click()
    assert play.inner_text() == "Pause"
    seen.page.wait_for_function("(b) => b.textContent === 'Play'", arg=play.element_handle())
    assert slider.input_value() == str(last)


def contrasts(page: Page) -> list[tuple[str, float]]:
    """How far words of each kind stand out from their ground."""
    return page.evaluate("""() => {
        const lum = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)|transparent/.test(c)) return c; e = e.parentElement; } return 'rgb(255,255,255)'; };
        return ['h1', '.lead', '.kicker', 'figcaption span', '.files a', '.method dt', '.note, .method dd'].map((s) => {
            const e = document.querySelector(s), a = lum(getComputedStyle(e).color), b = lum(ground(e));
            return [s, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        });
    }""")


def test_words_stand_out_from_their_ground(seen: Seen) -> None:
    """WCAG AA: 4.5 to 1, for the words of the page, small print and links."""
    grounds = []
    for scheme in ("light", "dark"):
        seen.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        grounds.append(seen.color())
        assert [(name, ratio) for name, ratio in contrasts(seen.page) if ratio < 4.5] == [], scheme
    assert grounds[0] != grounds[1]


def test_light_and_dark_follow_the_system_and_the_button(seen: Seen) -> None:
    page = seen.page
    page.emulate_media(color_scheme="light")
    light = seen.color()
    page.emulate_media(color_scheme="dark")
    dark = seen.color()
    assert light != dark
    page.locator("#theme").click()
    assert seen.color() == light
    page.reload()
    assert seen.color() == light  # remembered
    page.locator("#theme").click()
    assert seen.color() == dark
    page.emulate_media(color_scheme="light")
    assert seen.color() == dark


def test_without_a_script_the_figures_are_still_there(browser: Browser, report_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, **DESKTOP)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(report_file.as_uri())
    assert page.locator(".morph").first.locator("figure img").count() >= 3
    assert page.locator("h1").is_visible()
    context.close()
