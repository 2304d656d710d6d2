"""Captions against images: what is below an image of the page is what the model says of its very pixels."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import warnings
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unboxed as ub
from quick_reports import make_verdicts_quick
from unboxed.adversarial.changes import PredictionChange
from unboxed.checks.methods import compute_map
from unboxed.checks.ranking import attribution_cards, candidates
from unboxed.errors import UnboxedWarning
from unboxed.plots import draw
from unboxed.report import inversion as survives
from unboxed.report import report
from unboxed.report.attack_figures import after_and_change_figures
from unboxed.report.finding import Example

NAMES = ("top left", "top right", "low left", "low right")
SECTIONS = ["overview", "class-images", "gradients", "morphs", "attacks", "inversion"]
NEAR = 0.03  # of a probability: the page's pictures have 8 bits, its figures two digits
NUMBER = re.compile(r"[<>]?(\d\.\d+)")


class Quarters(nn.Module):
    """Says which quarter of an 8x8 image is the brightest, each by a slope of its own, so that no two sound alike."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(4)
        self.fc = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
            self.fc.weight.copy_(slope * torch.diag(torch.tensor([1.0, 1.1, 1.2, 1.3])))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.relu(self.conv(x))).flatten(1))


def examples() -> tuple[Tensor, Tensor]:
    """Twelve images, each with a quarter as bright as no other, none with a black pixel; three labels are wrong."""
    x = 0.02 + 0.08 * torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for i in range(12):
        top, left = i % 4 // 2 * 4, i % 2 * 4
        x[i, :, top : top + 4, left : left + 4] += 0.1 + 0.05 * i
    y = torch.arange(12) % 4
    y[[3, 6, 9]] = (y[[3, 6, 9]] + 1) % 4
    return x, y


@dataclass
class Shown:
    """A figure of the page: where it is, its image, and its words."""

    section: str
    above: str  # the nearest headline
    src: str
    alt: str
    head: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def pixels(self) -> Tensor:
        """(1, 1, H, W) of a gray image."""
        return pixels(self.src)[None]

    def line(self, start: str) -> str | None:
        return next((line.removeprefix(start) for line in self.lines if line.startswith(start)), None)


def pixels(src: str) -> Tensor:
    """(1, H, W) in [0, 1] of a gray image in the page."""
    return rgb(src).mean(0, keepdim=True)


def rgb(src: str) -> Tensor:
    with Image.open(io.BytesIO(base64.b64decode(src.partition("base64,")[2]))) as image:
        raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return raw.view(image.height, image.width, 3).permute(2, 0, 1) / 255


class Page(HTMLParser):
    """The figures of a page, in their order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.figures: list[Shown] = []
        self._section, self._above, self._text, self._inside = "", "", "", False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {k: v or "" for k, v in attrs}
        if tag == "section":
            self._section = said.get("id", "")
        elif tag == "figure":
            self._inside = True
        elif tag == "img" and self._inside:
            self.figures.append(Shown(self._section, self._above, said["src"], said["alt"]))
        self._text = ""

    def handle_data(self, text: str) -> None:
        self._text += text

    def handle_endtag(self, tag: str) -> None:
        words = " ".join(self._text.split())
        if tag in ("h2", "h3", "h4"):
            self._above = words
        elif tag == "figure":
            self._inside = False
        elif tag == "b" and self._inside:
            self.figures[-1].head = words
        elif tag == "span" and self._inside:
            self.figures[-1].lines.append(words)

    def of(self, section: str, alt: str = "", head: str = "") -> list[Shown]:
        return [f for f in self.figures if f.section == section and f.alt.startswith(alt) and f.head.startswith(head)]


def opened(slope: float) -> ub.Box:
    return ub.Box(Quarters(slope).eval(), ub.Pixels((1, 8, 8)), classes=NAMES)


@dataclass
class Made:
    box: ub.Box
    judge: ub.Box
    page: Page
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One report of a model, by a judge that is half as sure."""
    out, box, judge = tmp_path_factory.mktemp("captions"), opened(12.0), opened(6.0)
    with pytest.MonkeyPatch.context() as patch:
        make_verdicts_quick(patch)
        found = report(box, examples(), out, judge=judge, quiet=True, sections=SECTIONS)
    assert found.failures == {}
    return Made(box, judge, Page(found.path), json.loads((out / "report.json").read_text(encoding="utf-8")))


def number(text: str | None) -> float:
    assert text is not None
    found = NUMBER.search(text)
    assert found is not None, text
    return float(found.group(1))


def agrees(box: ub.Box, image: Tensor, said: str, p: float, *, largest: bool = True) -> None:
    """The box says of the image what the words say: this class, this probability (and that it is the likeliest)."""
    probs = box(image).softmax(1)[0]
    own = float(probs[NAMES.index(said)])
    assert own == pytest.approx(p, abs=NEAR), (said, p, probs)
    assert not largest or own >= float(probs.max()) - 2 * NEAR, (said, probs)


def test_inputs_are_predicted_as_their_captions_say(made: Made) -> None:
    x, y = examples()
    figures = [f for s in ("overview", "inversion") for f in made.page.of(s, "input, example")]
    assert len(figures) >= 10
    for f in figures:
        row, name, p = re.match(r"input, example (\d+): predicted (.*), p\s([<>]?[\d.]+)", f.alt).groups()  # type: ignore[union-attr]
        assert torch.allclose(f.pixels[0], x[int(row)], atol=1 / 255)
        agrees(made.box, f.pixels, name, number(p))
        assert f.head == f"predicted {name}"
        assert f.line("label ") == NAMES[int(y[int(row)])]
        assert f.line("example ") == row
        assert number(f.lines[0]) == number(p)
        if (second := f.line("or ")) is not None:
            other, _, its = second.rpartition(", ")
            agrees(made.box, f.pixels, other, number(its), largest=False)
            assert number(its) >= float(made.box(f.pixels).softmax(1)[0].sort().values[-2]) - NEAR
            assert other != name


def test_class_images_are_of_their_class_and_recipe(made: Made) -> None:
    figures = made.page.of("class-images", "image of class")
    rows = {"Class images": "robust", "The published recipe": "faithful", "Control: plain ascent from noise": "noise"}
    images = dict[str, Tensor]()
    for above, recipe in rows.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboxedWarning)  # on black no unit answers: told on the page
            drawn = ub.synthesis.class_image(made.box, list(range(4)) * (3 if recipe == "robust" else 1), recipe=recipe)
        images[recipe] = drawn.images.float()
        shown = [f for f in figures if f.above == above]
        assert [f.head for f in shown] == list(NAMES)
        for k, f in enumerate(shown):
            assert torch.allclose(f.pixels[0], drawn.images[k].float(), atol=1 / 255)
            assert f.alt.startswith(f"image of class {NAMES[k]};")
            agrees(made.box, f.pixels, NAMES[k], number(f.line("model: ")), largest=False)
            answer = int(made.judge.predict(f.pixels))
            assert f.line("judge: ") == NAMES[answer]
            if recipe == "noise":
                assert ("recognized" in f.lines) == (answer == k)
            else:
                agrees(made.judge, f.pixels, NAMES[k], number(f.lines[2]), largest=False)
    others = [f for f in figures if f.above == "How much do the starts differ?"]
    assert len(others) == 8
    for i, f in enumerate(others, start=4):
        assert torch.allclose(f.pixels[0], images["robust"][i], atol=1 / 255)
        agrees(made.box, f.pixels, f.head, number(f.line("model: ")), largest=False)


def test_maps_are_of_the_class_and_by_the_method_that_are_named(made: Made) -> None:
    seen = set()
    methods = {attribution_cards()[key].name: method for key, method in candidates(made.box, 1e6).items()}
    for f in made.page.of("gradients"):
        if f.alt.startswith("input, example"):
            x = f.pixels
        elif (found := re.match(r"why (.*), by (.*) \(scale ±([\d.e+-]+)\)", f.alt)) is not None:
            name, method, scale = found.groups()
            map_ = compute_map(made.box, methods[method], made.box.validate_inputs(x), NAMES.index(name))[0]
            want = torch.as_tensor(draw.signed_map_to_rgb(map_, float(scale))).permute(2, 0, 1) / 255
            assert torch.allclose(rgb(f.src), want, atol=3 / 255), f.alt
            assert f.head == f"why {name}"
            seen.add(name)
    assert len(seen) > 2


def test_the_map_of_the_followed_example_is_on_its_own_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside an example whose map is a hundred times as large it was white."""
    module: Any = sys.modules["unboxed.report.attribution"]
    monkeypatch.setattr(module, "checks_text", lambda verdict: "passes its checks")
    maps = torch.stack([torch.linspace(-1, 1, 16), torch.linspace(-0.01, 0.01, 16)]).view(2, 1, 4, 4)
    column = module.MapColumn(module.PREDICTION, 1.0, ["a", "b"], maps)
    examples: Any = [SimpleNamespace(x=torch.zeros(1, 4, 4))] * 2
    finding = module.AttributionFinding(
        answer="", method="gradient", verdict=None, scales={}, groups={"all": examples}, columns=[column], notes=[],
        followed=[1],
    )  # fmt: skip
    (figure,) = finding.cover(0)
    own = draw.shared_vmax(maps[1])
    assert own < 0.02
    assert figure.lines[-1] == f"scale ±{own:.3g}"
    assert (figure.picture.image == draw.signed_map_to_rgb(maps[1], own)).all()


def test_frames_of_a_morph_have_the_probabilities_next_to_them(made: Made) -> None:
    strips = made.page.of("morphs", "step ")
    assert len(strips) >= 9
    for f in strips:
        name, p = re.match(r"step \d+: p of (.*) is ([<>]?[\d.]+)", f.alt).groups()  # type: ignore[union-attr]
        agrees(made.box, f.pixels, name, number(p), largest=False)
        assert number(f.line("p of")) == number(p)
        assert f.line("step ") == re.findall(r"step (\d+)", f.alt)[0]
    data = re.findall(r'<script type="application/json">(.*?)</script>', made.page.source, re.DOTALL)
    sliders = [found for text in data if "frames" in (found := json.loads(text))]
    assert len(sliders) == 4
    for slider in sliders:
        for frame, probs in zip(slider["frames"], slider["probs"], strict=True):
            assert made.box(pixels(frame)[None]).softmax(1)[0].tolist() == pytest.approx(probs, abs=NEAR)


def test_adversarial_images_are_classified_as_their_captions_say(made: Made) -> None:
    models = {"p ": made.box, "the second model": made.judge}
    counted, n_now_right = dict.fromkeys(models, 0), 0
    for f in made.page.of("attacks"):
        if f.head.startswith("before: "):
            start, label = f.pixels, f.line("label ")
            agrees(made.box, start, f.head.removeprefix("before: "), number(f.line("p ")))
            assert torch.allclose(start[0], examples()[0][int(f.line("example "))], atol=1 / 255)  # type: ignore[arg-type]
        elif f.head.startswith("after: "):
            name = f.head.removeprefix("after: ")
            who = "the second model" if "the second model" in f.lines else "p "
            agrees(models[who], f.pixels, name, number(f.line("p ")))
            agrees(models[who], start, name, number(f.line(f"p of {name} before: ")), largest=False)
            assert models[who].predict(start) != NAMES.index(name)
            assert ("now right" in f.lines) == (name == label)
            n_now_right += "now right" in f.lines
            delta = float((f.pixels - start).abs().max())
            counted[who] += 1
        elif f.head == "change":
            assert delta == pytest.approx(number(f.lines[0]), abs=1.5 / 255 + 0.06 * delta)
    assert min(counted.values()) >= 3
    assert n_now_right >= 1


def test_inversions_are_those_of_the_input_next_to_them(made: Made) -> None:
    figures, count = made.page.of("inversion"), 0
    for f in figures:
        if f.alt.startswith("input, example"):
            x = f.pixels.flatten()
            assert f.line("judge: ") == NAMES[int(made.judge.predict(f.pixels))]
        elif f.alt.startswith("inversion of"):
            assert f.line("judge: ") == NAMES[int(made.judge.predict(f.pixels))]
            r = float(torch.corrcoef(torch.stack([f.pixels.flatten(), x]))[0, 1])
            assert r == pytest.approx(float(f.line("pixels r ").replace("\u2212", "-")), abs=NEAR)  # type: ignore[union-attr]
            assert f.alt.startswith(f"inversion of {f.head};")
            count += 1
    assert count >= 4


# Inputs at a boundary, as DeepFool leaves them, say both classes alike, and a judge of this size says the same of
# everything: so the words are asked here of figures that differ.


def test_captions_below_an_adversarial_image_are_of_its_predicted_class() -> None:
    x = torch.rand(1, 8, 8)
    change = PredictionChange(
        0, x, x, 1, 2, probs_before=(0.71, 0.12), probs_after=(0.33, 0.58), distance=0.1, is_adversarial=True
    )
    for label, tone in ((NAMES[1], "bad"), (NAMES[2], "good"), (None, "bad")):
        figure, _ = after_and_change_figures("this model", change, Example(0, x, label=label), NAMES, 1.0)
        assert [number(line) for line in figure.lines[:2]] == [0.58, 0.12]
        assert figure.head == f"after: {NAMES[2]}"
        assert (figure.tone, "now right" in figure.lines) == (tone, tone == "good")
    blank = replace(change, distance=0.04)
    (figure,) = after_and_change_figures("this model", blank, Example(0, x), NAMES, 1.0)
    assert figure.lines[-1] == "change of 0.04: too small to see"


def test_inversions_are_compared_with_the_judge_s_prediction_of_the_input() -> None:
    """Of three inner layers and the outputs, two inputs: the first layer differs from the input throughout."""
    answers = torch.tensor([[3, 3], [0, 3], [0, 1], [2, 1], [0, 1]])  # the last row: of the inputs themselves
    text = survives._judge_agreement_text(survives._is_same_class_as_input(answers), "")
    assert text.startswith("The judge classifies 3 of 6 inversions of inner layers as it classifies the input")
    assert "and 1 of 2 inversions of the outputs alone" in text
    assert survives._is_same_class_as_input(answers).double().mean(1).tolist() == [0.0, 0.5, 1.0, 0.5]
