"""The command `unboxed concepts`, the report's section, and the figures of concept vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import unboxed as ub
from models import digits_box
from unboxed.cli import app
from unboxed.concepts import computed_concepts, concept_vectors, tcav
from unboxed.errors import DataError, InputError
from unboxed.plots import figures
from unboxed.report.concepts import SECTION

BASE = ["concepts", "--model", "zoo:digits-cnn", "--data", "digits", "--n", "150", "--layers", "fc2:input"]


def folder(path: Path, k: int) -> Path:
    """30 images of a digit."""
    x, y = ub.data.digits("train").first(300)
    path.mkdir()
    for i, image in enumerate(x[y == k][:30]):
        Image.fromarray((image[0] * 255).byte().numpy()).save(path / f"{i}.png")
    return path


def test_the_command_tests_folders(tmp_path: Path) -> None:
    concepts = [f"--concept={name}={folder(tmp_path / name, k)}" for name, k in (("seven", 7), ("one", 1))]
    done = CliRunner().invoke(app, [*BASE, *concepts, "--target", "7", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"alignment.png", "scores.png", "entanglement.png", "concepts.json"}
    facts = json.loads((tmp_path / "out" / "concepts.json").read_text())
    assert facts["verdict"] == "pass"
    assert facts["concepts"][0]["layers"][0]["significant"]
    assert "entanglement: most of 'seven' and 'one'" in done.output


def test_the_command_has_concepts_of_its_own(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*BASE, "--target", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "vertical strokes" in done.output


def test_the_command_refuses_what_is_no_concept(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for bad, words in (("seven", "NAME=FOLDER"), (f"a={tmp_path}/no", "no"), (f"a={tmp_path}/empty", "empty")):
        refused = CliRunner().invoke(app, [*BASE, "--concept", bad])
        assert refused.exit_code == 2
        assert words in refused.output


def test_the_report_has_a_section(tmp_path: Path) -> None:
    x, y = ub.data.digits("train").first(150)
    written = ub.report(digits_box(), (x, y), tmp_path / "r", sections=[SECTION.slug], quiet=True)
    assert written.failures == {}
    facts = json.loads((tmp_path / "r" / "report.json").read_text())["findings"][SECTION.slug]
    assert facts["answer"].startswith("The score of class")
    assert len(facts["concepts"]) == 5
    assert "mean cosine of gradient and concept" in (tmp_path / "r" / "index.html").read_text()


def test_too_few_examples_are_said(tmp_path: Path) -> None:
    x, y = ub.data.digits("train").first(6)
    written = ub.report(digits_box(), (x, y), tmp_path / "r", sections=[SECTION.slug], quiet=True)
    assert written.failures == {}
    assert "Concepts need at least" in (tmp_path / "r" / "index.html").read_text()


def test_the_figures_of_each_result() -> None:
    box = digits_box()
    x, y = ub.data.digits("train").first(300)
    concepts = {"seven": x[y == 7], "one": x[y == 1]}
    result = tcav(box, (x, y), concepts, 7, ["conv2:input", "fc2:input"], n_random=4)
    assert set(figures(result)) == {"alignment", "scores", "entanglement", "spatial"}
    vectors = concept_vectors(box, x, concepts, "fc2:input", n_random=4)
    assert set(figures(vectors)) == {"accuracy"}


# -- computed concepts -------------------------------------------------------------------------------------------------


def test_strokes_brightness_and_symmetry_are_told() -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), ub.Pixels((1, 8, 8)), outputs="logits")
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 4
    x[:10, :, :, ::2] += 0.5  # columns
    x[10:20, :, ::2] += 0.5  # rows
    x[20:30] += 0.7
    masks = computed_concepts(box, x)
    assert masks["vertical strokes"].nonzero().flatten().tolist() == list(range(10))
    assert masks["horizontal strokes"].nonzero().flatten().tolist() == list(range(10, 20))
    assert masks["bright"].nonzero().flatten().tolist() == list(range(20, 30))
    x[30:] = (x[30:] + x[30:].flip(-1)) / 2
    assert computed_concepts(box, x)["left-right symmetry"].nonzero().flatten().tolist() == list(range(30, 40))


def test_tables_have_their_columns_and_signals_their_levels() -> None:
    table = ub.Box(nn.Sequential(nn.Linear(2, 2)), ub.Features(("a", "b")), outputs="logits")
    rows = torch.stack([torch.arange(40.0), torch.zeros(40)], 1)
    masks = computed_concepts(table, rows)
    assert list(masks) == ["high a"]  # a constant column has no high values
    assert masks["high a"].nonzero().flatten().tolist() == list(range(30, 40))
    signals = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), ub.Pixels((1, 9)), outputs="logits")
    assert "high level" in computed_concepts(signals, torch.rand(20, 1, 9))


def test_too_few_examples_and_other_inputs_are_refused() -> None:
    with pytest.raises(DataError, match="at least 8"):
        computed_concepts(digits_box(), torch.rand(5, 1, 28, 28))
    several = ub.MultiInput({"a": ub.Features(("p",)), "b": ub.Features(("q",))})

    class Both(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.cat([a, b], 1)

    with pytest.raises(InputError, match="MultiInput"):
        computed_concepts(ub.Box(Both(), several, outputs="logits"), {"a": torch.rand(9, 1), "b": torch.rand(9, 1)})
