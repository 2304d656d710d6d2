"""The code of README, guide and docstrings runs as it is; what the text next to it provides is provided here.

Blocks of Python run in their order, one after another in one namespace, in a folder of their own. Where a block would
take long, the functions it calls get cheaper defaults; the block itself is what runs.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import typer
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import unboxed as ub
from unboxed import cli, diagnosis
from unboxed.errors import MissingPackageError

ROOT = Path(__file__).parents[1]
README, GUIDE, METHODS = ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "methods.md"
VERDICTS, INFLUENCE = ROOT / "docs" / "verdicts.md", ROOT / "docs" / "influence.md"
CONCEPTS = ROOT / "docs" / "concepts.md"
LANGUAGE = ROOT / "docs" / "language.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
CHEAP: dict[str, dict[str, dict[str, Any]]] = {
    "synthesis": {
        "class_image": {"steps": 8}, "channels": {"steps": 4}, "inversion": {"steps": 4}, "feature": {"steps": 8},
        "inversions": {"steps": 3}, "deepdream": {"steps": 2}, "texture": {"steps": 3}, "caricature": {"steps": 4},
    },
    "adversarial": {
        "carlini_wagner": {"steps": 20, "binary_search_steps": 2}, "patch": {"steps": 5}, "universal": {"steps": 5},
        "fooling": {"steps": 10},
    },
    "robustness": {
        "evaluate": {"max_examples": 10, "attacks": {"FGSM": ub.adversarial.fgsm}},
        "corruptions": {"max_examples": 10}, "calibration": {"max_examples": 50}, "smoothed": {"n": 20, "n0": 5},
    },
    "concepts": {
        "causal_units": {"n_steps": 5}, "dictionary": {"n_seeds": 1}, "discover": {"n_random": 3, "n_evaluated": 24},
        "probe": {"n_folds": 2, "n_controls": 1}, "tcav": {"n_random": 8},
    },
}  # fmt: skip
"""Defaults for what takes long; a setting that a function does not have is left out."""
N_EXAMPLES = 12  # of each data set, for README, the guide and the page on influence


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, code) of each fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in found]


def lighten(monkeypatch: pytest.MonkeyPatch, families: Iterable[str]) -> None:
    for family in families:
        for name, settings in CHEAP[family].items():
            function = getattr(getattr(ub, family), name)
            monkeypatch.setattr(getattr(ub, family), name, cheaper(function, settings))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few steps and draws, and a folder to write to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ub, "report", cheaper(ub.report, {"sections": ["overview"], "quiet": True}))
    lighten(monkeypatch, CHEAP)
    hop = ub.adversarial.hop_skip_jump  # 2,000 queries of the guide's would be most of its time
    monkeypatch.setattr(ub.adversarial, "hop_skip_jump", lambda *args, **more: hop(*args, **more | {"queries": 100}))


@pytest.fixture
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = ub.data.digits
    monkeypatch.setattr(ub.data, "digits", lambda *args, **kwargs: some(digits(*args, **kwargs)))


def some(data: Any) -> Any:
    """The same data set with its first examples alone."""
    x, y = data.first(N_EXAMPLES)
    return type(data)(data.name, (255 * x).round().byte(), y, data.classes, data.inputs)


def cheaper(function: Any, settings: dict[str, Any]) -> Any:
    """The function with other defaults, its card and signature kept."""

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**settings, **kwargs})

    assert settings.keys() <= inspect.signature(function).parameters.keys(), function
    return called


def run(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """All Python of a page; an error points at the line of the page."""
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), names)
    return names


def beside_the_guide() -> dict[str, Any]:
    """What the guide's text speaks of, and its blocks use: a user's own loop, trainers, data and files."""
    model, inputs = ub.zoo.load("digits-cnn", weights=None)
    for name in ("epoch1", "epoch2"):
        safetensors.torch.save_file(model.state_dict(), f"{name}.safetensors")
    x, y = ub.data.digits("test").first(8)
    trainers = SimpleNamespace(Trainer=lambda *args, callbacks, **kwargs: list(callbacks))
    from checks.outlier_vit import images_with_white_patches, outlier_box

    return {
        "vit_box": outlier_box(), "images": images_with_white_patches(4)[0],
        "F": F, "fresh": ub.Box(model, inputs), "x_test": x, "y_test": y, "progress": 0.5,
        "loader": DataLoader(TensorDataset(x, y), batch_size=4), "optimizer": torch.optim.SGD(model.parameters(), 1e-3),
        "lightning": SimpleNamespace(pytorch=trainers), "transformers": trainers,
    }  # fmt: skip


@pytest.mark.usefixtures("few_steps", "few_examples")
def test_the_code_of_readme_runs() -> None:
    names = run(README, {})
    assert names["why"].shape == names["x"].shape
    assert names["other"].confidence_reached.all()
    assert torch.isfinite(names["fine"]).all()


@pytest.mark.usefixtures("few_steps", "few_examples")
@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
def test_the_code_of_the_guide_runs() -> None:
    names = run(GUIDE, beside_the_guide())
    assert names["found"].success.shape == (N_EXAMPLES,)
    assert Path("out/index.html").is_file()
    assert {p.suffix for p in Path().iterdir()} >= {".png", ".gif"}


@pytest.mark.usefixtures("few_steps", "few_examples")
def test_the_code_of_the_page_on_verdicts_runs() -> None:
    names = run(VERDICTS, {})
    assert names["v"].grade == "pass"


@pytest.mark.usefixtures("few_examples")
def test_the_code_of_the_page_on_influence_runs() -> None:
    names = run(INFLUENCE, {})
    assert names["result"].scores.shape == (4, N_EXAMPLES)


@pytest.mark.usefixtures("few_steps")
def test_the_code_of_the_page_on_concepts_runs() -> None:
    names = run(CONCEPTS, {})
    assert names["result"].verdict == "used"
    assert names["tested"].verdict == "pass"
    assert names["shortcuts"].verdict == "fail"
    assert names["prototypes"].verdict == "pass"


def test_the_code_of_the_page_on_language_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On random vectors of the published words, and small random models."""
    pytest.importorskip("transformers")
    from inputs.test_tokens import make_bert, make_tokenizer
    from language.test_continuation import gpt2

    monkeypatch.chdir(tmp_path)
    write_published_words(Path("vectors.txt"))
    rows = [
        f"{flag}\t{k % 2}\tthe film was {('not', 'very')[k % 2]} good" for flag in ("tr", "va", "te") for k in range(12)
    ]
    Path("bigram_shift.txt").write_text("\n".join(rows))
    torch.manual_seed(0)
    names = run(LANGUAGE, {"model": make_bert(), "tokenizer": make_tokenizer(types=True), "causal_model": gpt2()})
    assert names["a"].conservation.max_error <= 1e-4
    assert Path("words.png").is_file()
    assert names["debiased"].bias.after.direct < 1e-6
    assert len(names["tests"]) == 10
    assert Path("map.html").is_file()


def write_published_words(path: Path) -> None:
    """Random vectors of every word of the published tests and sets, 8 dimensions."""
    tests, gender = ub.language.published_tests().values(), ub.language.gender_words()
    sets = [words for t in tests for s in (t.targets, t.attributes) for words in s.values()]
    words = dict.fromkeys(w for s in (*sets, *gender.defining, *gender.equalize) for w in s)
    rows = torch.randn(len(words), 8, generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("\n".join(f"{w} {' '.join(map(str, r))}" for w, r in zip(words, rows, strict=True)) + "\n")


def test_no_page_holds_code_that_is_not_run() -> None:
    """Python and shell blocks are where they are run; the examples in methods.md are run as docstrings."""
    run = {README: {"python", "sh"}, GUIDE: {"python", "sh"}, METHODS: {"pycon"}, VERDICTS: {"python"}}
    run[INFLUENCE] = run[CONCEPTS] = {"python"}
    run[INFLUENCE] = {"python"}
    run[LANGUAGE] = {"python", "sh"}
    run[ROOT / "docs" / "tasks.md"] = {"python", "py"}  # test_docs_tasks.py
    for page in PAGES:
        opened = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
        assert set(opened) <= run.get(page, set()), page


# -- docstrings --------------------------------------------------------------------------------------------------------


PACKAGES = sorted(info.name for info in pkgutil.iter_modules(ub.__path__) if info.ispkg)
MODULES = sorted(info.name for info in pkgutil.iter_modules(ub.__path__) if not info.ispkg and info.name != "__main__")
"""The modules of the package that are in no other."""


def modules_of(package: str) -> list[ModuleType]:
    """A package of ours with all that is in it; those that need what is not installed are left out."""
    try:
        top = importlib.import_module(f"unboxed.{package}")
        found = [top]
        for info in pkgutil.walk_packages(getattr(top, "__path__", ()), f"{top.__name__}."):
            with suppress(MissingPackageError):  # an extra that is not installed
                found.append(importlib.import_module(info.name))
    except MissingPackageError:
        return []
    return found


def failures(module: ModuleType) -> tuple[int, int]:
    """(failed, tried) examples in the docstrings of a module."""
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(module, module.__name__, module=module, globs={**vars(module), "ub": ub}):
        if test.examples:
            runner.run(test)
    return runner.summarize(verbose=False)[:2]


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hypothesis tries few cases, however long they take, and keeps no files; the doctor tries few methods.

    Concepts are found in fewer draws: their examples print verdicts alone. So are numbers under attacks.
    """
    lighten(monkeypatch, ["concepts"])
    of_numbers = ub.robustness.evaluate_outputs
    monkeypatch.setattr(ub.robustness, "evaluate_outputs", cheaper(of_numbers, {"check_masking": False}))
    tried = [card for card in ub.cards() if card.key in ("gradient", "occlusion", "rollout", "pgd")]
    monkeypatch.setattr(diagnosis, "cards", lambda: tried)
    before = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.register_profile("docs", max_examples=2, deadline=None, database=None)
    hypothesis.settings.load_profile("docs")
    yield
    hypothesis.settings.load_profile(before)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("packages", [*[[name] for name in PACKAGES], MODULES], ids=[*PACKAGES, "modules"])
def test_examples_in_docstrings_give_what_they_say(packages: list[str]) -> None:
    counts = {m.__name__: failures(m) for package in packages for m in modules_of(package)}
    assert {name: failed for name, (failed, _) in counts.items() if failed} == {}
    assert any(tried for _, tried in counts.values()) or packages == ["model"]  # which users do not call
    if packages == ["testing"]:
        assert all(counts[f"unboxed.testing.{name}"][1] for name in ("method_check", "strategies"))


def test_a_wrong_example_is_seen() -> None:
    wrong = ModuleType("wrong", ">>> 1 + 1\n3\n")
    assert failures(wrong) == (1, 1)


# -- the command line --------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """The shell lines of a page, continued ones joined, without their comments."""
    lines = "".join(code for _, code in blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


def inline(page: Path) -> list[str]:
    """What the text calls `unboxed ...`."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(found.split()) for found in re.findall(r"`(unboxed [^`]+)`", text)]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words call, and its own words."""
    command, rest = typer.main.get_command(cli.app), words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = "gradient" if rest[0] in ("METHOD", "NAME") else rest[0]
        command, rest = command.get_command(None, name), rest[1:]
        assert command is not None, words
    return command, rest


SHELL = [line for page in (README, GUIDE) for line in commands(page)]


@pytest.mark.parametrize("line", SHELL)
def test_shell_lines_are_what_make_and_the_command_line_take(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "unboxed":
        command, rest = command_of(words)
        if rest == ["--install-completion"]:  # it would write to the shell's own files
            return
        command.make_context(words[1], rest)  # parses, and refuses unknown options and missing arguments
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert words[:2] == ["pip", "install"]


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in inline(page)}))
def test_commands_in_the_text_exist_with_their_options(line: str) -> None:
    command, rest = command_of(line.split())
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    assert {word for word in rest if word.startswith("--")} <= options


def test_an_option_that_is_not_there_is_seen() -> None:
    command, rest = command_of(["unboxed", "report", "--wieghts", "a.pt"])
    with pytest.raises(Exception, match="wieghts"):
        command.make_context("report", rest)


def test_cheap_commands_run() -> None:
    assert "unboxed methods" in SHELL
    done = CliRunner().invoke(cli.app, ["methods"])
    assert (done.exit_code, done.stderr) == (0, "")


def test_images_and_links_exist() -> None:
    for page in (README, GUIDE):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
        assert page == GUIDE or len(links) > 5
        assert [link for link in links if not (page.parent / link).exists()] == []
