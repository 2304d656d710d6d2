"""The report's section on training examples, and `unboxed influence`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import unboxed as ub
from models import digits_box
from unboxed import cli
from unboxed.checkpointing import tensor_digest
from unboxed.influence import Influence
from unboxed.plots.results.influence import format_signed_score
from unboxed.report.influence import SECTION
from unboxed.report.words import format_number

pytestmark = pytest.mark.filterwarnings("ignore:scores of up to")


@pytest.fixture(scope="module")
def train() -> tuple[Tensor, Tensor]:
    x, y = ub.data.digits("train").first(80)
    return x, y


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, train: tuple[Tensor, Tensor]) -> tuple[Any, list[str]]:
    """A report of this section, and the weights of each model whose curvature was fitted for it."""
    module = importlib.import_module("unboxed.influence.solvers.kronecker")
    real, fitted = module.fit_fisher, list[str]()

    def counted(gradients: Any, *args: Any, **settings: Any) -> Any:
        fitted.append(tensor_digest(*gradients.parameters.values()))
        return real(gradients, *args, **settings)

    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit_fisher", counted)
        test = ub.data.digits("test").first(20)
        made = ub.report(digits_box(), test, folder, training=train, sections=["influence"], quiet=True)
    return made, fitted


def test_the_report_shows_the_training_examples_of_its_answers(written: Any, train: tuple[Tensor, Tensor]) -> None:
    box, test, (made, _) = digits_box(), ub.data.digits("test").first(20), written
    assert made.failures == {}
    facts = json.loads((made.path.parent / "report.json").read_text())["findings"]["influence"]
    assert facts["n_train"] == len(train[0])
    x, _ = test
    expected = ub.influence.influence_functions(box, x, None, train, solver="ekfac")
    for answer in facts["answers"]:
        row = answer["query"]["row"]
        helpful = [e["index"] for e in answer["helpful"]]
        assert helpful == expected.top(len(helpful))[row].tolist()
        assert [e["label"] for e in answer["helpful"]] == [box.classes[int(train[1][i])] for i in helpful]
        assert all(e["score"] > 0 for e in answer["helpful"])
        assert all(e["score"] < 0 for e in answer["harmful"])
    page = made.path.read_text()
    assert "Who taught it that?" in page
    assert "its pixels" in page
    assert facts["verdict"]["grade"] == "inconclusive"  # nothing was retrained
    assert {test["name"] for test in facts["verdict"]["tests"]} >= {"random weights", "same on top"}


def small_digits(split: str, n: int) -> tuple[Tensor, Tensor]:
    """(n, 1, 14, 14)."""
    x, y = ub.data.digits(split).first(n)
    return torch.nn.functional.avg_pool2d(x, 2), y


def test_a_training_that_can_be_run_again_is_unrolled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train = small_digits("train", 80)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(196, 10))
    training = ub.influence.ModelTraining(model, ub.Pixels((1, 14, 14)), train, epochs=2, batch_size=16)
    box = training.box(training.run())
    ub.report(box, train, tmp_path / "r", training=training, sections=["influence"], quiet=True)
    facts = json.loads((tmp_path / "r" / "report.json").read_text())["findings"]["influence"]
    assert facts["method"] == "Unrolled differentiation"
    assert facts["noise_to_signal"] < 0.15
    assert facts["verdict"]["grade"] == "pass"
    assert facts["verdict"]["tests"][-1]["value"] > 0.9
    assert "Do the scores come true?" in (tmp_path / "r" / "index.html").read_text()


def test_without_training_data_the_section_is_left_out(tmp_path: Path) -> None:
    box, test = digits_box(), ub.data.digits("test").first(8)
    asked = ub.report(box, test, tmp_path / "a", sections=["influence"], quiet=True)
    assert "This section needs the training data" in asked.path.read_text()
    from unboxed.report import _select_sections

    assert SECTION not in _select_sections(None, box)
    assert SECTION in _select_sections(None, box, has_training=True)


def test_the_command_lists_helpful_and_harmful_examples(tmp_path: Path) -> None:
    arguments = ["influence", "--model", "zoo:digits-cnn", "--train", "digits:train", "--query", "digits:test"]
    result = CliRunner().invoke(cli.app, [*arguments, "--n", "2", "--train-n", "60", "--k", "3", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "query 0: predicted" in result.output
    facts = json.loads((tmp_path / "influence.json").read_text())
    assert facts["train_examples"] == 60
    assert len(facts["queries"]) == 2
    scores = [e["score"] for e in facts["queries"][0]["helpful"]]
    assert scores == sorted(scores, reverse=True)
    assert (tmp_path / "influence.png").stat().st_size > 1000
    assert facts["verdict"]["grade"] == "inconclusive"
    assert "Not compared with anything real" in result.output


@pytest.mark.filterwarnings("ignore:1 example can't be read and is left out")
def test_the_command_names_examples_by_their_place_and_file(tmp_path: Path) -> None:
    """A file that breaks off is counted in the places, and listed."""
    for i, (image, label) in enumerate(zip(*ub.data.digits("train").first(40), strict=True)):
        file = tmp_path / "train" / str(int(label)) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).byte().numpy()).save(file)
    paths = ub.data.folder(tmp_path / "train", digits_box()).paths
    paths[5].write_bytes(paths[5].read_bytes()[:60])
    arguments = ["influence", "--model", "zoo:digits-cnn", "--train", str(tmp_path / "train"), "--query", "digits:test"]
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.app, [*arguments, "--n", "1", "--k", "39", "--no-verdict", "-o", str(out)])
    assert result.exit_code == 0, result.output
    facts = json.loads((out / "influence.json").read_text())
    assert facts["train_examples"] == 39
    assert [entry["file"] for entry in facts["skipped"]] == [str(paths[5])]
    entries = [e for side in ("helpful", "harmful") for e in facts["queries"][0][side]]
    assert {e["example"] for e in entries} == {*range(40)} - {5}
    assert all(e["file"] == str(paths[e["example"]]) for e in entries)
    assert all(e["label"] == Path(e["file"]).parent.name for e in entries)


def test_the_report_fits_the_curvature_once_for_a_model(written: Any) -> None:
    """For scores, pixels and the verdict; once more for each model with random weights."""
    _, fitted = written
    own = tensor_digest(*dict(digits_box().model.named_parameters()).values())
    assert fitted.count(own) == 1
    assert len({*fitted}) == len(fitted) > 1


def test_the_command_goes_on_from_a_store(tmp_path: Path) -> None:
    arguments = ["influence", "--model", "zoo:digits-cnn", "--train", "digits:train", "--query", "digits:test"]
    arguments += ["--train-n", "60", "--no-verdict", "--store", str(tmp_path / "store"), "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(cli.app, arguments)
    assert refused.exit_code == 2
    assert "--method gradient_dot" in refused.output
    first = CliRunner().invoke(cli.app, [*arguments, "--method", "gradient_dot"])
    assert first.exit_code == 0, first.output
    made = (tmp_path / "out" / "influence.json").read_text()
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "store").iterdir()}
    again = CliRunner().invoke(cli.app, [*arguments, "--method", "gradient_dot"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "influence.json").read_text() == made
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "store").iterdir()} == files  # nothing was computed again
    x, y = ub.data.digits("train").first(60)
    queries, _ = ub.data.digits("test").first(4)
    expected = ub.influence.gradient_dot(digits_box(), queries, None, (x, y)).top(8)[0].tolist()
    assert [e["example"] for e in json.loads(made)["queries"][0]["helpful"]] == expected


def test_a_method_that_needs_more_is_not_offered(tmp_path: Path) -> None:
    arguments = ["influence", "--model", "zoo:digits-cnn", "--train", "digits:train", "--query", "digits:test"]
    result = CliRunner().invoke(cli.app, [*arguments, "--method", "unrolled", "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "unrolled" in result.output


def test_figures_show_the_examples_that_they_name(train: tuple[Tensor, Tensor]) -> None:
    scores = torch.zeros(1, 80)
    scores[0, 7], scores[0, 3] = 2.0, -1.0
    result = Influence(scores, "one run", input=train[0][:1], target=torch.tensor([4]), train_labels=train[1])
    assert set(ub.plots.figures(result, digits_box(), data=train)) == {"influence"}
    assert set(ub.plots.figures(result)) == {"influence"}  # without the data: a table of scores


@pytest.mark.parametrize(
    ("score", "text"), [(0.123, "+0.12"), (-3.5e-5, "−3.5e−5"), (140.2, "+140"), (-1234.0, "−1,234"), (99.0, "+99")]
)
def test_scores_are_short(score: float, text: str) -> None:
    assert format_signed_score(score) == text


@pytest.mark.usefixtures("quick_reports")
def test_a_removal_is_proved_and_planted_mislabels_come_first(tmp_path: Path) -> None:
    x, y = small_digits("train", 200)
    wrong = [3, 50, 120]
    y = y.clone()
    y[wrong] = (y[wrong] + 3) % 10
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(196, 32), torch.nn.GELU(), torch.nn.Linear(32, 10)
    training = ub.influence.ModelTraining(
        torch.nn.Sequential(*layers), ub.Pixels((1, 14, 14)), (x, y), epochs=6, batch_size=20
    )
    box = training.box(training.run())
    written = ub.report(
        box, small_digits("test", 60), tmp_path / "r", training=training, sections=["influence"], quiet=True
    )
    facts = json.loads((tmp_path / "r" / "report.json").read_text())["findings"]["influence"]
    assert {s["index"] for s in facts["suspected_mislabels"][:4]} >= set(wrong)
    removal = facts["removal"]
    assert removal["is_flipped"] == (removal["margin_after"] < 0)
    assert ("Remove these, and it flips" in written.path.read_text()) == removal["is_flipped"]
    assert removal["margin"] >= 0.5  # no single example flips it


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize("is_repeatable", [False, True])
def test_rows_of_a_table_stand_beside_the_rows_that_taught_them(is_repeatable: bool, tmp_path: Path) -> None:
    """Without std or bounds, and with training rows beyond the range of the reported ones."""
    torch.manual_seed(0)
    names = [f"column {k}" for k in range(7)]
    x = torch.randn(60, 7) * torch.arange(1, 8) * 10
    y = (x[:, 0] + x[:, 1] > 0).long()
    y[3] = 1 - y[3]
    model, inputs = (
        torch.nn.Sequential(torch.nn.BatchNorm1d(7, affine=False), torch.nn.Linear(7, 2)),
        ub.Features(names),
    )
    training: Any = (x, y)
    box = ub.Box(model, inputs, outputs="logits", classes=["no", "yes"])
    if is_repeatable:
        model = torch.nn.Sequential(torch.nn.Linear(7, 2))
        training = ub.influence.ModelTraining(model, inputs, (x, y), epochs=2, batch_size=20, lr=1e-3)
        box = training.box(training.run())
    rows, labels = x[:12] / 3, y[:12]
    made = ub.report(box, (rows, labels), tmp_path, training=training, sections=["influence"], quiet=True)
    assert made.failures == {}
    answer = json.loads((tmp_path / "report.json").read_text())["findings"]["influence"]["answers"][0]
    page = " ".join(made.path.read_text(encoding="utf-8").split())
    distance = ((rows[answer["query"]["row"]] - x.mean(0)) / x.std(0)).abs()
    assert [k for k, _ in answer["columns"]] == distance.topk(5).indices.tolist()
    for example in answer["helpful"]:
        values = [format_number(float(x[example["index"], k])).replace("-", "−") for k, _ in answer["columns"]]
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        assert f"<td>training {example['index']}</td><td>{example['label']}</td>{cells}" in page
    assert answer["helpful"]
    assert "The columns are those in which it is farthest from the training rows." in page
