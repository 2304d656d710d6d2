"""`unboxed words`: tables, figures and numbers of word vectors; files of a user's own tests and attributes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from language.embedding import CARE, CRAFT, FEMALE, GENDER, MALE, trained
from unboxed.cli import app

TESTS = {"jobs": {"targets": {"care": CARE, "craft": [*CRAFT, "plumber"]}, "attributes": {"f": FEMALE, "m": MALE}}}


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "planted.txt"
    lines = [f"{w} {' '.join(map(str, v))}" for w, v in zip(trained().words, trained().vectors.tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["words", *map(str, words)])
    return done.exit_code, done.output


def as_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_all_of_it(vectors: Path, tmp_path: Path) -> None:
    tests, words = as_json(tmp_path / "t.json", TESTS), as_json(tmp_path / "b.json", {"defining": GENDER.defining})
    code, output = run("--vectors", vectors, "--tests", tests, "--bias-words", words, "--nearest", "care0",
                       "--analogy", "she her he", "--map-n", 60, "-o", tmp_path / "out")  # fmt: skip
    assert code == 0, output
    assert "missing craft: plumber" in output.lower()
    assert "random: direct bias along random directions" in " ".join(output.split())
    facts = json.loads((tmp_path / "out" / "words.json").read_text())
    assert facts["weat"]["results"]["jobs"]["effect_size"] > 1
    assert facts["weat"]["results"]["jobs"]["missing"] == {"craft": ["plumber"]}
    assert facts["bias"]["debiased"]["after"]["direct"] < 1e-6
    assert facts["analogies"]["she : her = he : ?"][0][0] == "his"
    assert facts["nearest"]["care0"][0][0].startswith("care")
    assert len(facts["map"]["points"]) == 60
    for name in ("weat", "bias", "map"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.width > 300
    page = (tmp_path / "out" / "map.html").read_text(encoding="utf-8")
    assert [word for word in facts["map"]["points"] if f'"{word}"' not in page] == []


def test_parts_are_left_out(vectors: Path, tmp_path: Path) -> None:
    code, _ = run("--vectors", vectors, "--no-weat", "--no-bias", "--no-map", "--nearest", "she", "-o", tmp_path / "o")
    assert code == 0
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["words.json"]


def test_published_tests_that_cannot_be_made_are_named(vectors: Path, tmp_path: Path) -> None:
    code, output = run("--vectors", vectors, "--no-bias", "--no-map", "-o", tmp_path / "o")
    assert code == 0
    assert output.count("was not made") == 10


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--tests", "{", "no JSON"),
        ("--tests", "[]", "holds a list"),
        ("--tests", '{"a": {"targets": {}}}', "wrong: ['a']"),
        ("--bias-words", '{"pairs": []}', "it holds ['pairs']"),
        ("--bias-words", '{"defining": "she he"}', "must hold lists"),
        ("--bias-words", '{"defining": [["she"]]}', "two words or more"),
    ],
)
def test_files_that_are_no_tests(option: str, content: str, message: str, vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(content)
    code, output = run("--vectors", vectors, option, tmp_path / "f.json", "--no-map", "-o", tmp_path / "o")
    assert code == 2
    assert message in output.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nearest", "shee"], "did you mean 'she'"),
        (["--analogy", "she he"], "takes three words"),
        (["--tests", "none.json"], "there is no file none.json"),
        (["--k", "0"], "--k must be"),
    ],
)
def test_bad_words(words: list[str], message: str, vectors: Path, tmp_path: Path) -> None:
    code, output = run("--vectors", vectors, *words, "-o", tmp_path / "o")
    assert code == 2
    assert message in output.replace("\n", "")
