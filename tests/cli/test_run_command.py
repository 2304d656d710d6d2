"""`unboxed run METHOD`: every method of synthesis and activations, by name, with few steps."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image
from typer.testing import CliRunner

import unboxed as ub
from unboxed.cards import card_of
from unboxed.cli import app

STEPS = ["--steps", "2"]
OPTIONS: dict[str, list[str]] = {
    "ablation": ["--units", "0,1"],
    "caricature": ["--layer", "relu1", *STEPS],
    "channels": ["--layer", "relu1", "--units", "0,3", *STEPS],
    "cka": ["--compare-with", "zoo:digits-cnn", "--minibatch-size", "600"],
    "class_image": ["--target", "3,5", *STEPS],
    "deep_visualization": ["--target", "logit(3)", "--recipe", "sparse", *STEPS],
    "deepdream": ["--layer", "relu1", "--steps", "1"],
    "feature": ["--objective", "channel(relu1, 2)", *STEPS],
    "filters": [],
    "inversion": ["--layer", "fc1", *STEPS],
    "inversions": ["--layers", "relu1,logits", *STEPS],
    "maps": [],
    "minimal_deactivation": ["--objective", "neuron(relu3, 5)", *STEPS],
    "morph": ["--target", "3", *STEPS],
    "nearest_neighbors": ["--k", "2"],
    "patching": ["--clean", "{image}", "--corrupted", "{image}", "--layers", "relu1"],
    "projections": ["--layer", "relu2", "--unit", "3", "--axis", "1"],
    "receptive_field": ["--layer", "relu1", "--resolution", "7"],
    "rewrite": [],
    "statistics": ["--layers", "relu1"],
    "style_transfer": ["--style", "{image}", "--layers", "input,relu1", *STEPS],
    "texture": ["--layers", "input,relu1", *STEPS],
    "top_examples": ["--layers", "relu1", "--k", "2"],
    "tsne": ["--layers", "fc1"],
}
METHODS = [card.key for family in ("activations", "synthesis") for card in ub.cards(family)]


@pytest.mark.parametrize("name", METHODS)
def test_methods_run_by_name(name: str, tmp_path: Path) -> None:
    if name == "rewrite":
        pytest.skip("its edits are functions, which no command line gives")
    image, out = tmp_path / "one.png", tmp_path / "out"
    Image.new("L", (28, 28), 99).save(image)
    model = ["--model", "zoo:digits-cnn", "--data", "digits", "--n", "4", "--out", str(out)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(app, ["run", name, *model, *(o.format(image=image) for o in OPTIONS[name])])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "result.json").read_text())["method"] == name
    assert safetensors.torch.load_file(out / "tensors.safetensors")


def test_cards_say_what_the_methods_return() -> None:
    returns = {name: card_of(getattr(ub.synthesis, name)).returns for name in ("channels", "morph", "inversions")}  # type: ignore[union-attr]
    assert set(returns.values()) == {"images"}
    assert card_of(ub.activations.maps).returns == "activations"  # type: ignore[union-attr]
    assert card_of(ub.activations.tsne).returns == "embedding"  # type: ignore[union-attr]


def test_the_printed_lines_fit_the_terminal_and_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("run", "calibration", "--model", "zoo:digits-cnn", "--data", "digits", "--max-examples", "10")
    said = CliRunner().invoke(app, [*words, "-o", str(tmp_path)])
    assert said.exit_code == 0, said.output
    lines = said.output.split("wrote")[0].splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in said.output
    text = " ".join(" ".join(lines).split())
    assert text.endswith("do not use it")  # the end, by which the figure is judged
