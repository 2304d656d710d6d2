"""What `unboxed run`, `explain` and `attack` say to a first-time user: data without labels, misspelt names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import unboxed as ub
from unboxed import cli
from unboxed.cli.functions import FUNCTIONS_BY_COMMAND, PACKAGES_OF_FUNCTIONS


def run(*words: Any) -> Result:
    return CliRunner().invoke(cli.app, ["run", *map(str, words)])


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    """A folder of images without labels."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(3):
        Image.new("L", (28, 28), 60 * i + 20).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("evaluate_outputs", "use `unboxed attack`"),
        ("evaluate", "use `unboxed attack`"),
        ("report", "use `unboxed report`"),
        ("deletion", "call ub.checks.deletion from Python"),
        ("zzz", "`unboxed methods` lists the"),
    ],
)
def test_a_name_that_is_no_method_leads_to_what_does_it(name: str, advice: str) -> None:
    done = run(name, "--model", "zoo:digits-cnn")
    assert done.exit_code == 2
    assert advice in done.output
    assert len(done.output) < 200


def test_functions_that_commands_do_exist() -> None:
    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback is not None}
    public = {name for package in PACKAGES_OF_FUNCTIONS for name in dir(getattr(ub, package))}
    assert set(FUNCTIONS_BY_COMMAND) <= {*commands, "checks"}
    assert {name for names in FUNCTIONS_BY_COMMAND.values() for name in names} <= public


def test_long_results_are_printed_by_their_first_lines(tmp_path: Path) -> None:
    done = run("statistics", "--model", "zoo:digits-cnn", "--data", "digits", "-o", tmp_path, "-q")
    lines = done.output.partition("wrote ")[0].splitlines()
    assert lines[0] == "Unit statistics:"
    assert lines[1].startswith("UnitStatistics(path='conv1'")
    begun = [line for line in lines if not line.startswith("  ")]  # others go on with the line above
    assert begun[-1].endswith("more lines") or len(begun) <= 8
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    "command", ["attack --eps 0.1 --n 2", "report --sections overview", "doctor", "run nearest_training_examples"]
)
def test_quiet_keeps_notes_in_every_command(command: str, flat_folder: Path, tmp_path: Path) -> None:
    """What was left out of the data is said; only progress bars are not shown."""
    for k in range(10):
        (flat_folder / str(k)).mkdir()
        Image.new("L", (28, 28), 25 * k).save(flat_folder / str(k) / "one.png")
    (flat_folder / "0" / "broken.png").write_bytes(b"no image")
    words = [*command.split(), "-q", "--model", "zoo:digits-cnn", "--data", str(flat_folder)]
    out = [] if command == "doctor" else ["-o", str(tmp_path / "out")]
    if command.endswith("nearest_training_examples"):
        out += ["--train", str(flat_folder), "--labels", "1", "--n", "1"]
    done = CliRunner().invoke(cli.app, [*words, *out])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("left out") == 1  # also where the same folder is opened twice
    assert "%|" not in done.stderr


def test_images_without_labels(flat_folder: Path, tmp_path: Path) -> None:
    """Attribution explains the predicted classes; an untargeted attack says that it needs the correct ones."""
    common = ["--model", "zoo:digits-cnn", "--data", flat_folder, "--out", tmp_path / "out"]
    done = run("gradient", *common)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "attribution.png").is_file()
    attacked = run("fgsm", *common, "--eps", "0.1")
    assert attacked.exit_code == 2
    assert "an untargeted attack needs the correct classes" in attacked.output
    assert run("fgsm", *common, "--eps", "0.1", "--target", "3").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "11"], "the model has classes 0 to 9; got 11"),
        (["--target", "three"], "the model has no class 'three'; there are '0', '1'"),
        (["--classes", "cat,dog,owl,cow,pig,hen,ant,bee,fox,elk", "--target", "dgo"], "did you mean 'dog'"),
    ],
)
def test_classes_that_do_not_exist(options: list[str], message: str) -> None:
    done = run("gradient", "--model", "zoo:digits-cnn", "--data", "digits", *options)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--layer", "rel1"], "did you mean 'relu1'"), (["--upsample", "perhaps"], "wanted yes or no; got 'perhaps'")],
)
def test_settings_are_checked_before_data(options: list[str], message: str, tmp_path: Path) -> None:
    done = run("grad_cam", "--model", "zoo:digits-cnn", "--data", tmp_path / "no such folder", *options)
    assert done.exit_code == 2
    assert message in done.output


def test_cka_of_one_model(tmp_path: Path) -> None:
    data = ["--model", "zoo:digits-cnn", "--data", "digits:test", "--layers-a", "relu1,fc1", "--layers-b", "fc1"]
    done = run("cka", *data, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "cka=(2, 1)" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lime", "--n_sample", "5"], "--n-samples"),
        (["fgsm", "--data", "digits"], "give --eps (and --norm), such as --eps 8/255"),
        (["lime", "--data", "digits", "--n-samples", "5"], "take n_samples of"),
    ],
)
def test_wrong_options(words: list[str], message: str) -> None:
    done = run(*words, "--model", "zoo:digits-cnn")
    assert done.exit_code == 2
    assert message in done.output
    assert "completion" not in done.output


def test_an_attack_that_fools_none(tmp_path: Path) -> None:
    words = ["attack", "--model", "zoo:digits-cnn", "--data", "digits:test", "--attack", "fgsm", "--eps", "1e-5"]
    done = CliRunner().invoke(cli.app, [*words, "--n", "2", "--out", str(tmp_path), "-q"])
    assert done.exit_code == 0, done.output
    assert "no figure: no example was fooled\n" in done.output
    assert f"checkpoint: {next(tmp_path.glob('attack-*.pt'))}" in done.output.replace("\n", "")


def test_the_ranking_fits_80_columns(flat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods have their written names, and each takes one line."""
    monkeypatch.setenv("COLUMNS", "80")
    words = ["explain", str(flat_folder / "1.png"), "--model", "zoo:digits-cnn", "--method", "grad_cam_plus_plus"]
    done = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path / "out"), "-q"])
    assert done.exit_code == 0, done.output
    row = next(line for line in done.output.splitlines() if line.startswith("Grad-CAM++"))
    assert "not tested: removal" in row


def test_what_is_left_out_is_said_and_written(flat_folder: Path, tmp_path: Path) -> None:
    (flat_folder / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (flat_folder / "labels.csv").write_text("file,label\n0.png,3\n1.png,4\nscan.dcm,5\n")
    common = ["calibration", "--model", "zoo:digits-cnn", "-o", tmp_path / "out"]
    done = run(*common, "--data", flat_folder / "labels.csv")
    assert done.exit_code == 0, done.output
    assert "note: left out (files: 1): " in done.output
    assert "a DICOM file: convert it" in done.output
    skipped = json.loads((tmp_path / "out" / "result.json").read_text())["skipped"]
    assert [Path(entry["file"]).name for entry in skipped] == ["scan.dcm"]


def test_a_quiet_report_says_what_is_left_out(flat_folder: Path, tmp_path: Path) -> None:
    whole = (flat_folder / "2.png").read_bytes()
    (flat_folder / "2.png").write_bytes(whole[: len(whole) - 30])
    words = ["report", "-q", "--model", "zoo:digits-cnn", "--data", str(flat_folder), "--sections", "overview"]
    done = CliRunner().invoke(cli.app, [*words, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "1 image is broken (left out); the page lists them." in done.stderr
    assert "Left out: 1 image is broken." in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def _probe_refusal() -> str:
    box = ub.Box(torch.nn.Linear(2, 1), ub.Features(("a", "b")), outputs="regression")
    with pytest.raises(ub.errors.InputError) as refused:
        ub.concepts.probe(box, (torch.rand(4, 2), torch.rand(4)))
    return str(refused.value)


def test_advice_names_options_not_python() -> None:
    """`segmenter=` and `ignore_case=True` are no options of a command."""
    from unboxed.cli.parsing import rewrite_advice_for_command_line
    from unboxed.concepts._segmenting import Segmentation
    from unboxed.data.texts import TEXT_LABEL_ADVICE
    from unboxed.errors import InputError
    from unboxed.inputs.frames import LABEL_COLUMN_ADVICE
    from unboxed.language import WordVectors

    assert "give --attribute FILE:COLUMN, a value" in rewrite_advice_for_command_line(_probe_refusal())
    assert rewrite_advice_for_command_line(LABEL_COLUMN_ADVICE) == "Name it: --label COLUMN"
    assert rewrite_advice_for_command_line(TEXT_LABEL_ADVICE) == "Name that of labels: --label COLUMN"
    assert rewrite_advice_for_command_line("bits= (images) needs").startswith("--bits (images)")
    with pytest.raises(InputError) as missing:
        Segmentation.of(None, torch.zeros(1, 3, 8, 8))
    assert "give --segmenter file.py:factory, which makes a function from images" in rewrite_advice_for_command_line(
        str(missing.value)
    )
    with pytest.raises(InputError) as unknown:
        WordVectors(["king"], torch.ones(1, 2)).index("King")
    said = rewrite_advice_for_command_line(str(unknown.value))
    assert said.endswith("did you mean 'king'? --ignore-case looks words up in lower case")


def test_a_suggestion_ends_with_its_question_mark(tmp_path: Path) -> None:
    (tmp_path / "cstripes").mkdir()
    done = run("gradient", "--model", "zoo:digits-cnn", "--data", tmp_path / "cstripe")
    assert done.exit_code == 2
    assert "?; " not in done.output
    assert "cstripes'? data are " in " ".join(done.output.split())
