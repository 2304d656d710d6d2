"""The example line of every method has all that its command requires, and what is missing is named at once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import unboxed as ub
from unboxed.cards import Card, cards, find_card
from unboxed.cli import app
from unboxed.cli.example_lines import example_line
from unboxed.cli.run import make_method_command
from unboxed.data import uci

LINE_START = "unboxed run "
MADE_IN_PYTHON = {"rewrite": "edits", "unrolled": "training", "removal": "training"}


def parsed(card: Card, words: list[str]) -> Any:
    command = get_command(make_method_command(card))
    return command.make_context(card.key, words)


@pytest.mark.parametrize("card", [c for c in cards() if not c.key.startswith("broken")], ids=lambda card: card.key)
def test_the_line_of_every_card_is_whole(card: Card) -> None:
    line = example_line(card)
    if card.key in MADE_IN_PYTHON:
        assert line.startswith(f"not by unboxed run: {MADE_IN_PYTHON[card.key]} is made in Python")
        return
    assert line.startswith(LINE_START)
    name, *words = shlex.split(line.removeprefix(LINE_START), comments=True)
    assert name == card.key
    parsed(card, words)  # raises where a required option is missing


RUN = ("influence_functions", "perturb", "nearest_training_examples", "projections", "tracin", "source", "group")


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@pytest.mark.parametrize("name", RUN)
def test_lines_run_as_printed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    pixels, labels = uci._load_digits()
    monkeypatch.setattr(uci, "_load_digits", lambda: (pixels[:150], labels[:150]))
    for k in (1, 2, 3):
        torch.save(ub.load("zoo:digits-cnn").model.state_dict(), f"EPOCH{k}.pt")
    printed = CliRunner().invoke(app, ["methods", name]).output.splitlines()
    (line,) = [line for line in printed if line.startswith(LINE_START)]
    words = shlex.split(line.removeprefix("unboxed "), comments=True)
    done = CliRunner().invoke(app, [*words, "--n", "2", "-o", str(tmp_path), "-q"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "result.json").read_text())["method"] == name


def test_all_missing_options_are_named_at_once() -> None:
    done = CliRunner().invoke(app, ["run", "tracin", "--data", "digits"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 2
    assert "Missing options '--model', '--train', '--checkpoints'" in done.output
    assert "--labels" not in done.output
    assert "Default: those of the data" in " ".join(find_help("tracin").split())


def find_help(name: str) -> str:
    command = get_command(make_method_command(find_card(name)))
    return " ".join(getattr(p, "help", None) or "" for p in command.params)
