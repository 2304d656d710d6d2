"""What people write behind options: fractions, lists, names, huge numbers; and what a shell and other programs get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import unboxed as ub
from unboxed import cli
from unboxed.cards import cards
from unboxed.errors import InputError
from unboxed.validation import check_int

ATTACK = ["attack", "--model", "zoo:digits-cnn", "--data", "digits:test", "--attack", "FGSM", "--quiet"]


def run(*words: Any, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, words)], env=env)


def test_eps_as_fractions_and_as_a_list_and_numbers_on_stdout(tmp_path: Path) -> None:
    said = run(*ATTACK, "--n", 4, "--eps", "8/255, .1,.2", "--json", "-o", tmp_path)
    assert said.exit_code == 0, said.output
    numbers = json.loads(said.stdout)
    assert numbers["eps"] == pytest.approx([8 / 255, 0.1, 0.2])
    assert numbers == json.loads((tmp_path / "attack.json").read_text())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--n", 4, "--eps=-1"], "eps must be a number above 0; got -1.0"),
        (["--n", 4, "--eps", "1e400"], "eps must be a number above 0; got inf"),
        (["--n=-4", "--eps", ".1"], "--n must be a whole number, 1 or more; got -4"),
        (["--n", 10**30, "--eps", ".1"], "--n must be a whole number, 9,007,199,254,740,992 or less; got 1"),
    ],
)
def test_negative_and_huge_numbers_are_refused_in_a_sentence(words: list[Any], text: str, tmp_path: Path) -> None:
    said = run(*ATTACK, *words, "-o", tmp_path / "out")
    assert said.exit_code == 2
    assert text in said.output.replace("\n", " ")
    assert "Traceback" not in said.output


@pytest.mark.parametrize(("option", "value"), [("--steps", 10**26), ("--n", 10**26), ("--n", -3), ("--steps", -1)])
def test_methods_refuse_them_too(option: str, value: int, tmp_path: Path) -> None:
    words = ["run", "pgd", "--model", "zoo:digits-cnn", "--data", "digits:test", "--eps", ".1"]
    said = run(*words, f"{option}={value}", "-o", tmp_path / "out")
    assert said.exit_code == 2
    assert "must be" in said.output
    assert "Traceback" not in said.output


def test_seeds_may_be_of_any_size() -> None:
    assert check_int("n", 2**53) == 2**53
    with pytest.raises(InputError, match="or less; got"):
        check_int("n", 2**53 + 1)
    assert len(ub.data.digits("test", seed=10**40)) == 359


def test_the_help_lists_the_attacks() -> None:
    said = " ".join(run("attack", "--help").output.split())
    for card in cards("adversarial"):
        if card.returns == "adversarial":
            assert card.key in said


@pytest.mark.parametrize(
    ("words", "found"),
    [("attack --attack fg", "fgsm"), ("explain --methods grad_c", "grad_cam"), ("methods tca", "tcav"),
     ("run occl", "occlusion"), ("expl", "explain")],
)  # fmt: skip
def test_the_shell_completes_names(words: str, found: str) -> None:
    env = {"_UNBOXED_COMPLETE": "complete_bash", "COMP_WORDS": f"unboxed {words}"}
    env["COMP_CWORD"] = str(len(words.split()))
    said = CliRunner().invoke(cli.app, [], env=env, prog_name="unboxed")
    assert found in said.output.split()


def test_explain_and_run_print_json_alone(tmp_path: Path) -> None:
    x = ub.data.digits("test").first(1).x
    from unboxed.plots import colors, save

    image = save(colors.image_to_rgb(x[0]), tmp_path / "digit.png")
    model = ["--model", "zoo:digits-cnn", "--json", "-o", tmp_path / "out"]
    said = run("explain", image, *model, "--methods", "gradient")
    assert [why["question"] for why in json.loads(said.stdout)] == ["Why 6?"]
    said = run("run", "saliency", *model, "--data", "digits:test", "--n", 2)
    assert json.loads(said.stdout)["method"] == "gradient"
    assert json.loads(run("methods", "ig", "--json").stdout)["name"] == "integrated_gradients"
