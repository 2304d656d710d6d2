"""Commands on models whose outputs are no classes: numbers, yes/no labels, maps; with data that have such labels."""

from __future__ import annotations

import json
import re
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
def test_attack_prints_the_metrics_of_such_outputs(kind: str, file: Path) -> None:
    code, text = run("attack", file, kind, "--eps", "0.1,0.3", "-q")
    assert code == 0, text
    names = {"regression": ["MAE", "RMSE"], "multilabel": ["label accuracy", "exact match"], "map": ["pixel accuracy"]}
    numbers = json.loads((file.parent / "out" / "attack.json").read_text())
    for name in names[kind]:
        assert f"{name}, all attacks" in text
        clean, (near, far) = numbers["clean"][name][0], [v[0] for v in numbers["attacked"]["all attacks"][name]]
        assert clean <= near <= far if kind == "regression" else clean >= near >= far
        assert (file.parent / "out" / f"{name.replace(' ', '-')}.png").is_file()
    assert numbers["n"] == 6
    assert "95% interval over 6 examples" in text
    code, text = run("attack", file, kind, "--eps", 0.1, "--attack", "fgsm", "--json")
    assert code == 0, text
    assert [*json.loads(text)["attacked"]] == ["all attacks", "fgsm"]


@every_kind
def test_an_attack_by_an_objective(kind: str, file: Path) -> None:
    objective = {"regression": "logit(0) - 3.5", "multilabel": "-logit(1)", "map": "logit(1) - logit(0)"}[kind]
    code, text = run("run pgd", file, kind, "--eps", 0.1, "--objective", objective, "--n", 2)
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
    code, text = run("report", file, kind, "--sections", "overview", "-q")
    assert code == 0, text
    page = (file.parent / "out" / "index.html").read_text(encoding="utf-8")
    assert {"regression": "mean absolute error", "multilabel": "average precision", "map": "intersection over union"}[
        kind
    ] in page
    assert f'<p class="kicker">Sequential on {kind}_data</p>' in page  # by its factory, not its type
