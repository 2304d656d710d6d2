"""One function draws every result: all cards' examples, all checks, tables, signals, several inputs."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unboxed as ub
from checks.outlier_vit import images_with_white_patches, outlier_box
from contracts.common import CARDS, REFUSED, call_example, make_case
from contracts.test_texts import text_case
from unboxed import checks
from unboxed.engine.result_views import ResultViewsMixin
from unboxed.influence._data import random_card_training_data
from unboxed.plots import figures, views
from unboxed.plots.charts import bar_chart, line_chart, matrix_plot
from unboxed.report import result_page

pytestmark = pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
MIN_PIXELS, MAX_WIDTH, MAX_HEIGHT = 60, 1300, 6000
MAX_REPR_LENGTH, MAX_MEDIAN_REPR_LENGTH = 400, 200
repr_lengths: dict[str, int] = {}
kinds_drawn: set[tuple[Any, ...]] = set()  # (type, names of its figures) that were drawn with a box and data
NO_FIGURE = {
    "Trigger": "a setting of the planted shortcut, no result",
    "PlantedTraining": "a training and its queries, no result",
}


def assert_sane(images: Any) -> None:
    """There is one, and each is an image of a size that fits a page, with something on it."""
    assert images
    for name, image in images.items():
        assert isinstance(image, Image.Image), name
        assert min(image.size) >= MIN_PIXELS, (name, image.size)
        assert image.width <= MAX_WIDTH, (name, image.size)
        assert image.height <= MAX_HEIGHT, (name, image.size)
        assert np.asarray(image.convert("L")).std() > 1, f"{name} is blank"


@pytest.mark.parametrize("name", CARDS)
def test_every_result_has_a_figure_and_shows_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each from what it carries alone; with the box and data one of each type, with `--all-pairs` all."""
    refused = {model for method, model in REFUSED if method == name}
    takes = next((model for model in ("plain", "attention", "transformer") if model not in refused), None)
    case = text_case() if takes is None else make_case(takes)
    result = call_example(CARDS[name], case)
    pictures = figures(result)  # what it carries is enough
    assert_sane(pictures)
    kind = (type(result), *pictures)
    if kind not in kinds_drawn or request.config.getoption("--all-pairs"):
        kinds_drawn.add(kind)
        data: Any = random_card_training_data(case.box) if CARDS[name].family == "influence" else (case.x, case.y)
        if name in ("nearest_neighbors", "dictionary", "discover"):  # their examples have data of their own
            data = None
        assert_sane(figures(result, case.box, data=data))
    for module in (views, result_page):  # what is shown four times is drawn once
        monkeypatch.setattr(module, "figures", lambda *args, **kwargs: pictures)
    repr_lengths[name] = assert_shows_itself(result, tmp_path)


def assert_shows_itself(result: Any, folder: Path) -> int:
    """A repr of one line, whose length is returned, a picture with words in a notebook, and files."""
    assert isinstance(result, ResultViewsMixin)
    text = repr(result)
    assert "\n" not in text
    assert len(text) <= MAX_REPR_LENGTH, text
    assert "tensor(" not in text
    html = result._repr_html_()
    assert html is not None
    assert html.count("<img ") == 1
    assert "alt=" in html
    with Image.open(result.save(folder / "a.png")) as written:
        assert written.size == result.image().size
    json.loads(result.save(folder / "a.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    page = result.save(folder / "a.html").read_text()
    assert page.startswith("<!doctype html>")
    assert 'src="pictures/' not in page
    return len(text)


def test_the_median_repr_is_short() -> None:
    if len(repr_lengths) < len(CARDS) / 4:
        pytest.skip("the results were made in another process")
    assert statistics.median(repr_lengths.values()) <= MAX_MEDIAN_REPR_LENGTH


# -- checks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case() -> Any:
    return make_case("plain")


def results_of_checks(c: Any) -> dict[str, Any]:
    """A result of each type that the public functions of `checks` return."""
    box, x, y = c.box, c.x, c.y
    method = ub.attribution.gradient
    maps = method(box, x, y)
    trigger = checks.Trigger(tuple(x.shape[1:]), classes=(0, 1), side=2, margin=1)
    results = [
        checks.randomization(box, x, method, y, keep_maps=True),
        checks.label_randomization(box, make_case("batchnorm").box, x, method, y),
        checks.random_input(box, x, method, y),
        checks.constant_model(box, x, method, y),
        checks.edge_control(box, x, method, y),
        checks.map_similarity(maps, maps.roll(1, 0)),
        checks.deletion(box, x, maps, y),
        checks.road(box, x, maps, y),
        checks.sensitivity_n(box, x, maps, y, n_samples=4),
        checks.infidelity(box, x, maps, y, n_samples=4),
        checks.verdict(box, x, method, y),
        checks.plant_shortcut(x, y, trigger),
        checks.tokens(outlier_box(), images_with_white_patches(4)[0]),
    ]
    return {type(result).__name__: result for result in results}


def test_every_result_of_a_check_has_a_figure(case: Any) -> None:
    results = results_of_checks(case)
    for result in results.values():
        assert_sane(figures(result, case.box))
    types = {n for n, t in vars(checks).items() if isinstance(t, type) and dataclasses.is_dataclass(t)}
    registered = {t.__name__ for t in figures.registry}
    assert types - registered == set(NO_FIGURE)
    assert types - {*results} - {*NO_FIGURE} == {"ShortcutReport"}  # trains models: tests/checks/test_shortcut.py


def recorded(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[dict[str, Any]]:
    """The keyword arguments that a function of a module of figures is called with, from now on."""
    calls: list[dict[str, Any]] = []
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **named: calls.append(named) or function(*args, **named))
    return calls


def test_a_reliability_diagram_has_the_number_of_examples_of_each_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    from unboxed.plots.results import robustness

    charts = recorded(monkeypatch, robustness, "line_chart")
    result = ub.robustness.calibration(ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("test"))
    assert_sane(figures(result))
    (texts,) = charts[0]["point_texts"].values()
    assert [int(text) for text in texts] == [n for n in result.uncalibrated.bin_counts.tolist() if n]
    assert sum(map(int, texts)) == 359
    assert "numbers: examples of each bin" in charts[0]["x_label"]


def test_an_attack_on_a_table_says_what_is_predicted_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    from unboxed.plots.results import adversarial

    panels = recorded(monkeypatch, adversarial, "column_change_bars")
    heads = recorded(monkeypatch, adversarial, "contact_sheet")
    torch.manual_seed(0)
    box = ub.Box(nn.Linear(3, 2), ub.Features(("p", "q", "r")), outputs="logits", classes=["barolo", "barbera"])
    x = torch.randn(9, 3)
    result = ub.adversarial.fgsm(box, x, box.predict(x), eps=0.4)
    assert_sane(figures(result, box))
    row = int(panels[0]["title"].split(",")[0].removeprefix("example "))
    before, after = (box.probs(h[row][None])[0] for h in (x, result.images))
    first, second = (f"{box.classes[int(p.argmax())]}: {float(p.max()):.1%}" for p in (before, after))
    assert panels[0]["title"] == f"example {row}, {first} -> {second}"
    assert 0 < int(result.success.sum()) < 9
    assert heads[0]["title"] == f"{int(result.success.sum())} of 9 fooled; 4 of 9 shown"
    panels.clear()
    assert_sane(figures(result))
    assert panels[0]["title"] == f"example {row}, adversarial"


def test_an_attack_on_images_and_tables_shows_both() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 3), nn.Linear(2, 3)

        def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return self.a(image.flatten(1)) + self.b(table)

    torch.manual_seed(0)
    inputs = ub.MultiInput({"image": ub.Pixels((1, 4, 4)), "table": ub.Features(["p", "q"])})
    box, x = ub.Box(Both(), inputs, outputs="logits"), {"image": torch.rand(3, 1, 4, 4), "table": torch.randn(3, 2)}
    result = ub.adversarial.pgd(box, x, box.predict(x), eps=0.1)
    assert list(figures(result, box)) == ["attack", "change table"]
    assert_sane(figures(result, box))


@pytest.mark.parametrize(("n", "said"), [(13, "1 smaller one is not shown"), (14, "2 smaller ones are not shown")])
def test_columns_that_are_not_drawn_are_counted(n: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, text, **_: labels.append(text))
    ub.plots.tables.contribution_bars(torch.arange(n) + 1.0, None, [f"c{i}" for i in range(n)], label="logit")
    assert labels == [f"logit; {said}"]


# -- other inputs ------------------------------------------------------------------------------------------------------


def test_an_attribution_of_a_table_names_its_features() -> None:
    box = ub.Box(nn.Linear(3, 2), ub.Features(("age", "height", "weight")), outputs="logits")
    result = ub.attribution.gradient_x_input(box, torch.rand(2, 3), 1)
    assert_sane(figures(result, box))
    named = figures(result)["attribution"]
    assert figures(result, box)["attribution"].tobytes() == named.tobytes()
    result.columns = {}
    assert figures(result)["attribution"].size != named.size
    assert_sane(figures(ub.adversarial.pgd(box, torch.rand(2, 3), torch.tensor([0, 1]), eps=0.5), box))


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_several_inputs_have_a_figure_each(kind: str) -> None:
    from contracts.test_multi_input import case as multi_input_case

    c = multi_input_case(kind)
    assert len(figures(ub.attribution.gradient(c.box, c.x, 0), c.box)) == 3  # all of them, and each


def test_results_of_several_models_are_drawn_by_name(case: Any) -> None:
    boxes = {"a": case.box, "b": make_case("batchnorm").box}
    images = figures(ub.compare(boxes, ub.attribution.gradient, case.x, 0))
    assert list(images) == ["side by side"]
    images = figures(ub.compare(boxes, ub.activations.maps, case.x, "conv1"))
    assert {name.rpartition(" of ")[2] for name in images} == {"a", "b"}


def test_a_photo_has_its_map_laid_over() -> None:
    from unboxed.plots.results.attribution import attribution_sheet

    maps = torch.randn(1, 1, 120, 120)
    with_photo = attribution_sheet(torch.rand(1, 3, 120, 120), maps)
    assert with_photo.height > 3 * 120
    assert attribution_sheet(None, maps).height < 2 * 120


def test_a_map_that_is_positive_everywhere_still_starts_at_zero() -> None:
    """A page says that what is pale does not count: white must not stand for a large value."""
    from unboxed.plots.colors import SIGNED_COLORMAP
    from unboxed.plots.draw import map_to_rgb_and_range_text

    rgb, text = map_to_rgb_and_range_text(torch.linspace(0.7, 1, 64).view(1, 8, 8))
    assert text == "0 to 1"
    assert map_to_rgb_and_range_text(torch.linspace(0, 1, 64).view(1, 8, 8))[1] == "0 to 1"  # a CAM, somewhere zero
    assert (rgb.astype(int).sum(-1) < SIGNED_COLORMAP[len(SIGNED_COLORMAP) * 8 // 10].astype(int).sum()).all()
    assert map_to_rgb_and_range_text(torch.full((1, 4, 4), 0.7))[1] == "the same everywhere"
    assert map_to_rgb_and_range_text(torch.linspace(-1, 2, 64).view(1, 8, 8))[1].startswith("±")


def test_a_sheet_of_maps_that_are_positive_everywhere_starts_at_zero() -> None:
    """It started at the smallest value of each, drawn like a value of zero: a map from 5 to 6 looked like 0 to 1."""
    from unboxed.plots.colors import SIGNED_COLORMAP
    from unboxed.plots.results.attribution import attribution_sheet

    page = np.asarray(attribution_sheet(None, torch.linspace(5, 6, 64).view(1, 1, 8, 8)))
    assert (page == SIGNED_COLORMAP[-1]).all(-1).sum() > 100
    pale = (page == SIGNED_COLORMAP[len(SIGNED_COLORMAP) * 6 // 10]).all(-1)  # 0.2 of the largest value
    assert pale.sum() < 100, "the scale has this color, no map has"


# -- unknown types, and types of one's own -----------------------------------------------------------------------------


@dataclasses.dataclass
class Mine:
    value: float


def test_an_unknown_type_has_no_figure_until_one_is_registered() -> None:
    assert figures(Mine(1.0)) == {}
    assert figures(torch.zeros(())) == {}

    @figures.register(Mine)
    def _(result: Mine, box: Any = None, *, data: Any = None) -> dict[str, Image.Image]:
        return {"bar": bar_chart({"value": result.value})}

    assert_sane(figures(Mine(1.0)))
    assert list(figures([Mine(1.0), Mine(2.0)])) == ["bar of 0", "bar of 1"]


# -- charts ------------------------------------------------------------------------------------------------------------


def test_charts_leave_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    from matplotlib import pyplot

    opened = pyplot.get_fignums()
    assert_sane({"lines": line_chart({"$a_1": ([0, 1], [1, 2]), "b": ([0, 1], [0, 1])}, ticks=["x", "y"])})
    assert_sane({"bars": bar_chart({"a": [1, 2], "b": [0, -1]}, ["x", "y"])})
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == opened


def test_a_matrix_has_a_cell_for_each_value() -> None:
    from unboxed.plots.colors import SIGNED_COLORMAP

    page = np.asarray(matrix_plot([[1.0, -1.0], [0.0, np.nan]], ["a", "b"], ["c", "d"], kind="signed"))
    for color in (SIGNED_COLORMAP[0], SIGNED_COLORMAP[-1], (128, 128, 128)):
        assert (page == color).all(-1).sum() > 30**2
    assert matrix_plot(np.eye(3), "abc", "abc", transparent=True).mode == "RGBA"


def test_run_writes_the_figures(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from unboxed.cli import app

    model = ["--model", "zoo:digits-cnn", "--data", "digits:test", "--n", "2", "-o", str(tmp_path)]
    for method, names, settings in (
        ("gradient", {"attribution"}, []),
        ("universal", {"perturbation", "fooling_rate"}, ["--eps", "0.1", "--steps", "2"]),
    ):
        done = CliRunner().invoke(app, ["run", method, *model, *settings])
        assert done.exit_code == 0, done.output
        written = {p.stem for p in tmp_path.glob("*.png")}
        assert names <= written, written


def test_an_option_that_holds_data_names_a_data_set(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from unboxed.cli import app

    model = ["--model", "zoo:digits-cnn", "--data", "digits:test", "--n", "2", "-o", str(tmp_path)]
    done = CliRunner().invoke(
        app, ["run", "expected_gradients", *model, "--references", "digits:test", "--n-samples", "4"]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "attribution.png").is_file()


def test_fooled_examples_are_drawn_first() -> None:
    """Of eight examples six are shown; the only one that was fooled is the last of them."""
    from dataclasses import replace

    from unboxed.plots.results.adversarial import _rows_fooled_first, _success_title

    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits("test").first(8)
    result = ub.adversarial.fgsm(box, x, y, eps=0.1)
    result = replace(result, success=torch.arange(8) == 7)
    assert _rows_fooled_first(result) == [7, 0, 1, 2, 3, 4]
    assert _success_title(result) == "1 of 8 fooled; 6 of 8 shown"
    assert_sane(figures(result, box))
