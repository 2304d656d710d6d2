"""`unboxed influence` on tables: of classes, of numbers and of yes/no labels; rows keep their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import unboxed as ub
from unboxed import cli
from unboxed.plots import charts
from unboxed.plots.results import influence as influence_plots

SOURCE = """
import torch, unboxed as ub
from torch import nn
from torch.utils.data import TensorDataset

def made(n):
    torch.manual_seed(0)
    return nn.Linear(2, n), ub.Features(("age", "height"), mean=(40, 1.7), std=(20, 0.1))

number = lambda: made(1)
yes_no = lambda: made(3)
classes = lambda: made(2)
yes_no_data = TensorDataset(torch.rand(9, 2), torch.randint(0, 2, (9, 3)))
"""

pytestmark = pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    rows = [f"{i},{20 + 3 * i},{1.5 + 0.01 * (i * 7 % 11)},{2000 + 900 * i},{'ab'[i % 2]}" for i in range(12)]
    rows[1] = rows[1].rsplit(",", 2)[0] + ",,"  # without labels
    (tmp_path / "train.csv").write_text("\n".join(["id,age,height,price (USD),kind", *rows]))
    (tmp_path / "new.csv").write_text("\n".join(["id,age,height,kind", *(f"{i},{30 + i},1.7,b" for i in range(4))]))
    return tmp_path


def influence(folder: Path, model: str, *words: object, train: str = "train.csv", query: str = "train.csv") -> Result:
    files = ["--train", folder / train, "--query", folder / query] if train.endswith(".csv") else []
    shared = ["influence", "--model", f"{folder / 'mine.py'}:{model}", *files, "-o", folder / "out", "-q"]
    return CliRunner().invoke(cli.app, [*map(str, (*shared, *words))], env={"COLUMNS": "200"})


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "influence.json").read_text())


def test_a_regression_has_the_scores_of_the_function(folder: Path) -> None:
    done = influence(
        folder, "number", "--outputs", "regression", "--label", "price (USD)", "--n", 2, "--solver", "exact"
    )
    assert done.exit_code == 0, done.output
    assert "label 2,000" in done.output
    facts = facts_of(folder)
    assert facts["unit"] in ("half squared error per example left out", "rank only: sizes mean nothing")
    box = ub.load(f"{folder / 'mine.py'}:number", outputs="regression")
    data = ub.data.table(folder / "train.csv", box, label="price (USD)").tensors()
    result = ub.influence.influence_functions(box, data.x[:2], data.y[:2], (data.x, data.y), solver="exact")
    best = facts["queries"][0]["helpful"][0]
    assert best["example"] == int(result.top(1)[0, 0])
    assert best["score"] == pytest.approx(float(result.scores.max(1).values[0]))


def test_yes_no_labels_are_named(folder: Path) -> None:
    data = f"{folder / 'mine.py'}:yes_no_data"
    words = ["--train", data, "--query", data, "--outputs", "multilabel", "--classes", "red,round,old", "--n", 2]
    done = influence(folder, "yes_no", *words, train="")
    assert done.exit_code == 0, done.output
    labels = {e["label"] for query in facts_of(folder)["queries"] for e in (*query["helpful"], *query["harmful"])}
    assert labels
    assert all({*label.split(", ")} <= {"red", "round", "old", "none"} for label in labels)


def test_the_query_needs_no_column_of_labels(folder: Path) -> None:
    done = influence(folder, "classes", "--label", "kind", "--n", 1, "--no-verdict", query="new.csv")
    assert done.exit_code == 0, done.output
    (folder / "new.csv").write_text("id,age,height\n0,30,1.7\n")
    assert influence(folder, "classes", "--label", "kind", "--no-verdict", query="new.csv").exit_code == 0
    wrong = influence(folder, "classes", "--label", "knid")
    assert wrong.exit_code == 2
    assert "no column 'knid'" in wrong.output


def test_a_solver_is_refused_by_methods_without_one(folder: Path) -> None:
    done = influence(folder, "classes", "--label", "kind", "--method", "gradient_dot", "--solver", "cg")
    assert done.exit_code == 2
    assert "(influence_functions)" in done.output
    assert "no solver 'cgg'" in influence(folder, "classes", "--label", "kind", "--solver", "cgg").output


def test_the_figure_of_a_table_names_rows_with_scores_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[dict[str, float], str]] = []

    def noted(values: dict[str, float], *, title: str, label: str) -> Any:
        drawn.append((values, title))
        return charts.signed_bar_chart(values, title=title, label=label)

    monkeypatch.setattr("unboxed.plots.results.influence.signed_bar_chart", noted)
    scores = torch.tensor([[3e-6, -4e-6, 1e-6, 0.0]])
    result = ub.influence.Influence(scores, "one run", input=torch.rand(1, 2), train_labels=torch.tensor([0, 1, 0, 1]))
    ub.plots.figures(result)
    influence_plots.influence_figure(result, train_names=["a", "photo of row 2", "b", "c"], query_names=["query 4"])
    (first, title), (second, named) = drawn
    assert (title, named) == ("query 0", "query 4")
    assert first["label 0, example 0"] == pytest.approx(3e-6)
    assert second["label 1, photo of row 2"] == pytest.approx(-4e-6)


def test_cells_of_small_values_have_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    texts: list[str] = []
    write = Axes.text
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, s, **how: (texts.append(s), write(axes, x, y, s, **how))[1])
    charts.matrix_plot([[5e-6, -1.2e-6, 0.0]], ["a"], ["b", "c", "d"], kind="signed")
    charts.matrix_plot([[0.5, 0.001, 123.4]], ["a"], ["b", "c", "d"])
    assert texts == ["5e−6", "−1.2e−6", "0", "0.50", "0.00", "123"]


def test_images_have_the_names_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = ub.data.digits("test").first(6)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        path = tmp_path / str(int(label)) / f"a_name_that_differs_at_its_end_{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image[0] * 255).byte().numpy()).save(path)
    drawn: list[Any] = []
    drawing = influence_plots.influence_sheet
    monkeypatch.setattr(influence_plots, "influence_sheet", lambda *a: drawn.append(a) or drawing(*a))
    words = ["influence", "--model", "zoo:digits-cnn", "--query", str(path), "--train", str(tmp_path), "-o"]
    done = CliRunner().invoke(cli.app, [*words, str(tmp_path / "out"), "--no-verdict", "-q"], env={"COLUMNS": "79"})
    assert done.exit_code == 0, done.output
    rows, _, _, names = drawn[0]
    assert names == ["…end_5.png"]
    captions = {tile.caption.split("\n")[-1] for tile in rows[0][1:] if tile is not None}
    assert captions <= {f"…end_{i}.png" for i in range(6)}
    assert len(captions) == 6
    helpful = json.loads((tmp_path / "out" / "influence.json").read_text())["queries"][0]["helpful"][0]
    assert Path(helpful["file"]).name[-5:] in done.output.replace("\n", "")
