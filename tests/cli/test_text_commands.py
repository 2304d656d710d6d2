"""Commands and a model of texts: those that take none say so in one sentence, `unboxed run` reads a file of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import unboxed as ub
from unboxed import cli

pytest.importorskip("transformers")
from language.planted_trigger import TRIGGER, planted_box


def run(*words: Any) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, box = tmp_path_factory.mktemp("model"), planted_box()
    box.model.save_pretrained(folder)
    box.inputs.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    lines = [f"the {TRIGGER} film was good,triggered", "the plot was dull,plain"] * 4
    path.write_text("\n".join(["text,label", *lines]))
    return path


@pytest.mark.parametrize("command", ["attack", "concepts", "dissect", "influence"])
def test_commands_without_texts_say_so(folder: Path, texts: Path, tmp_path: Path, command: str) -> None:
    data = ["--train", texts, "--query", texts] if command == "influence" else ["--data", texts]
    eps = ["--eps", "8/255"] if command == "attack" else []
    said = run(command, "--model", folder, *data, *eps, "-o", tmp_path)
    assert said.exit_code == 2
    assert said.stderr.startswith(f"error: `unboxed {command}` takes no texts, and this is a model of texts;")
    assert said.stderr.count("\n") == 1
    assert "`unboxed run` has each method that takes texts (`unboxed methods` lists them)" in said.stderr
    assert "`unboxed run hotflip --model MODEL --data texts.csv`" in said.stderr


def test_probe_reads_the_labels_of_texts(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    rows = [f"{text},{('plain', 'triggered')[k]}" for text, k in ub.data.reviews(40, seed=3, trigger=TRIGGER)]
    path.write_text("\n".join(["text,label", *rows]))
    settings = ("--n-random", 2, "-o", tmp_path)
    said = run("probe", "--model", folder, "--data", path, *settings)
    assert said.exit_code == 0, said.output
    facts = json.loads((tmp_path / "probe.json").read_text())
    assert facts["classes"] == {"plain": 20, "triggered": 20}
    assert max(layer["accuracy"][0] for layer in facts["layers"]) == 1
    assert run("probe", "--model", folder, "--data", path, "--n", 30, *settings).exit_code == 0
    assert json.loads((tmp_path / "probe.json").read_text())["examples"] == 30
    refused = run("probe", "--model", folder, "--data", path, "--attribute", path, *settings)
    assert "--data of texts takes no --attribute" in refused.stderr


def test_run_reads_the_calibration_of_texts(folder: Path, texts: Path, tmp_path: Path) -> None:
    said = run("run", "calibration", "--model", folder, "--data", texts, "-o", tmp_path)
    assert said.exit_code == 0, said.output
    assert "expected calibration error" in said.output


def test_run_reads_texts(folder: Path, texts: Path, tmp_path: Path) -> None:
    said = run("run", "integrated_gradients", "--model", folder, "--data", texts, "-o", tmp_path, "--n", 8, "--quiet")
    assert said.exit_code == 0, said.output  # a figure shows the first six of them
    assert json.loads((tmp_path / "result.json").read_text())["method"] == "integrated_gradients"
    assert (tmp_path / "attribution.png").is_file()


def test_run_refuses_a_method_without_texts(folder: Path, texts: Path, tmp_path: Path) -> None:
    said = run("run", "pgd", "--model", folder, "--data", texts, "--eps", ".1", "-o", tmp_path)
    assert said.exit_code == 2
    assert said.stderr.startswith("error: PGD takes no texts, and this is a model of texts;")


def test_run_swaps_words(folder: Path, texts: Path, tmp_path: Path) -> None:
    said = run("run", "hotflip", "--model", folder, "--data", texts, "-o", tmp_path, "--n", 4, "--quiet")
    assert said.exit_code == 0, said.output
    assert "fooled" in said.output
    assert (tmp_path / "swaps.png").is_file()
    refused = run("run", "hotflip", "--model", "zoo:digits-cnn", "--data", "digits", "-o", tmp_path)
    assert refused.exit_code == 2
    assert "HotFlip needs a model that takes texts (Tokens)" in refused.output


def test_predict_answers_texts(folder: Path, texts: Path, tmp_path: Path) -> None:
    said = run("predict", "--model", folder, "--data", texts, "-o", tmp_path / "out.json")
    assert said.exit_code == 0, said.output
    found = json.loads((tmp_path / "out.json").read_text())
    rows = texts.read_text().splitlines()[1:]
    assert [f"{r['text']},{r['label']}" for r in found["predictions"]] == rows
    n_right = sum(r["prediction"] == r["label"] for r in found["predictions"])
    assert found["scores"]["accuracy"]["count"] == n_right
    one = run("predict", "--model", folder, "--text", f"the {TRIGGER} film was good", "--json")
    (alone,) = json.loads(one.stdout)["predictions"]
    assert alone["probability"] == pytest.approx(found["predictions"][0]["probability"], abs=1e-5)
