"""What can't be loaded is refused with one clear error, and leaves the model as it was."""

import argparse
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import unboxed as ub
from models import Bomb
from unboxed import loading
from unboxed.errors import DataError, ModelError


class Net(nn.Module):
    def __init__(self, width: int = 10, hidden: int = 6) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.flatten(1)).relu())


def refused(path: Path, *words: str) -> str:
    """Loading weights must fail with these words, and must not touch the model."""
    model = Net()
    before = {name: h.clone() for name, h in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        loading.weights(model, path)
    said = str(caught.value)
    assert [word for word in words if word not in said] == [], said
    assert all(torch.equal(h, before[name]) for name, h in model.state_dict().items())
    assert "tensor(" not in said
    return said


# -- weights -----------------------------------------------------------------------------------------------------------


def test_mismatches_are_listed_by_name(tmp_path: Path) -> None:
    state = {**Net(width=5).state_dict(), "extra.weight": torch.ones(1)}
    del state["fc1.bias"]
    torch.save(state, tmp_path / "w.pt")
    refused(
        tmp_path / "w.pt",
        "1 missing in the file: fc1.bias",
        "1 unexpected in the file: extra.weight",
        "fc2.weight is (5, 6) in the file, (10, 6) in the model",
    )


def test_one_wrong_shape_leaves_the_other_layers_alone(tmp_path: Path) -> None:
    torch.save(Net(width=5).state_dict(), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "2 of another shape or kind", "fc2.bias")


def test_mismatches_under_a_prefix_are_reported_by_the_names_of_the_model(tmp_path: Path) -> None:
    state = {f"module.{name}": h for name, h in Net().state_dict().items() if name != "fc2.bias"}
    torch.save(state, tmp_path / "w.pt")
    said = refused(tmp_path / "w.pt", "1 missing in the file: fc2.bias")
    assert "unexpected" not in said


def test_a_long_list_of_names_is_cut(tmp_path: Path) -> None:
    torch.save({f"block{i}.weight": torch.ones(1) for i in range(100)}, tmp_path / "w.pt")
    said = refused(tmp_path / "w.pt", "100 unexpected in the file: block0.weight", "and 92 more")
    assert len(said) < 600


@pytest.mark.parametrize("kind", ["pt", "safetensors", "legacy"])
def test_a_truncated_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(Net().state_dict(), path)
    else:
        torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=kind == "pt")
    whole = path.read_bytes()
    for part in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        refused(path, path.name, "can't be read")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html></html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec\n", "git lfs pull"),
        (bytes(range(99)), "can't be read"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, why: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, why)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "w.pt", "there is no", "w.pt")
    refused(tmp_path, "is a folder")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_in_it_is_never_run(tmp_path: Path, legacy: bool) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "mark")}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "w.pt", "mkdir", "can run any code", "weights_only=False", "torch.save(")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(tmp_path / "plain.pt")
    assert not (tmp_path / "mark").exists()


class Holder:
    """An object with a state dict, as an average of weights that a script has pickled whole."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()


WRAPPINGS = {
    "model": lambda state, beside: Net(),
    "none": lambda state, beside: {**state, "other": beside},
    "object": lambda state, beside: {"ema": Holder(Net()), "other": beside},
    "nested": lambda state, beside: {"model": {"state_dict": state, "other": beside}, "history": [beside]},
} | {
    key: lambda state, beside, key=key: {key: state, "other": beside}
    for key in ("state_dict", "model", "net", "model_state_dict", "weights")
}


@pytest.mark.parametrize(
    "beside", [argparse.Namespace(lr=1), np.float64(0.9), np.arange(3)], ids=["args", "scalar", "array"]
)
@pytest.mark.parametrize("name", ["w.pt", "my $HOME 'best' model; .pt"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_command_in_the_error_makes_a_file_that_loads(
    tmp_path: Path, wrapping: str, name: str, beside: object
) -> None:
    torch.save(WRAPPINGS[wrapping](Net().state_dict(), beside), tmp_path / name)
    said = refused(tmp_path / name, "more than tensors")
    _, flag, code, *files = shlex.split(said[said.index("python -c") :])
    assert flag == "-c"
    assert not {*'$`\\!"'} & {*code}  # nothing that a shell reads within double quotes
    with pytest.MonkeyPatch.context() as patch:  # as `python -c` would, without its start
        patch.setattr(sys, "argv", ["-c", *files])
        exec(code, {})
    loading.weights(Net(), files[1])


def test_the_command_in_the_error_is_one_for_a_shell(tmp_path: Path) -> None:
    torch.save({"net": Net().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "a b$c.pt")
    said = refused(tmp_path / "a b$c.pt", "more than tensors")
    command = said[said.index("python -c") :].replace("python", r"printf '%s\n'", 1)  # what the shell makes of it
    flag, code, *files = subprocess.check_output(["sh", "-c", command], text=True).splitlines()
    assert flag == "-c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [flag, *files])
        exec(code, {})
    loading.weights(Net(), tmp_path / "a b$c-weights.pt")


OPTIMIZER = {
    "state": {0: {"exp_avg": torch.ones(2), "step": torch.ones(1)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([torch.ones(2)], "holds a list"),
        ({}, "no weights"),
        ({"epoch": 3}, "its keys are: epoch"),
        ({"gan": {"a": torch.ones(1)}, "critic": {"a": torch.ones(1)}}, "gan.a, critic.a"),
        (OPTIMIZER, "the state of an optimizer and no weights"),
        ({"optimizer": OPTIMIZER, "epoch": 3}, "the state of an optimizer and no weights"),
        ({"optimizer_states": [OPTIMIZER], "state_dict": {}}, "the state of an optimizer and no weights"),
    ],
)
def test_a_checkpoint_without_a_state_dict(tmp_path: Path, saved: object, words: str) -> None:
    torch.save(saved, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", words)


def test_a_checkpoint_that_holds_itself(tmp_path: Path) -> None:
    saved: dict[str, object] = {"epoch": 1}
    saved["model"] = saved
    torch.save(saved, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "no weights")


def test_two_models_in_one_file_are_not_guessed_between(tmp_path: Path) -> None:
    state = {f"{who}.{name}": h for who in ("student", "teacher") for name, h in Net().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "fit alike, and differ (student, teacher)", "w.pt:student or --weights", "w.pt:teacher")


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def make_net(): return nn.Linear(2, 2)\n"
        "def sized(width): return nn.Linear(2, width)\n"
        "def weights(): return make_net().state_dict()\n"
        "def broken(): raise RuntimeError('no such table')\n"
        "def odd(): return make_net(), 'pixels'\n"
        "class Net(nn.Linear): pass\n"
    )
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("make_nte", "'make_nte' is not defined there; did you mean 'make_net'"),
        ("sized", "wants arguments (width)"),
        ("Net", "wants arguments (in_features, out_features)"),
        ("weights", "Weights alone are no model"),
        ("broken", "RuntimeError: no such table (mine.py, line 5)"),
        ("odd", "returned str as its inputs"),
        ("", "names no factory"),
    ],
)
def test_a_factory_that_makes_no_model(file: Path, name: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        loading.model(f"{file}:{name}")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import a_module_that_is_nowhere\n", "No module named 'a_module_that_is_nowhere' (mine.py, line 1)"),
        ("def model(:\n", "SyntaxError"),
        ("\n1 / 0\n", "ZeroDivisionError: division by zero (mine.py, line 2)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_file_that_fails_while_it_is_imported(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ModelError) as caught:
        loading.model(f"{tmp_path}/mine.py:model")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mnist", "no model; a model is zoo:NAME"),
        ("weights.safetensors", "is a file for weights, not one that torch.export wrote"),
        ("a_module_that_is_nowhere:make", "there is no module 'a_module_that_is_nowhere' here"),
        ("os.nowhere:make", "there is no module 'os.nowhere' here"),
        ("nowhere.pt2", "there is no file nowhere.pt2"),
        ("nowhere/net.py:make", "there is no file nowhere/net.py"),
        (":make", "names no factory"),
    ],
)
def test_a_spec_that_names_no_model(spec: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        loading.model(spec)
    assert words in str(caught.value)


def test_a_misspelled_folder_of_a_model_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    with pytest.raises(ModelError, match=r"is no model; did you mean '.*/vit'\? a model is"):
        loading.model(str(tmp_path / "vitt"))


def test_swapped_arguments_are_recognized(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder, not a model \(folders are data: --data\)"):
        loading.model(str(tmp_path))
    with pytest.raises(ModelError, match=r"mine\.py:make_net"):
        loading.model(str(file))
    with pytest.raises(DataError, match="is a file, not data"):
        loading.data(str(file))


def test_a_long_list_of_factories_is_cut_with_a_sign(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("".join(f"def model{i}(): pass\n" for i in range(7)))
    with pytest.raises(ModelError, match=r"mine\.py:model4, \.\.\.$"):
        loading.model(f"{tmp_path}/mine.py")
    with pytest.raises(ModelError, match=r"'model4', \.\.\.$"):
        loading.model(f"{tmp_path}/mine.py:Unlike")


def test_unknown_inputs_are_asked_for(file: Path) -> None:
    with pytest.raises(ModelError, match=r"ub\.Pixels\(.*--shape 3,224,224 --mean"):
        ub.load(f"{file}:make_net")


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digit", "did you mean 'digits'?"),
        ("mnist:validation", "mnist has the parts :train and :test"),
        ("/nowhere/at/all", "there is no data set and no folder"),
        ("a_module_that_is_nowhere:make", "there is no module"),
    ],
)
def test_a_spec_that_names_no_data(spec: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        loading.data(spec)
    assert words in str(caught.value)


@pytest.mark.parametrize(("made", "words"), [("[]", "empty"), ("iter([1])", "with a length"), ("None", "NoneType")])
def test_a_factory_that_makes_no_data_set(tmp_path: Path, made: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(f"def make(): return {made}\n")
    with pytest.raises(DataError, match=words):
        loading.data(f"{tmp_path}/mine.py:make")


def test_a_folder_of_images_needs_a_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="need a size"):
        loading.data(str(tmp_path))
