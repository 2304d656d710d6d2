"""`--label COLUMN`: every command that takes data has it, and all options that messages about data name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import unboxed as ub
from unboxed import cli

GROUP: Any = typer.main.get_command(cli.app)
NO_DATA_OF_A_MODEL = ("train",)  # of the zoo, on its data sets


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def commands_that_take_data() -> dict[str, Any]:
    commands = dict(GROUP.commands)
    methods = commands.pop("run")
    commands |= {f"run {name}": methods.get_command(None, name) for name in ("gradient", "influence_functions", "tcav")}
    names = {"--data", "--train", "--query", "--attribute", "source"}
    return {n: c for n, c in commands.items() if options_of(c) & names and n not in NO_DATA_OF_A_MODEL}


@pytest.mark.parametrize("name", commands_that_take_data())
def test_commands_have_the_options_that_messages_about_data_name(name: str) -> None:
    assert {"--label", "--classes", "--outputs", "--shape"} <= options_of(commands_that_take_data()[name])


def test_commands_with_data_are_found() -> None:
    assert {"explain", "influence", "attack", "report", "run gradient"} <= {*commands_that_take_data()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(
        "import torch, unboxed as ub\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Linear(2, 1), ub.Features(('age', 'height'), mean=(40, 1.7), std=(20, 0.1))\n"
    )
    (tmp_path / "rows.csv").write_text("id,age,height,price (USD)\n0,30,1.7,900\n1,40,1.8,1200\n2,50,1.6,800\n")
    return tmp_path


def run(folder: Path, command: str, *words: str) -> str:
    shared = ["--model", f"{folder / 'mine.py'}:make", "--outputs", "regression", "--label", "price (USD)", "-q"]
    done = CliRunner().invoke(cli.app, [*command.split(), *shared, "-o", str(folder / "out"), *words])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_explain_names_a_regression_by_its_column(folder: Path) -> None:
    text = run(folder, "explain", str(folder / "rows.csv"), "--n", "1", "--method", "gradient")
    assert re.search(r"The model predicts price \(USD\) \(-?[\d.,]+\)", text)
    assert "Why price (USD)?" in text
    assert "output 0" not in text


def test_explain_in_python_names_it_too(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    box = ub.load(f"{folder / 'mine.py'}:make", outputs="regression")
    frame = pandas.DataFrame({"age": [30.0], "height": [1.7], "price (USD)": [900.0]})
    assert ub.explain(box, frame, methods=["gradient"]).question == "Why price (USD)?"
    assert ub.explain(box, frame[["age", "height"]], methods=["gradient"]).question == "Why output?"


def test_other_data_of_a_method_take_the_label_column(folder: Path) -> None:
    rows = str(folder / "rows.csv")
    run(folder, "run influence_functions", "--data", rows, "--train", rows, "--n", "1", "--damping", "1e9")
