"""Commands on models whose outputs are no classes: numbers, yes/no labels, maps; with data that have such labels."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unboxed.cli import app

SOURCE = """
import torch, unboxed as ub
from torch import nn
from torch.utils.data import TensorDataset

def _made(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval(), ub.Pixels((1, 8, 8))

def regression():
    return _made(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))

multilabel = regression

def map():
    return _made(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))

X = torch.rand(6, 1, 8, 8)
regression_data = TensorDataset(X, torch.randn(6, 2))
multilabel_data = TensorDataset(X, torch.randint(0, 2, (6, 2)))
map_data = TensorDataset(X, torch.randint(0, 3, (6, 8, 8)))
"""
OUTPUTS = {"regression": "regression", "multilabel": "multilabel", "map": "logits"}
every_kind = pytest.mark.parametrize("kind", OUTPUTS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def run(command: str, file: Path, kind: str, *words: object) -> tuple[int, str]:
    shared = ["--model", f"{file}:{kind}", "--data", f"{file}:{kind}_data", "--outputs", OUTPUTS[kind]]
    done = CliRunner().invoke(app, [*command.split(), *shared, "-o", str(file.parent / "out"), *map(str, words)])
    return done.exit_code, " ".join(done.output.split())


@every_kind
def test_attack_names_a_command_that_works(kind: str, file: Path) -> None:
    code, text = run("attack", file, kind, "--eps", 0.1, "-q")
    assert code == 2
    assert "the label of" not in text
    command = re.search(r"use unboxed (run pgd .+?\")(?: \(|$)", text)[1].replace("(k)", "(1)").replace("(c)", "(0)")
    words = shlex.split(command)
    code, text = run("run pgd", file, kind, *words[2:], "--n", 2)
    assert code == 0, text
    assert "meet the objective" in text
    assert (file.parent / "out" / "attack.png").is_file()


@every_kind
def test_an_attack_without_an_objective_names_its_option(kind: str, file: Path) -> None:
    for name in ("square", "universal", "deepfool"):
        code, text = run(f"run {name}", file, kind, "--eps", 0.1)
        assert code == 2
        assert 'give --objective "' in text
        assert "ub." not in text
        assert "Box(" not in text


@every_kind
def test_an_attack_raises_the_loss_from_the_labels_of_the_data(kind: str, file: Path) -> None:
    code, text = run("run pgd", file, kind, "--eps", 0.5, "--n", 4)
    assert code == 0, text
    assert "4 of 4 with a larger loss" in text
    before, after = map(float, re.search(r"mean loss (\S+) -> ([^\s,]+)", text).groups())
    assert 0 < before < after


@pytest.mark.usefixtures("quick_reports")
@every_kind
def test_a_report_of_such_labels(kind: str, file: Path) -> None:
    code, text = run("report", file, kind, "-q")
    assert code == 0, text
    page = (file.parent / "out" / "index.html").read_text(encoding="utf-8")
    assert {"regression": "mean absolute error", "multilabel": "average precision", "map": "intersection over union"}[
        kind
    ] in page
