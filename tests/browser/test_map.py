"""The interactive map in a real browser: pointing, clicking, zooming, keys, layers, a phone, the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from unboxed import Box, Pixels
from unboxed.engine.read.neighbors import nearest_points
from unboxed.report import Finding, Section, report
from unboxed.report.plane import LayerScatterMap, ScatterMapBlock, make_thumbnail_atlas

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 3, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1200, "height": 1000}}
N, CLASSES = 10_000, 4
NAMES = ["cat", "dog </script><b>", "a class with a name that is far too long for a map", "bird"]
Y = torch.arange(N) % CLASSES
CENTERS = torch.tensor([[-8.0, 6.0], [8.0, 6.0], [-8.0, -6.0], [8.0, -6.0]])


def points(spread: float) -> torch.Tensor:
    """Clusters; the first point of each class is alone, next to its cluster, where it can be pointed at."""
    made = CENTERS[Y] + spread * torch.randn(N, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    made[:CLASSES] = CENTERS[:CLASSES] * torch.tensor([0.2, 0.2])
    return made


def show(_: Finding) -> list[ScatterMapBlock]:
    shade = (0.2 + 0.2 * Y.float()).view(N, 1, 1, 1).expand(N, 1, 8, 8)
    near = nearest_points(points(1.0)[:200], points(1.0)[:200], 6, exclude=torch.arange(200)).indices.repeat(
        N // 200, 1
    )
    layers = [LayerScatterMap("Raw pixels", "10 nearest agree: 80.0%", points(1.0), near),
              LayerScatterMap("Before fc", "10 nearest agree: 99.0%", points(0.4).flip(1), near)]  # fmt: skip
    words = [[f"predicted {NAMES[k]}" for k in Y.tolist()], [f"p 0.9, label {NAMES[k]}" for k in Y.tolist()]]
    examples = [f"example {i}" for i in range(5, N + 5)]
    return [ScatterMapBlock("map-plane", layers, Y.tolist(), NAMES, [i == 1 for i in range(N)], words, examples,
                  "Map of 10,000 examples", "Point at a dot.", "How to move about.",
                  make_thumbnail_atlas(shade))]  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    box = Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval(), Pixels((1, 8, 8)))
    section, data = (
        Section("Map", "map", lambda context: Finding(), show),
        (torch.rand(8, 1, 8, 8), torch.arange(8) % 4),
    )
    made = report(box, data, tmp_path_factory.mktemp("map"), sections=[section], quiet=True)
    assert made.failures == {}
    return made.path


class Map:
    """The map of a page, with what went wrong on it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.faults = page, list[str]()
        page.on("console", self._heard)
        page.on("pageerror", lambda e: self.faults.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else self.faults.append(r.url))
        page.goto(url)
        self.canvas = page.locator(".map-stage canvas")
        self.panel, self.sentence = page.locator(".map-panel"), page.locator(".map-status")
        self.canvas.evaluate("(c) => c.scrollIntoView({ block: 'center' })")
        page.wait_for_timeout(100)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:  # tests read pixels back
            self.faults.append(message.text)

    @property
    def view(self) -> dict[str, Any]:
        return dict(self.page.evaluate("document.querySelector('.map').map.view()"))

    def place(self, i: int) -> tuple[float, float]:
        """Where point i is drawn, in the window."""
        box = self.canvas.bounding_box()
        x, y = self.page.evaluate(f"document.querySelector('.map').map.place({i})")
        assert box is not None
        return box["x"] + x, box["y"] + y

    def color(self, i: int) -> list[int]:
        """What is drawn at point i."""
        self.page.evaluate("document.querySelector('.map').map.paint()")
        return list(self.page.evaluate("""(i) => { const c = document.querySelector('.map-stage canvas');
            const [x, y] = document.querySelector('.map').map.place(i), r = c.width / c.clientWidth;
            return [...c.getContext('2d').getImageData(Math.round(x * r), Math.round(y * r), 1, 1).data].slice(0, 3); }""", i))  # noqa: E501  # fmt: skip

    def button(self, name: str) -> Any:
        return self.page.locator(f".map-tools [value={name}]")


@pytest.fixture
def desktop(browser: Browser, page_file: Path) -> Iterator[Map]:
    context = browser.new_context(**DESKTOP, reduced_motion="reduce")  # type: ignore[arg-type]
    made = Map(context.new_page(), page_file.as_uri())
    yield made
    assert made.faults == []
    context.close()


@pytest.fixture
def phone(browser: Browser, page_file: Path) -> Iterator[Map]:
    context = browser.new_context(**PHONE, reduced_motion="reduce")  # type: ignore[arg-type]
    made = Map(context.new_page(), page_file.as_uri())
    yield made
    assert made.faults == []
    context.close()


def test_every_point_has_the_color_of_its_class(desktop: Map) -> None:
    wanted = desktop.page.evaluate("JSON.parse(document.querySelector('.map script').textContent).colors")
    for i in range(CLASSES):
        assert desktop.color(i) == list(bytes.fromhex(wanted[i][1:]))


def test_pointing_shows_the_example(desktop: Map) -> None:
    assert desktop.panel.inner_text() == "Point at a dot."
    desktop.page.mouse.move(*desktop.place(1))
    assert desktop.view["hover"] == 1
    words = desktop.panel.inner_text()
    assert "predicted dog </script><b>" in words
    assert "p 0.9, label dog" in words
    assert "example 6" in words
    assert desktop.panel.locator("b.bad").count() == 1
    assert desktop.panel.locator("canvas").count() == 1
    shade = desktop.panel.locator("canvas").evaluate("(c) => c.getContext('2d').getImageData(40, 40, 1, 1).data[0]")
    assert abs(shade - 0.4 * 255) < 10
    box = desktop.canvas.bounding_box()
    assert box is not None
    desktop.page.mouse.move(box["x"] + 3, box["y"] + box["height"] / 2)
    assert desktop.panel.inner_text() == "Point at a dot."


def test_a_click_shows_the_neighbors_and_they_lead_on(desktop: Map) -> None:
    desktop.page.mouse.click(*desktop.place(0))
    assert desktop.view["chosen"] == 0
    near = desktop.panel.locator(".map-near button")
    assert near.count() == 6
    assert "example 5, predicted cat" in (desktop.sentence.text_content() or "").lower()
    first = near.first.get_attribute("aria-label") or ""
    near.first.click()
    assert desktop.view["chosen"] > 0
    assert first.startswith(f"example {desktop.view['chosen'] + 5},")
    desktop.page.keyboard.press("Escape")
    assert desktop.view["chosen"] == -1


def test_zoom_by_buttons_and_wheel_keeps_what_is_pointed_at(desktop: Map) -> None:
    desktop.button("in").click()
    assert desktop.view["zoom"] > 1
    desktop.button("all").click()
    assert desktop.view["zoom"] == 1
    x, y = desktop.place(2)
    desktop.page.mouse.move(x, y)
    desktop.page.mouse.wheel(0, 100)
    desktop.page.wait_for_timeout(60)
    assert desktop.view["zoom"] == 1  # the page scrolls until the map is clicked
    desktop.page.mouse.click(*desktop.place(2))
    x, y = desktop.place(2)
    desktop.page.mouse.move(x, y)
    for _ in range(4):
        desktop.page.mouse.wheel(0, -200)
    desktop.page.wait_for_timeout(60)
    assert desktop.view["zoom"] > 2
    assert desktop.place(2) == (pytest.approx(x, abs=4), pytest.approx(y, abs=4))  # the mouse points at whole pixels
    desktop.button("out").click()
    desktop.page.keyboard.press("0")


def test_dragging_moves_the_map_and_chooses_nothing(desktop: Map) -> None:
    x, y = desktop.place(3)
    desktop.page.mouse.move(x, y)
    desktop.page.mouse.down()
    desktop.page.mouse.move(x - 60, y + 40, steps=4)
    desktop.page.mouse.up()
    assert desktop.place(3) == (pytest.approx(x - 60, abs=1), pytest.approx(y + 40, abs=1))
    assert desktop.view["chosen"] == -1
    desktop.page.mouse.click(*desktop.place(3))
    assert desktop.view["chosen"] == 3


def test_keys_alone_reach_everything(desktop: Map) -> None:
    page = desktop.page
    page.locator(".map-layers button").last.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement === document.querySelector('.map-stage canvas')")
    page.keyboard.press("ArrowRight")
    first = desktop.view["chosen"]
    assert first >= 0
    x = desktop.place(first)[0]
    page.keyboard.press("ArrowRight")
    assert desktop.place(desktop.view["chosen"])[0] > x
    page.keyboard.press("+")
    assert desktop.view["zoom"] == pytest.approx(1.5)
    page.keyboard.press("-")
    assert desktop.view["zoom"] == 1
    for name in ("in", "out", "all", "images"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.value") == name


def test_layers_are_switched(desktop: Map) -> None:
    buttons = desktop.page.locator(".map-layers button")
    assert [b.get_attribute("aria-pressed") for b in buttons.all()] == ["false", "true"]
    assert "80.0%" in buttons.first.inner_text()
    before = desktop.place(0)
    desktop.page.mouse.move(*desktop.place(2))
    assert desktop.view["hover"] == 2
    buttons.first.click()
    assert desktop.view["layer"] == 0
    assert desktop.place(0) != before
    assert [b.get_attribute("aria-pressed") for b in buttons.all()] == ["true", "false"]
    assert "Raw pixels" in (desktop.sentence.text_content() or "")
    desktop.page.mouse.move(*desktop.place(2))
    assert desktop.view["hover"] == 2  # the index of places is that of the new layer


def test_points_glide_where_motion_is_welcome(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(**DESKTOP)  # type: ignore[arg-type]
    made = Map(context.new_page(), page_file.as_uri())
    made.page.locator(".map-layers button").first.click()
    assert made.view["moving"]
    made.page.wait_for_function("!document.querySelector('.map').map.view().moving")
    made.page.mouse.move(*made.place(2))
    assert made.view["hover"] == 2
    assert made.faults == []
    context.close()


def test_images_in_place_of_dots(desktop: Map) -> None:
    desktop.button("images").click()
    assert desktop.button("images").get_attribute("aria-pressed") == "true"
    desktop.page.wait_for_timeout(50)
    grays = desktop.page.evaluate("""() => { const c = document.querySelector('.map-stage canvas');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, seen = {};
        for (let i = 0; i < d.length; i += 4) if (d[i] === d[i + 1] && d[i] === d[i + 2]) seen[d[i]] = (seen[d[i]] || 0) + 1;
        return [0.2, 0.4, 0.6, 0.8].map((v) => Math.max(...[-12, -6, 0, 6, 12].flatMap((o) => [...Array(6).keys()].map((k) => seen[Math.round(255 * v) + o + k] || 0)))); }""")  # noqa: E501  # fmt: skip
    assert min(grays) > 500


def test_one_class_alone(desktop: Map) -> None:
    legend = desktop.page.locator(".map-legend button")
    assert legend.count() == CLASSES
    full = desktop.color(0)
    legend.nth(2).click()
    assert legend.nth(2).get_attribute("aria-pressed") == "true"
    assert desktop.color(0) != full
    desktop.page.mouse.move(*desktop.place(0))
    assert desktop.view["hover"] == -1
    legend.nth(2).click()
    assert desktop.color(0) == full


def test_light_and_dark(desktop: Map) -> None:
    ground = "() => [...document.querySelector('.map-stage canvas').getContext('2d').getImageData(2, 2, 1, 1).data]"
    desktop.page.emulate_media(color_scheme="dark")
    desktop.page.wait_for_timeout(60)
    dark = desktop.page.evaluate(ground)
    desktop.page.locator("#theme").click()
    desktop.page.wait_for_timeout(60)
    light = desktop.page.evaluate(ground)
    assert max(dark[:3]) < 60
    assert min(light[:3]) > 220


def test_on_a_phone(phone: Map) -> None:
    page = phone.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.touchscreen.tap(*phone.place(1))
    assert phone.view["chosen"] == 1
    assert "predicted dog" in phone.panel.inner_text()
    box = phone.panel.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 390
    assert phone.canvas.evaluate("(c) => c.style.touchAction") == "pan-y"  # one finger scrolls the page
    pinch(page)
    assert phone.view["zoom"] > 1.5
    assert phone.canvas.evaluate("(c) => c.style.touchAction") == "none"


def pinch(page: Page) -> None:
    """Two fingers that part."""
    page.evaluate("""() => {
        const c = document.querySelector('.map-stage canvas'), b = c.getBoundingClientRect();
        c.setPointerCapture = () => {};
        const send = (kind, id, x) => c.dispatchEvent(new PointerEvent(kind, { pointerId: id, pointerType: 'touch',
            clientX: b.left + x, clientY: b.top + b.height / 2, bubbles: true }));
        send('pointerdown', 11, 150); send('pointerdown', 12, 190);
        for (let d = 0; d <= 60; d += 10) { send('pointermove', 11, 150 - d); send('pointermove', 12, 190 + d); }
        send('pointerup', 11, 90); send('pointerup', 12, 250);
    }""")


def test_without_a_script_it_says_so(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, **DESKTOP)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".map noscript .note").is_visible()
    assert not page.locator(".map canvas").is_visible()
    context.close()
