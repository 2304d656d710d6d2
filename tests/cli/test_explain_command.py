"""`unboxed explain`: what it prints and writes, and what bad input gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import unboxed as ub
from unboxed import cli
from unboxed.checks.verdict import GRADES
from unboxed.explaining import resolve_methods
from unboxed.plots import colors, save

FILES = {"explained.html", "explained.png", "explained.json", "verdicts.json", "maps"}
METHODS = ["--method", "gradient", "--method", "guided_backprop"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, _ = ub.data.digits("test").tensors()
    return save(colors.image_to_rgb(x[0]), tmp_path_factory.mktemp("images") / "digit.png")


def run(*words: Any) -> Result:
    return CliRunner().invoke(cli.app, ["explain", *map(str, words), "--quiet"])


def test_ranking_maps_and_numbers(image: Path, tmp_path: Path) -> None:
    said = run(image, "--model", "zoo:digits-cnn", *METHODS, "-o", tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert "relevance gain" in said.output
    numbers = json.loads((tmp_path / "out" / "explained.json").read_text())
    assert numbers["of"] == "6"
    assert set(numbers["methods"]) == {"gradient", "guided_backprop"}
    grades = [GRADES.index(v["grade"]) for v in numbers["methods"].values()]
    assert grades == sorted(grades)  # the most trustworthy first
    assert all({t["name"] for t in v["tests"]} >= {"randomization", "removal"} for v in numbers["methods"].values())
    assert (tmp_path / "out" / "explained.png").stat().st_size > 1000
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES


def whole(monkeypatch: pytest.MonkeyPatch, image: Path, out: Path) -> object:
    """The exit code of the command as a shell starts it."""
    words = ["unboxed", "explain", image, "--model", "zoo:digits-cnn", "--method", "gradient", "-o", out, "-q"]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_names_that_are_no_utf8(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the image, of the folder for what is written, and of a file that cannot be read: none stops the command."""
    root = os.fsencode(tmp_path)
    own, out, none = (Path(os.fsdecode(root + name)) for name in (b"/caf\xe9.png", b"/out\xe9", b"/no\xe9.png"))
    own.write_bytes(image.read_bytes())
    assert whole(monkeypatch, own, out) == 0
    assert "out\\udce9/explained.png" in capsys.readouterr().out.replace("\n", "")
    assert {p.name for p in out.iterdir()} == FILES
    none.write_bytes(b"none")
    assert whole(monkeypatch, none, out) == 2
    assert "no\\udce9.png: not an image" in capsys.readouterr().err


def test_verdicts_are_kept(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(image, "--model", "zoo:digits-cnn", *METHODS, "-o", tmp_path)
    monkeypatch.setattr("unboxed.checks.verdict_cache.verdict", None)  # judging again would fail
    second = run(image, "--model", "zoo:digits-cnn", *METHODS, "-o", tmp_path)
    assert second.exit_code == 0, second.output
    assert second.output == first.output


def test_another_class(image: Path, tmp_path: Path) -> None:
    said = run(image, "--model", "zoo:digits-cnn", "--method", "gradient", "--target", "3", "-o", tmp_path)
    assert said.exit_code == 0, said.output
    words = " ".join(said.output.split())
    assert "Why 3?" in words
    assert ", 3 (p <0.001)." in words, "what is explained is listed, too, if it is not likely"


BAD: dict[str, tuple[list[str], str]] = {
    "no such file": (["missing.png"], "there is no file missing.png"),
    "not an image": ([__file__], "not an image"),
    "no such method": (["IMAGE", "--method", "gradd_cam"], "did you mean 'grad_cam'"),
    "no such class": (["IMAGE", "--target", "cat"], "no class 'cat'"),
    "a class too large": (["IMAGE", "--target", "10"], "the model has classes 0 to 9; got 10"),
    "no such model": (["IMAGE", "--model", "zoo:digits-cn"], "digits-cnn"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad: str, image: Path, tmp_path: Path) -> None:
    words, said = BAD[bad]
    words = [str(image) if w == "IMAGE" else w for w in words]
    model = [] if "--model" in words else ["--model", "zoo:digits-cnn"]
    found = run(*words, *model, "-o", tmp_path / "out")
    assert found.exit_code == 2
    assert said in found.output.replace("\n", " ")
    assert "Traceback" not in found.output
    assert not (tmp_path / "out").exists()


def test_an_image_for_a_model_of_tables_is_refused(image: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nimport unboxed as ub\ndef make():\n    return torch.nn.Linear(2, 2), ub.Features(('a', 'b'))\n"
    )
    found = run(image, "--model", f"{file}:make", "-o", tmp_path / "out")
    assert found.exit_code == 2
    assert "takes the rows of a table" in found.output.replace("\n", " ")


def test_ctrl_c_keeps_what_there_is(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    from unboxed.attribution import gradient
    from unboxed.cli.explain import run_explain

    monkeypatch.setattr("unboxed.explaining.first_choices", lambda box: {"gradient": gradient, "stops": stops})
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    (found,) = run_explain(box, image, tmp_path, quiet=True)
    assert found.interrupted
    assert list(json.loads((tmp_path / "explained.json").read_text())["methods"]) == ["gradient"]
    assert run(image, "--model", "zoo:digits-cnn", "-o", tmp_path).exit_code == 130


def test_five_well_known_methods_by_default_and_all_on_demand(image: Path, tmp_path: Path) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    chosen = resolve_methods(box, None)
    assert sorted(chosen) == ["grad_cam", "gradient", "gradient_x_input", "guided_backprop", "lrp"]
    assert len(resolve_methods(box, "all")) > 10
    rows = ub.Box(torch.nn.Linear(3, 2), ub.Features(("a", "b", "c")), outputs="logits")
    assert len(resolve_methods(rows, None)) == 5
    assert "grad_cam" not in resolve_methods(rows, None)
    assert "--all" in CliRunner().invoke(cli.app, ["explain", "--help"]).output


def test_methods_by_the_names_that_people_know(image: Path, tmp_path: Path) -> None:
    said = run(image, "--model", "zoo:digits-cnn", "--methods", "saliency, GradCAM", "-o", tmp_path)
    assert said.exit_code == 0, said.output
    assert set(json.loads((tmp_path / "explained.json").read_text())["methods"]) == {"gradient", "grad_cam"}


def test_why_one_class_and_not_another(image: Path, tmp_path: Path) -> None:
    said = run(image, "--model", "zoo:digits-cnn", *METHODS, "--target", "6", "--versus", "8", "-o", tmp_path)
    assert said.exit_code == 0, said.output
    assert "Why 6 and not 8?" in said.output.replace("\n", " ")
    assert json.loads((tmp_path / "explained.json").read_text())["versus"] == "8"
    page = (tmp_path / "explained.html").read_text()
    assert "6 alone" in page
    assert "8 alone" in page
    same = run(image, "--model", "zoo:digits-cnn", *METHODS, "--target", "6", "--versus", "6", "-o", tmp_path)
    assert same.exit_code == 2
    assert "target and versus are both '6'" in same.output.replace("\n", " ")


def test_the_difference_of_two_classes_is_that_of_their_maps() -> None:
    """A gradient is linear in the score: the map of the difference is the difference of the maps."""
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, _ = ub.data.digits("test").first(1)
    why = ub.explain(box, x, 6, versus="8", methods=["gradient"])
    both = why.side_maps["6"]["gradient"] - why.side_maps["8"]["gradient"]
    torch.testing.assert_close(why.maps["gradient"], both, rtol=1e-4, atol=1e-5)
    assert why.question == "Why 6 and not 8?"


def test_maps_are_there_before_they_are_judged() -> None:
    seen: list[tuple[int, int]] = []
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, _ = ub.data.digits("test").first(1)
    methods = ["gradient", "guided_backprop"]
    ub.explain(box, x, methods=methods, on_progress=lambda e: seen.append((len(e.maps), len(e.verdicts))))
    assert seen == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_progress_names_the_method_at_work(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["explain", str(image), "--model", "zoo:digits-cnn", *METHODS, "-o", str(tmp_path)]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    ub.explain(box, ub.data.digits("test").first(1)[0], methods=["gradient"], quiet=False)
    assert "Gradient: its map" in capfd.readouterr().err
    ub.explain(box, ub.data.digits("test").first(1)[0], methods=["gradient"], quiet=True)
    assert capfd.readouterr().err == ""


def test_the_page_is_one_file_and_the_result_shows_itself(image: Path, tmp_path: Path) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    why = ub.explain(box, image, methods=["gradient", "guided_backprop"])
    assert repr(why).startswith("Explanation(why 6: ")
    assert len(repr(why)) <= 200
    assert "<img " in (why._repr_html_() or "")
    page = why.save(tmp_path / "why.html").read_text()
    assert "Why 6?" in page
    assert 'src="pictures/' not in page
    assert page.count("data:image/png") >= 5  # the input, the maps over it and alone
    json.loads(why.save(tmp_path / "why.json").read_text())


def test_a_photo_has_its_maps_laid_over_it() -> None:
    from unboxed.plots.explanation_sheet import render_map

    x = torch.rand(3, 200, 200)
    shown, alone, _ = render_map(x, torch.zeros(1, 200, 200).index_fill_(1, torch.tensor([3]), 1.0))
    assert not (shown == alone).all()
    small = render_map(x[:, :20, :20], torch.rand(1, 20, 20))
    assert (small.shown == small.map).all()
