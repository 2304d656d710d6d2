"""Models saved by torch.export: their layers have names, and any number of rows goes through."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import unboxed as ub
from models import small_conv as model
from unboxed import loading
from unboxed.engine.gradients.score import gradients
from unboxed.errors import UnboxedWarning


def export(path: Path, batch: int | None, made: nn.Module | None = None, least: int = 1) -> Path:
    x = torch.rand(batch or 5, 1, 8, 8)
    shapes = None if batch else ({0: torch.export.Dim("n", min=least)},)
    torch.export.save(torch.export.export(made or model(), (x,), dynamic_shapes=shapes), path)
    return path


@pytest.mark.parametrize("batch", [None, 1, 4], ids=["any", "one", "four"])
def test_an_exported_model_takes_any_number_of_rows(tmp_path: Path, batch: int | None) -> None:
    made, inputs = loading.model(str(export(tmp_path / "model.pt2", batch)))
    assert inputs is None
    for n in (1, 3, 4, 9):
        x = torch.rand(n, 1, 8, 8)
        torch.testing.assert_close(made(x), model()(x), msg=lambda said, n=n: f"{n} rows: {said}")


def test_an_exported_model_keeps_the_least_batch_of_its_graph(tmp_path: Path) -> None:
    made, _ = loading.model(str(export(tmp_path / "model.pt2", None, least=4)))
    assert made.row_limits[0] == 4
    assert made(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_gradients_go_through_the_padding(tmp_path: Path) -> None:
    made, _ = loading.model(str(export(tmp_path / "model.pt2", 4)))
    x = torch.rand(6, 1, 8, 8, requires_grad=True)
    (given,) = torch.autograd.grad(made(x)[:, 3].sum(), x)
    (wanted,) = torch.autograd.grad(model()(x)[:, 3].sum(), x)
    torch.testing.assert_close(given, wanted)


def test_the_layers_of_an_exported_model_have_names(tmp_path: Path) -> None:
    box = ub.load(str(export(tmp_path / "model.pt2", None)), inputs=ub.Pixels((1, 8, 8)))
    assert [row.path for row in box.layers] == ["conv", "norm", "drop", "fc"]
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(box.read(x, ["norm"])["norm"], model().norm(model().conv(x)))


@pytest.fixture(params=[1, 4], scope="module")
def fixed_batch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ub.Box:
    path = export(tmp_path_factory.mktemp("fixed") / "model.pt2", request.param)
    return ub.load(str(path), inputs=ub.Pixels((1, 8, 8)))


@pytest.mark.parametrize("n", [1, 3, 9])
def test_a_box_keeps_the_batch_size_of_an_exported_model(fixed_batch: ub.Box, n: int) -> None:
    """Every row is true: activations, gradients at the input and at a layer, and a ReLU called as a function."""
    plain, box = ub.Box(model(), ub.Pixels((1, 8, 8))), fixed_batch
    x = torch.rand(n, 1, 8, 8)
    for address in ("logits", "conv", "norm:input", ":relu"):
        torch.testing.assert_close(box.read(x, [address]), plain.read(x, [address]))
    for objective, at in ((ub.logit(3), "input"), (ub.logit(3), "conv"), (ub.channel("norm", 2), "input")):
        given, wanted = (gradients(b, objective, x, wrt=at).map for b in (box, plain))
        torch.testing.assert_close(given, wanted)
    torch.testing.assert_close(ub.attribution.guided_backprop(box, x, 3), ub.attribution.guided_backprop(plain, x, 3))


def test_a_box_keeps_the_batch_size_of_an_exported_model_that_ends_in_log_softmax(tmp_path: Path) -> None:
    whole = nn.Sequential(model(), nn.LogSoftmax(1)).eval()
    box = ub.load(str(export(tmp_path / "model.pt2", 4, whole)), inputs=ub.Pixels((1, 8, 8)))
    x = torch.rand(3, 1, 8, 8)
    assert box.outputs == "logprobs"
    torch.testing.assert_close(box(x), model()(x))


def test_weights_go_into_an_exported_model(tmp_path: Path) -> None:
    torch.save({f"module.{name}": h for name, h in model().state_dict().items()}, tmp_path / "w.pt")
    spec = str(export(tmp_path / "model.pt2", None, model(1)))
    box = ub.load(spec, tmp_path / "w.pt", inputs=ub.Pixels((1, 8, 8)))
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(box(x), model()(x))


def test_an_exported_model_is_in_eval(tmp_path: Path) -> None:
    made, _ = loading.model(str(export(tmp_path / "model.pt2", None)))
    assert not any(m.training for m in made.modules())


def test_an_exported_model_can_be_copied(tmp_path: Path) -> None:
    made, _ = loading.model(str(export(tmp_path / "model.pt2", 4)))
    x = torch.rand(3, 1, 8, 8)
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.fc.bias += 1
    torch.testing.assert_close(other(x), made(x) + 1)


@pytest.mark.parametrize("part", ["drop", "norm"])
def test_a_model_exported_in_train_mode_is_reported(tmp_path: Path, part: str) -> None:
    half = model()
    getattr(half, part).train()
    path = export(tmp_path / "model.pt2", None, half, least=2)
    with pytest.warns(UnboxedWarning, match="train mode"):
        loading.model(str(path))
