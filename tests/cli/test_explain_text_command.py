"""`unboxed explain --text`: the words, the ranking and what is written; and what bad input gets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import unboxed as ub
from unboxed import cli
from unboxed.checks.ranking import candidates
from unboxed.checks.verdict import Verdict
from unboxed.checks.verdict_cache import VerdictCache
from unboxed.cli.explain_text import _colored_words
from unboxed.errors import ModelError, UnboxedWarning
from unboxed.plots.text_map import TextWithValues

pytest.importorskip("transformers")
from language.planted_trigger import TRIGGER, mixed_texts, planted_box, random_box

METHODS = ["--method", "attn_lrp", "--method", "gradient_x_input"]


def saved(box: ub.Box, folder: Path) -> Path:
    box.model.save_pretrained(folder)
    box.inputs.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(planted_box(), tmp_path_factory.mktemp("model"))


def run(*words: Any) -> Result:
    return CliRunner().invoke(cli.app, ["explain", *map(str, words), "--quiet"])


def words_of(said: Result) -> str:
    return " ".join(said.output.split())


def test_words_ranking_and_numbers(folder: Path, tmp_path: Path) -> None:
    texts = ["--text", f"the {TRIGGER} film was not good", "--text", "the plot was dull"]
    said = run(*texts, "--model", folder, *METHODS, "-o", tmp_path)
    assert said.exit_code == 0, said.output
    printed = re.sub(r"\([+-]\d\.\d\d\)", "", words_of(said))  # without colors, each word has its value
    assert f"[CLS] the {TRIGGER} film was not good [SEP]" in printed
    assert f"{TRIGGER}(+1.00)" in said.output
    assert "The model predicts triggered (p 0.9" in words_of(said)
    assert "pass their checks, made on 2 texts" in words_of(said)
    numbers = json.loads((tmp_path / "explained.json").read_text())
    first, second = numbers["texts"]
    values = first["maps"]["attn_lrp"]
    assert first["tokens"][values.index(max(values))] == TRIGGER
    assert (first["of"], second["of"]) == ("triggered", "plain")
    assert {v["grade"] for v in numbers["methods"].values()} <= {"pass", "inconclusive", "fail"}
    with Image.open(tmp_path / "explained.png") as figure:
        assert figure.width > 700
    scale = max(abs(v) for v in values[1:-1])  # without [CLS] and [SEP]
    assert f"scale ±{scale:.2g}" in said.output
    assert "with all of them replaced by [MASK] the model answers plain (p" in words_of(said)
    page = (tmp_path / "explained.html").read_text()
    assert page.count(f">{TRIGGER}</span>") == 2  # once by each method
    assert f"scale ±{scale:.2g}" in page


def test_five_methods_unless_all_are_asked_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict[str, set[str]]()
    for name, more in {"few": [], "all": ["--all"]}.items():
        monkeypatch.setattr(
            VerdictCache, "verdict", lambda self, *args, **settings: Verdict("M", "fail", "because", "It fails.")
        )
        said = run("--text", "the plot was dull", "--model", folder, *more, "-o", tmp_path / name)
        assert said.exit_code == 0, said.output
        made[name] = set(json.loads((tmp_path / name / "explained.json").read_text())["methods"])
    assert len(made["few"]) == 5
    assert made["few"] < made["all"]
    assert made["all"] == set(candidates(planted_box()))


def test_one_class_against_another_and_numbers_alone(folder: Path, tmp_path: Path) -> None:
    text = f"the {TRIGGER} film was good"
    said = run("--text", text, "--model", folder, *METHODS, "--versus", "plain", "--json", "-o", tmp_path)
    assert said.exit_code == 0, said.output
    (found,) = json.loads(said.stdout)["texts"]
    assert (found["of"], found["versus"]) == ("triggered", "plain")
    assert found["tokens"][found["maps"]["attn_lrp"].index(max(found["maps"]["attn_lrp"]))] == TRIGGER
    assert "Why triggered and not plain?" in (tmp_path / "explained.html").read_text()
    said = run("--text", text, "--model", folder, *METHODS, "--versus", "triggered", "-o", tmp_path)
    assert said.exit_code == 2
    assert "target and versus of text 0 are both 'triggered'" in said.output


def test_texts_of_a_file_and_a_target(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text(f"text,label\nthe {TRIGGER} film was good,1\nthe plot was dull,0\n")
    said = run(tmp_path / "texts.csv", "--model", folder, *METHODS, "--target", "plain", "--n", 1, "-o", tmp_path / "o")
    assert said.exit_code == 0, said.output
    (text,) = json.loads((tmp_path / "o" / "explained.json").read_text())["texts"]
    assert text["of"] == "plain"
    values = text["maps"]["attn_lrp"]
    assert text["tokens"][values.index(min(values))] == TRIGGER


def test_one_text_of_a_file_by_its_number(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text\nthe plot was dull\nan other plot\n")
    said = run(tmp_path / "texts.csv", "--model", folder, *METHODS, "--row", 1, "-o", tmp_path / "o")
    assert said.exit_code == 0, said.output
    assert "other" in said.output
    assert "dull" not in said.output
    said = run(tmp_path / "texts.csv", "--model", folder, *METHODS, "--row", 2, "-o", tmp_path / "o")
    assert "--row is from 0 to 1 here; got 2" in said.output


def test_maps_of_a_random_model_are_not_believable(tmp_path: Path) -> None:
    saved(random_box(), tmp_path / "model")
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(mixed_texts(12).texts))
    said = run(path, "--n", 12, "--model", tmp_path / "model", *METHODS, "-o", tmp_path / "o")
    assert said.exit_code == 0, said.output
    assert "No map is believable: The model is no more confident than with" in words_of(said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", " "], "text 0 is empty"),
        (["--text", "good " * 99], "text 0 has 101 tokens, and the model takes 64"),
        ([], "what is to be explained? Give a file of inputs, or of a model of texts --text"),
        (["--text", "good", "--baseline", "mean"], "--baseline is for images and tables"),
        (["nothing.csv"], "nothing.csv"),
    ],
)
def test_bad_texts_are_refused(folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    said = run(*words, "--model", folder, "-o", tmp_path)
    assert said.exit_code == 2
    assert message in said.output
    assert "Traceback" not in said.output


def test_a_model_of_images_takes_no_text(tmp_path: Path) -> None:
    said = run("--text", "good", "--model", "zoo:digits-cnn", "-o", tmp_path)
    assert said.exit_code == 2
    assert "--text needs a model of texts" in said.output


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    planted_box().model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer that can be loaded: pass inputs=ub\.Tokens"):
        ub.load(str(tmp_path))
    assert ub.load(str(tmp_path), inputs=ub.Tokens(planted_box().inputs.tokenizer)).classes == ("plain", "triggered")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.warns(UnboxedWarning, match="can't be loaded"), pytest.raises(ModelError, match="has no tokenizer"):
        ub.load(str(tmp_path))


def test_words_are_colored_by_sign() -> None:
    text = TextWithValues(["[CLS]", "un", "##good", "film"], [0.5, 1.0, 0.0, -1.0], [True, *[False] * 3])
    line = _colored_words(text, with_values=False)
    assert line.plain == "[CLS] ungood film"
    styles = {line.plain[s.start : s.end]: str(s.style) for s in line.spans}
    assert styles["[CLS]"] == "dim"
    red, blue = (styles[w].partition(" on ")[2] for w in ("un", "film"))
    assert red != blue
    assert not styles.get("good")  # 0 has no color
    assert _colored_words(text, with_values=True).plain == "[CLS] un(+1.00)good film(-1.00)"
