"""The command line: its options, its output and its exit codes."""

import signal
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import unboxed
from unboxed import cards, cli
from unboxed.cards import card
from unboxed.data.tables import TABLE_SUFFIXES
from unboxed.inputs.pixels import Pixels
from unboxed.loading import sources
from unboxed.loading.sources import DATA_SPEC_ADVICE, DATASET_NAMES
from unboxed.parameters import Data

NET = """
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset
    import unboxed as ub

    def one():
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), ub.Pixels((3, 4, 4))

    def bare():
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))

    def make():
        return bare(), ub.Pixels((3, 4, 4))

    def images():
        return TensorDataset(torch.rand(6, 3, 4, 4), torch.arange(6) % 3)

    def named():
        data = images()
        data.classes = ("ant", "bee", "cat")
        return data
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(NET))
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the report was asked for; it fails in the sections named in `failures`."""
    asked = SimpleNamespace(failures={}, box=None)

    def stand_in(box: object, data: object, out: Path, **options: object) -> SimpleNamespace:
        vars(asked).update(box=box, data=data, out=out, **options)
        return SimpleNamespace(path=Path(out) / "index.html", failures=asked.failures, skipped=(), interrupted=False)

    monkeypatch.setattr(import_module("unboxed.report"), "report", stand_in)
    return asked


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def python(source: str, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source, *words], capture_output=True, text=True, **settings)  # type: ignore[call-overload, no-any-return]


def test_help_imports_nothing_heavy() -> None:
    source = """
        import sys
        from unboxed.cli import main
        for words in sys.argv[1:]:
            sys.argv = ["unboxed", *words.split()]
            try:
                main()
            except SystemExit as end:
                heavy = {"torch", "numpy", "matplotlib", "PIL", "sklearn"} & set(sys.modules)
                if heavy or end.code:
                    sys.exit(f"{words}: imported {heavy}, exit code {end.code}")
            print("----")
    """
    done = python(textwrap.dedent(source), "--help", "report --help", "demo -h", "train -h", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert ["unboxed" in said for said in done.stdout.split("----")[:-1]] == [True] * 5


def commands(group: object = None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Every command by its words."""
    group = typer.main.get_command(cli.app) if group is None else group
    if not hasattr(group, "list_commands"):
        return {path: group}
    names = group.list_commands(None)
    found = {name: commands(group.get_command(None, name), (*path, name)) for name in names}
    return {words: command for part in found.values() for words, command in part.items()}


def test_every_command_that_works_takes_quiet_and_says_what_data_are() -> None:
    """Calibration, too: the commands of methods share their options."""
    for words, command in commands().items():
        options = {option for p in command.params for option in p.opts}
        assert words in (("methods",), ("words",)) or {"--quiet", "-q"} <= options, words
        data = next((p for p in command.params if p.name == "data"), None)
        if data is not None and words != ("train",):
            named = (*DATASET_NAMES, "CSV", "TSV", "Parquet", "folder", "factory")
            assert [name for name in named if name not in data.help] == []
    assert all(suffix[1:].upper() in DATA_SPEC_ADVICE.upper() for suffix in TABLE_SUFFIXES)


def test_quiet_reaches_a_method_and_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path) -> None:
    asked = dict[str, bool]()

    @card(name="Loud", source="-", shows="Nothing.", does_not_show="All.", family="own", example=lambda *_: None)
    def loud(box: unboxed.Box, data: Data, *, quiet: bool = True) -> int:
        asked["method"] = quiet
        return 3

    monkeypatch.setattr(sources, "data", lambda spec, *_, quiet, **__: asked.update(data=quiet) or digits)
    digits = unboxed.data.digits("test").first(2)
    for words, quiet in ((["-q"], True), ([], False)):
        done = run("run", "loud", "--model", "zoo:digits-cnn", "--data", "digits", "-o", tmp_path, *words)
        assert done.exit_code == 0, done.output
        assert asked == {"method": quiet, "data": quiet}
    assert loud.card.key == "loud"


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "unboxed", "--version"], capture_output=True, text=True)
    assert done.stdout == f"unboxed {unboxed.__version__}\n"


def test_the_help_names_every_command() -> None:
    said = run("--help").stdout
    assert [name for name in ("demo", "report", "train", "methods") if name not in said] == []


def test_methods_lists_every_card() -> None:
    said = run("methods").stdout
    assert [c.method.__name__ for c in cards() if c.method.__name__ not in said] == []


def test_report_opens_the_model_and_data_of_its_options(file: Path, made: SimpleNamespace, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "page", "--seed", 3, "-q")
    done = run("report", "--model", f"{file}:make", "--data", f"{file}:images", *words)
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "page" / "index.html"))
    assert made.box.inputs == Pixels((3, 4, 4))
    assert made.command.endswith("# no --weights: the model is as its factory returns it")
    assert done.stderr == "note: no --weights: the model is as its factory returns it\n"  # no progress bars
    assert (made.out, made.seed, made.quiet, made.judge) == (tmp_path / "page", 3, True, None)
    assert made.command.startswith("unboxed")


def test_report_takes_the_inputs_from_the_line(file: Path, made: SimpleNamespace) -> None:
    inputs = ["--shape", "3,4,4", "--mean", ".5", "--std", "0.1,.2,.3"]
    done = run("report", "--model", f"{file}:bare", "--data", f"{file}:images", *inputs)
    assert done.exit_code == 0, done.output
    assert made.box.inputs == Pixels((3, 4, 4), mean=(0.5,), std=(0.1, 0.2, 0.3))


def test_class_names_come_from_the_line_a_file_or_the_data(file: Path, made: SimpleNamespace, tmp_path: Path) -> None:
    def names(data: str, *words: object) -> tuple[str, ...]:
        assert run("report", "--model", f"{file}:make", "--data", f"{file}:{data}", *words).exit_code == 0
        return made.box.classes

    (tmp_path / "names.txt").write_text("x\ny\n\nz\n")
    assert names("images") == ("0", "1", "2")
    assert names("named") == ("ant", "bee", "cat")
    assert names("named", "--classes", "a,b,c") == ("a", "b", "c")
    assert names("named", "--classes", tmp_path / "names.txt") == ("x", "y", "z")


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / name / "a.png")
    return folder


def test_subfolders_called_like_the_classes_get_their_labels(file: Path, made: SimpleNamespace, tmp_path: Path) -> None:
    run("report", "--model", f"{file}:make", "--data", photos(tmp_path / "a", "2", "1"), "-q")
    assert made.data.tensors().y.tolist() == [1, 2]
    words = ("--classes", "dogs,birds,cats", "-q")
    done = run("report", "--model", f"{file}:make", "--data", photos(tmp_path / "b", "birds", "Cats"), *words)
    assert (done.exit_code, done.stderr.count("note:"), len(done.stderr.splitlines())) == (0, 1, 1)  # of the weights
    assert sorted(made.data.tensors().y.tolist()) == [1, 2]
    assert made.box.classes == ("dogs", "birds", "cats")


@pytest.mark.filterwarnings("always:the subfolders of")
def test_as_many_subfolders_as_unnamed_classes_are_taken_with_a_note(
    file: Path, made: SimpleNamespace, tmp_path: Path
) -> None:
    done = run("report", "--model", f"{file}:make", "--data", photos(tmp_path, "dog", "ant", "cat"), "-q")
    assert done.exit_code == 0, done.output
    assert "in the order of their names: 0 is ant, 1 is cat, 2 is dog; " in done.stderr
    assert made.box.classes == ("ant", "cat", "dog")


@pytest.mark.parametrize(
    ("model", "names", "words", "said"),
    [
        (
            "zoo:digits-cnn",
            ("birds", "cats"),
            (),
            "(birds, cats) are not the model's 10 classes (0, 1, 2, 3, 4, and 5 more)",
        ),
        ("FILE:make", ("1", "2", "cats"), (), "of the 3 subfolders"),
        ("FILE:make", ("ant", "bee", "cat"), ("--classes", "x,y,z"), "are not the model's 3 classes (x, y, z)"),
    ],
)
def test_other_subfolders_are_refused(
    file: Path,
    made: SimpleNamespace,
    tmp_path: Path,
    model: str,
    names: tuple[str, ...],
    words: tuple[str, ...],
    said: str,
) -> None:
    folder = photos(tmp_path / "photos", *names)
    done = run("report", "--model", model.replace("FILE", str(file)), "--data", folder, *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "--classes" in done.stderr
    assert made.box is None


def test_a_model_without_weights_is_the_same_for_the_same_seed(file: Path, made: SimpleNamespace) -> None:
    def weights(*words: object) -> torch.Tensor:
        done = run("report", "--model", f"{file}:make", "--data", f"{file}:images", *words)
        assert done.stderr == "note: no --weights: the model is as its factory returns it\n"
        return made.box.model[1].weight.detach()

    before = torch.get_rng_state()
    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights("--seed", 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_judge_gets_the_inputs_of_the_model_unless_it_has_its_own(file: Path, made: SimpleNamespace) -> None:
    done = run("report", "--model", f"{file}:make", "--data", f"{file}:images", "--judge", f"{file}:bare")
    assert done.exit_code == 0, done.output
    assert made.judge.inputs == made.box.inputs
    assert made.judge.model is not made.box.model


def test_what_train_saves_is_what_report_takes(made: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    done = run("train", "digits-cnn", "--epochs", 1, "-o", path, "-q")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{path}: ")
    done = run("report", "--model", "zoo:digits-cnn", "--weights", path, "--data", "digits:test")
    assert done.exit_code == 0, done.output
    x, y = made.data.tensors()
    assert (made.box.predict(x) == y).double().mean() > 0.3  # an untrained model names one in ten


@pytest.mark.parametrize("interrupted", [False, True])
def test_demo_reports_on_held_out_digits_with_a_judge(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    def fit(model: object, inputs: object, train: object, test: object, **options: object) -> SimpleNamespace:
        made.train = train
        return SimpleNamespace(interrupted=interrupted)

    monkeypatch.setattr(unboxed.training, "fit", fit)
    done = run("demo", "-o", "page", "-q")
    assert done.exit_code == (130 if interrupted else 0), done.output
    assert (made.box is None) == interrupted
    assert len(made.train) == 1438
    if not interrupted:
        assert done.stdout.splitlines()[-1] == f"wrote {Path('page/index.html')}: open it in a browser"
        assert (len(made.data), made.judge.classes) == (359, made.box.classes)


def test_failed_sections_are_named_in_the_exit(file: Path, made: SimpleNamespace) -> None:
    made.failures = {"morphs": "no class is near"}
    done = run("report", "--model", f"{file}:make", "--data", f"{file}:images")
    assert done.exit_code == 1
    assert "index.html" in done.stdout
    assert "section morphs failed: no class is near" in done.stderr


def test_an_interrupted_report_keeps_its_page(file: Path, made: SimpleNamespace) -> None:
    made.failures = {"morphs": "not made: the work was interrupted"}
    done = run("report", "--model", f"{file}:make", "--data", f"{file}:images")
    assert done.exit_code == 130
    assert "index.html" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "mnist-cn", "--data", "digits"], "'mnist-cn' is no model"),
        (["--model", "zoo:mnist-cn", "--data", "digits"], "mnist-cnn"),
        (["--model", "FILE:make", "--data", "digit"], "did you mean 'digits'?"),
        (["--model", "FILE:bare", "--data", "digits"], "what its inputs are: give --shape 3,224,224"),
        (["--model", "FILE:bare", "--data", "digits", "--mean", "0.5"], "--mean and --std need --shape"),
        (["--model", "FILE:bare", "--data", "digits", "--shape", "28x28"], "--shape wants numbers separated by commas"),
        (["--model", "FILE:bare", "--data", "digits", "--shape", "28,28"], "--shape is channels,height,width"),
        (["--model", "FILE:bare", "--data", "digits"], "let the factory return (model, ub.Features(names))"),
        (["--model", "FILE:bare", "--data", "digits", "--shape", "4"], "return (model, ub.Features(names))"),
        (["--model", "FILE:make", "--data", "digits", "--weights", "nowhere.pt"], "no weights file nowhere.pt"),
        (["--model", "FILE:make", "--data", "digits", "--classes", "a,b"], "got 2 class names. Give one per output"),
        (["--model", "FILE:one", "--data", "digits"], "pass --outputs binary"),
        (["--model", "FILE:make", "--data", "digits", "--outputs", "logit"], "outputs must be one of logits"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(file: Path, words: list[str], said: str) -> None:
    done = run("report", *(word.replace("FILE", str(file)) for word in words))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    done = run("report", "--model", "mnist-cn", "--data", "digits", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("error: ")


def test_an_unknown_option_is_exit_code_2() -> None:
    assert run("report", "--modle", "x").exit_code == 2


def test_ctrl_c_is_exit_code_130(tmp_path: Path) -> None:
    handler = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a parent may ignore it (nohup)
    source = f"import os, signal\n{handler}\nos.kill(os.getpid(), {int(signal.SIGINT)})\n"
    (tmp_path / "torch.py").write_text(source)  # is imported in place of torch, in the middle of the command
    words = ["report", "--model", "zoo:digits-cnn", "--data", "digits"]
    done = subprocess.run([sys.executable, "-m", "unboxed", *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
