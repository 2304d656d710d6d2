"""`unboxed run` of methods of concepts with a verdict: it is printed, and stands in the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unboxed.cli import app

OPTIONS = {
    "discover": ["--max-examples", "60", "--n-concepts", "3", "--n-masks", "2", "--n-random", "2", "--layer", "fc1"],
    "dictionary": ["--max-examples", "60", "--n-features", "16", "--k", "2", "--n-steps", "10", "--n-seeds", "2"],
}
FIGURES = {"discover": {"concepts.png", "faithfulness.png"}, "dictionary": {"features.png", "dictionary.png"}}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_verdict_is_printed(name: str, tmp_path: Path) -> None:
    model = ["--model", "zoo:digits-cnn", "--data", "digits", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["run", name, *model, *OPTIONS[name]])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "result.json").read_text())
    assert facts["verdict"] in ("pass", "fail")
    assert f"{facts['verdict']}: {facts['reason']}" in " ".join(done.output.split())
    assert {p.name for p in tmp_path.glob("*.png")} == FIGURES[name]


def test_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    base = ["--model", "zoo:digits-cnn", "--data", "digits", "--max-examples", "60", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["run", "discover", *base, "--layer", "fc1", "--factorization", "nmf"])
    assert done.exit_code == 2
    assert "'ica' and 'pca' take them" in " ".join(done.output.split())
