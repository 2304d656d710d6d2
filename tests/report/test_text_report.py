"""The report of a text classifier: a page of its own sections, from the command line, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import unboxed as ub
from unboxed import cli
from unboxed.errors import DataError
from unboxed.report import texts as page

pytest.importorskip("transformers")
from language.planted_trigger import mixed_texts, planted_box


@pytest.fixture(autouse=True)
def few_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    all_of = page.candidates
    monkeypatch.setattr(
        page, "candidates", lambda box: {n: m for n, m in all_of(box).items() if n in ("gradient", "attn_lrp")}
    )


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())  # type: ignore[no-any-return]


def test_the_page_of_a_text_classifier(tmp_path: Path) -> None:
    data = mixed_texts(24)
    written = ub.report(planted_box(), data, tmp_path)
    assert written.failures == {}
    html = written.path.read_text()
    for heading in (
        "Which words does its answer come from?",
        "Which few words flip it?",
        "Where inside is the answer?",
    ):
        assert heading in html
    found = facts(tmp_path)["findings"]
    assert found["overview"] == {"answer": "It classifies 24 of 24 texts correctly.", "correct": 24, "texts": 24}
    assert set(found["words"]["verdicts"]) == {"gradient", "attn_lrp"}
    assert found["swaps"]["flipped"] >= 0.8 * found["swaps"]["right"]
    assert found["inside"]["same answer after each layer"][-1] == 1
    assert "cobalt" in html


def test_texts_without_labels_and_other_forms(tmp_path: Path) -> None:
    written = ub.report(planted_box(), mixed_texts(8).texts, tmp_path, max_examples=6)
    assert written.failures == {}
    assert facts(tmp_path)["title"] == "6 texts without labels."
    with pytest.raises(DataError, match=r"wanted texts: ub\.data\.texts"):
        ub.report(planted_box(), 5, tmp_path)
    with pytest.raises(DataError, match="there are no texts"):
        ub.report(planted_box(), [], tmp_path)


def test_a_section_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("out of luck")

    monkeypatch.setattr(page, "hotflip", broken)
    written = ub.report(planted_box(), mixed_texts(8), tmp_path)
    assert list(written.failures) == ["swaps"]
    assert "out of luck" in written.failures["swaps"]


def test_from_the_command_line(tmp_path: Path) -> None:
    box, data = planted_box(), mixed_texts(8)
    box.model.save_pretrained(tmp_path / "model")
    box.inputs.tokenizer.save_pretrained(tmp_path / "model")
    rows = [f"{text},{data.classes[label]}" for text, label in data]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))
    words = [
        "report",
        "--model",
        tmp_path / "model",
        "--data",
        tmp_path / "texts.csv",
        "-o",
        tmp_path / "out",
        "--quiet",
    ]
    said = CliRunner().invoke(cli.app, list(map(str, words)))
    assert said.exit_code == 0, said.output
    assert facts(tmp_path / "out")["findings"]["overview"]["correct"] == 8


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unboxed.cli.commands import demo

    monkeypatch.setattr(demo, "N_DEMO_TRAINING_TEXTS", 128)
    monkeypatch.setattr(demo, "N_DEMO_TEXTS", 12)
    said = CliRunner().invoke(cli.app, ["demo", "--text", "-o", str(tmp_path), "--quiet"])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "index.html").is_file()
    assert ub.load(str(tmp_path / "model")).classes == ("negative", "positive")
