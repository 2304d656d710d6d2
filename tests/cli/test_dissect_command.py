"""`unboxed dissect`: tables, figures and numbers of models and generators; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from unboxed.cli import app


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["dissect", *words])


def test_a_model_of_images(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        "--model", "zoo:digits-cnn", "--data", "digits:test", "--n", "24", "--layers", "relu1", "--n-random", "1",
        "--quantile", "0.01", "-o", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "relu1" in result.output
    assert "units of 'relu1' are detectors" in " ".join(result.output.split())
    facts = json.loads((out / "dissect.json").read_text())
    assert facts["examples"] == 24
    assert facts["quantile"] == 0.01
    assert facts["layers"][0]["units"] == 16
    assert set(facts["layers"][0]["detectors"][0]) == {"unit", "concept", "iou", "beyond_chance"}
    assert 0 < facts["concepts"]["ink"]["reachable_iou"] < 0.2
    assert sorted(p.name for p in out.iterdir()) == ["detectors.png", "dissect.json", "units.png"]
    with Image.open(out / "units.png") as image:
        assert image.width > 400


def test_a_generator_draws_its_own_codes(tmp_path: Path) -> None:
    result = run("--model", "zoo:digits-gan", "--n", "20", "--layers", "relu3", "--n-random", "1", "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "dissect.json").read_text())["examples"] == 20


def test_the_units_of_a_concept(tmp_path: Path) -> None:
    result = run(
        "--model", "zoo:digits-gan", "--n", "24", "--layers", "relu3", "--concept", "upper left", "--n-random", "1",
        "-o", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "dissect.json").read_text())
    assert (facts["concept"], facts["tested_on"]) == ("upper left", 12)
    assert facts["concepts"]["upper right"]["apart"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dissect.json", "effects.png", "images.png"]


def test_a_segmenter_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(
        "def make():\n"
        "    def bright(images):\n"
        "        return (images[:, 0] > 0.5)[None]\n"
        "    bright.names = ('bright',)\n"
        "    return bright\n"
    )
    result = run(
        "--model", "zoo:digits-cnn", "--data", "digits:test", "--n", "8", "--layers", "relu1", "--n-random", "0",
        "--segmenter", f"{tmp_path / 'parts.py'}:make", "-o", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert list(json.loads((tmp_path / "out" / "dissect.json").read_text())["concepts"]) == ["bright"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "zoo:digits-cnn"], "--data is missing"),
        (["--model", "zoo:digits-gan", "--concept", "hole"], "--concept needs the one layer"),
        (["--model", "zoo:digits-gan", "--concept", "ear", "--layers", "relu3"], "there is no concept 'ear'"),
        (["--model", "zoo:digits-gan", "--layers", "fc"], "has no positions on the image"),
        (["--model", "zoo:digits-cnn", "--data", "digits:test", "--segmenter", "nowhere.py:f"], "there is no file"),
    ],
)
def test_what_it_refuses(words: list[str], message: str, tmp_path: Path) -> None:
    result = run(*words, "-o", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
