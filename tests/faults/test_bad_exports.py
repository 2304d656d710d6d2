"""A .pt2 file that can't or mustn't be opened is refused with one clear error."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from models import Bomb
from unboxed import loading
from unboxed.errors import InputError, ModelError


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 10))


class TwoInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.export.save(torch.export.export(Net().eval(), (torch.rand(4, 1, 4, 4),)), tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def test_an_exported_model_has_no_train_mode(exported: Path) -> None:
    model, _ = loading.model(str(exported))
    with pytest.raises(ModelError, match="no train mode"):
        model.train()
    assert not model.training


def test_an_exported_model_refuses_an_empty_batch(exported: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        loading.model(str(exported))[0](torch.rand(0, 1, 4, 4))


def test_the_shape_of_an_exported_model_is_in_the_question_for_its_inputs(exported: Path) -> None:
    with pytest.raises(ModelError, match="--shape 1,4,4"):
        ub.load(str(exported))


def test_an_exported_model_with_two_inputs(tmp_path: Path) -> None:
    x = torch.rand(2, 3)
    torch.export.save(torch.export.export(TwoInputs(), (x, x)), tmp_path / "model.pt2")
    with pytest.raises(ModelError, match=r"takes 2 inputs \(a, b\)"):
        loading.model(str(tmp_path / "model.pt2"))


def test_a_truncated_export(exported: Path) -> None:
    whole = exported.read_bytes()
    for part in (0, 10, len(whole) // 2, len(whole) - 1):
        exported.write_bytes(whole[:part])
        with pytest.raises(ModelError, match=r"can't be read as a \.pt2 file"):
            loading.model(str(exported))


def rewritten(path: Path, name: str, content: bytes) -> Path:
    """The archive with one member replaced or added."""
    with zipfile.ZipFile(path) as archive:
        members = {m: archive.read(m) for m in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, old in {**members, name: content}.items():
            archive.writestr(member, content if member == name else old)
    return path


@pytest.mark.parametrize("member", ["model/data/aotinductor/model/a.so", "model/data/constants/custom_obj_0"])
def test_an_export_with_compiled_code_or_pickled_objects(exported: Path, member: str) -> None:
    rewritten(exported, member, b"")
    with pytest.raises(ModelError, match="holds compiled code or pickled objects"):
        loading.model(str(exported))


def test_a_pickle_inside_an_export_is_never_run(exported: Path, tmp_path: Path) -> None:
    torch.save((Bomb(tmp_path / "mark"),), tmp_path / "bomb.pt")
    rewritten(exported, "model/data/sample_inputs/model.pt", (tmp_path / "bomb.pt").read_bytes())
    with pytest.raises(ModelError, match="pickled objects"):
        loading.model(str(exported))
    assert not (tmp_path / "mark").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_an_ordinary_zip_named_pt2(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelError, match="can't load"):
        loading.model(str(tmp_path / "model.pt2"))
    assert caplog.records == []  # torch logs a traceback of its own
