"""The page's words fit the kind of input: tables have rows and columns, several inputs have their names."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unboxed as ub
from unboxed.cards import cards
from unboxed.plots.text import hyphens_to_minus_signs
from unboxed.report import report
from unboxed.report.blocks import Code, Figure, figures_per_row
from unboxed.report.input_nouns import column_names_and_values, input_shapes_text
from unboxed.report.pictures import PageImage
from unboxed.report.render import _jinja_environment
from unboxed.report.words import format_number

OF_IMAGES = re.compile(r"\b(super)?(pixels?|images?|light)\b", re.IGNORECASE)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.picture, self.table, self.head = nn.Linear(16, 8), nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, picture: Tensor, table: Tensor) -> Tensor:
        return self.head((self.picture(picture.flatten(1)) + self.table(table)).relu())


BOTH = {"picture": ub.Pixels((1, 4, 4)), "table": ub.Features(("age", "height"))}


def several(n: int) -> tuple[ub.Box, dict[str, Tensor]]:
    x = {"picture": torch.rand(n, 1, 4, 4), "table": torch.randn(n, 2)}
    return ub.Box(Both().eval(), ub.MultiInput(BOTH), outputs="logits"), x


def words(page: Path) -> str:
    """The text of a page, without its style and scripts."""
    bare = re.sub(r"<(style|script).*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", bare)).split())


ANY_INPUT = [
    c for c in cards() if not {"pixels", "images", "texts", "generator"} & {*c.needs} and c.family != "synthesis"
]


def test_methods_for_any_input_do_not_speak_of_images() -> None:
    assert [c.key for c in ANY_INPUT if OF_IMAGES.search(f"{c.shows} {c.does_not_show}")] == []


def test_a_page_about_a_table_does_not_speak_of_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    box = ub.Box(model, ub.Features(("a", "b", "c")), outputs="logits")
    x = torch.randn(12, 3)
    sections = ["overview", "activations", "units", "map", "attacks", "compare"]  # "ranking" lists methods for images
    made = report(box, (x, box.predict(x)), tmp_path, sections=sections, quiet=True)
    assert made.failures == {}
    said = words(made.path).replace("These sections need a model that takes images; this one takes a table", "")
    assert {m.group() for m in OF_IMAGES.finditer(said)} == set()
    assert "Measured on 12 examples" in said


def test_a_page_about_several_inputs_names_them(tmp_path: Path) -> None:
    box, x = several(4)  # so few that each unit has one top example
    made = report(box, (x, torch.tensor([0, 1, 2, 0])), tmp_path, sections=["overview", "units", "morphs"], quiet=True)
    said = words(made.path)
    assert made.failures == {}
    assert "inputs 1×4×4 and 2" in said
    assert re.search(r"(picture \(mean\)|age|height) −?[\d.]+ \(all −?[\d.]+\)", said)
    assert "nan" not in said
    assert " – " in said  # the spread of one example
    assert "this one takes 1 image and 1 table of features" in said
    assert "One example, followed" not in said  # nothing is shown of it


class LeftHalfAndHeight(nn.Module):
    """Goes by the brightness of the picture's left half and by the second column."""

    def forward(self, picture: Tensor, table: Tensor) -> Tensor:
        score = picture[..., :2].sum((1, 2, 3)) + 4 * table[:, 1]
        return torch.stack([score, -score], 1)


@pytest.mark.usefixtures("quick_reports")
def test_each_of_several_inputs_has_its_map_by_name(tmp_path: Path) -> None:
    box, x = ub.Box(LeftHalfAndHeight().eval(), ub.MultiInput(BOTH), outputs="logits"), several(8)[1]
    made = report(box, (x, torch.arange(8) % 2), tmp_path, sections=["overview", "gradients"], quiet=True)
    assert made.failures == {}
    found = json.loads((tmp_path / "report.json").read_text())["findings"]["gradients"]
    method = getattr(ub.attribution, found["method"])
    row = found["examples"][0]["row"]
    one = {name: values[row : row + 1] for name, values in x.items()}
    means = {"baseline": {"picture": None, "table": x["table"].mean(0)}}  # of the table they are not known otherwise
    maps = method(box, one, int(box.predict(one)), **means if "baseline" in method.card.settings else {}).map
    assert not maps["picture"][..., 2:].any()  # the half that it ignores
    assert not maps["table"][0, 0].any()
    total = sum(float(m.abs().sum()) for m in maps.values())
    for part in found["parts"]:
        assert part["share"][0] == pytest.approx(float(maps[part["name"]].abs().sum()) / total, rel=1e-3)
    said = words(made.path)
    assert re.search(r"[\d.]+% is in picture and [\d.]+% is in table", said)
    assert f"picture: why {found['examples'][0]['prediction']} by {method.card.name}" in said
    assert f"height = {float(x['table'][row, 1]):.4g}".replace("-", "\u2212") in said
    assert "One example, followed" in said


def test_columns_of_several_inputs() -> None:
    _, x = several(3)
    inputs = ub.MultiInput((*BOTH.values(), ub.Features(("age",))))
    names, values = column_names_and_values(inputs, inputs.pack((*x.values(), torch.ones(3, 1))))
    assert names == ["input 0 (mean)", "input 1.age", "input 1.height", "input 2.age"]
    assert torch.allclose(values[:, 0], x["picture"].double().mean((1, 2, 3)))
    assert torch.equal(values[:, 3], torch.ones(3, dtype=torch.float64))
    assert column_names_and_values(BOTH["table"], x["table"])[0] == ["age", "height"]
    assert input_shapes_text(BOTH["picture"]) == "1×4×4"


# -- numbers and rows ------------------------------------------------------------------------------------------------


def test_numbers_have_a_minus_and_names_keep_their_hyphen() -> None:
    assert hyphens_to_minus_signs("-0.5 (-1) to ±-2, cifar-10, 2020-01-02, a/-1.png") == (
        "\u22120.5 (\u22121) to ±\u22122, cifar-10, 2020-01-02, a/-1.png"
    )
    assert hyphens_to_minus_signs("r -0.00, -0.0. (-0%) -0.004 -0e5") == "r 0.00, 0.0. (0%) \u22120.004 \u22120e5"
    drawn = _jinja_environment().from_string("{{ a }} <i title='{{ a }}'></i>").render(a="r -0.5")
    assert drawn == "r \u22120.5 <i title='r \u22120.5'></i>"


def test_code_is_left_as_it_was_typed() -> None:
    macros = _jinja_environment().get_template("blocks.html").make_module()
    assert "--eps -1" in macros.drawn(Code("unboxed attack --eps -1"))  # type: ignore[attr-defined]


def test_large_numbers_are_whole() -> None:
    assert [format_number(v) for v in (1374.2, -747.0, 0.012345, 0.0)] == ["1,374", "-747", "0.0123", "0"]


@pytest.mark.parametrize(("n", "wide", "most"), [(10, 106, 5), (10, 84, 10), (9, 106, 9 - 4), (1, 2000, 1), (0, 84, 0)])
def test_no_row_of_figures_is_left_with_one(n: int, wide: int, most: int) -> None:
    assert figures_per_row([Figure(PageImage(Image.new("L", (wide, 1)), "", None))] * n) == most


@pytest.mark.usefixtures("quick_reports")
def test_layers_with_a_number_for_a_name_are_called_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    box = ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits")
    x = torch.rand(6, 1, 8, 8)
    sections = ["activations", "units", "channels", "inversion", "deepdream", "compare"]
    made = report(box, (x, box.predict(x)), tmp_path, sections=sections, judge=box, quiet=True)
    assert made.failures == {}
    page = made.path.read_text(encoding="utf-8")
    assert "layer 0" in page
    assert re.findall(r"(?:of|from|changed|Before) \d(?:[ ,;:]*|</b>)(?:most|least|output|before)", page) == []
    assert re.findall(r"<b>\d output|<h3>\d</h3>|DeepDream of \d", page) == []
