"""Gradient dot and TracIn: captum's TracInCP and TracInCPFast, and what a real step of gradient descent does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.influence import TracInCP, TracInCPFast
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import unboxed as ub
from unboxed.errors import DataError, InputError, ModelError, NaNError
from unboxed.influence import gradient_dot, tracin
from unboxed.influence.result import NATS_PER_EXAMPLE_UNIT_TEXT, SIMILARITY_UNIT_TEXT
from unboxed.testing.models import GRAY_INPUTS, N_CLASSES, PlainCNN

N, LRS = 12, (0.3, 0.2, 0.1)


def small_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PlainCNN()


@pytest.fixture
def box() -> ub.Box:
    return ub.Box(small_model(), GRAY_INPUTS, outputs="logits")


@pytest.fixture
def data() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    y = torch.arange(N) % N_CLASSES
    return torch.rand(3, 1, 8, 8, generator=g), torch.tensor([0, 2, 1]), (torch.rand(N, 1, 8, 8, generator=g), y)


@pytest.fixture
def checkpoints(box: ub.Box) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(2)
    state = box.model.state_dict()
    return [{n: h + k * 0.05 * torch.randn(h.shape, generator=g) for n, h in state.items()} for k in range(3)]


def normalized(x: Tensor) -> Tensor:
    return GRAY_INPUTS.encode(x)


def by_captum(
    make: Callable[..., Any], data: Any, checkpoints: list[dict[str, Tensor]], tmp_path: Path, **kwargs: Any
) -> Tensor:
    x, y, (train_x, train_y) = data
    paths = [str(tmp_path / f"{k}.pt") for k in range(len(checkpoints))]
    for path, state in zip(paths, checkpoints, strict=True):
        torch.save(state, path)

    def load(module: nn.Module, path: str) -> float:
        module.load_state_dict(torch.load(path, weights_only=True))
        return LRS[paths.index(path)]

    loss = nn.CrossEntropyLoss(reduction="sum")
    method = make(
        model=small_model(), train_dataset=TensorDataset(normalized(train_x), train_y), checkpoints=paths,
        checkpoints_load_func=load, loss_fn=loss, batch_size=5, **kwargs,
    )  # fmt: skip
    return method.influence((normalized(x), y))  # type: ignore[no-any-return]


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.filterwarnings("ignore")
def test_tracin_equals_captum(box: ub.Box, data: Any, checkpoints: Any, tmp_path: Path) -> None:
    expected = by_captum(TracInCP, data, checkpoints, tmp_path, sample_wise_grads_per_batch=True)
    result = tracin(box, *data, checkpoints=checkpoints, lr=LRS)
    assert relative_error(result.scores, expected) < 1e-5
    assert (result.truth, result.unit) == ("one run", SIMILARITY_UNIT_TEXT)


@pytest.mark.filterwarnings("ignore")
def test_the_last_layer_alone_equals_captums_fast_variant(
    box: ub.Box, data: Any, checkpoints: Any, tmp_path: Path
) -> None:
    """Captum leaves the layer's bias out, as we do where it is frozen."""
    expected = by_captum(TracInCPFast, data, checkpoints, tmp_path, final_fc_layer="fc")
    box.model.fc.bias.requires_grad_(False)  # type: ignore[union-attr]
    files = [tmp_path / f"{k}.pt" for k in range(3)]
    assert relative_error(tracin(box, *data, checkpoints=files, lr=LRS, layers="fc").scores, expected) < 1e-5


def test_scores_are_what_a_small_step_does(data: Any) -> None:
    """Leaving an example out of one step of gradient descent on the mean loss changes the query's loss by its score."""
    x, y, (train_x, train_y) = data
    model, lr = small_model().double(), 1e-6
    box = ub.Box(model, GRAY_INPUTS, outputs="logits")

    def loss_after_step(kept: list[int]) -> Tensor:
        stepped = copy.deepcopy(model)
        losses = F.cross_entropy(stepped(normalized(train_x.double())), train_y, reduction="none")
        grads = torch.autograd.grad(losses[kept].sum() / N, list(stepped.parameters()))
        with torch.no_grad():
            for p, g in zip(stepped.parameters(), grads, strict=True):
                p -= lr * g
            return F.cross_entropy(stepped(normalized(x.double())), y, reduction="none")

    every = list(range(N))
    changes = torch.stack([loss_after_step([i for i in every if i != k]) - loss_after_step(every) for k in every], 1)
    for result in (
        gradient_dot(box, *data, lr=lr),
        tracin(box, *data, lr=lr, steps_per_checkpoint=1, checkpoints=[model.state_dict()]),
    ):
        assert relative_error(result.scores, changes) < 1e-3
        assert result.unit == NATS_PER_EXAMPLE_UNIT_TEXT


def test_tracin_in_nats_counts_the_steps(box: ub.Box, data: Any, checkpoints: Any) -> None:
    plain = [tracin(box, *data, checkpoints=[c]).scores for c in checkpoints]
    result = tracin(box, *data, checkpoints=checkpoints, lr=LRS, steps_per_checkpoint=[5, 6, 7])
    expected = sum(lr * k / N * s for lr, k, s in zip(LRS, (5, 6, 7), plain, strict=True))
    assert relative_error(result.scores, expected) < 1e-5  # type: ignore[arg-type]


def test_cosines_and_their_labels(box: ub.Box, data: Any) -> None:
    x, _, train = data
    result = gradient_dot(box, *train, train, metric="cosine")
    assert torch.allclose(result.scores.diagonal(), torch.ones(N), atol=1e-5)
    assert (result.scores.abs() <= 1 + 1e-5).all()
    assert torch.equal(gradient_dot(box, x, None, train).scores, gradient_dot(box, x, box.predict(x), train).scores)


def test_examples_come_in_any_form(box: ub.Box, data: Any) -> None:
    x, y, train = data
    expected = gradient_dot(box, x, y, train).scores
    assert torch.equal(gradient_dot(box, x, y, TensorDataset(*train)).scores, expected)
    with pytest.raises(DataError, match="label"):
        gradient_dot(box, x, y, train[0])


def test_checkpoints_in_files(box: ub.Box, data: Any, checkpoints: Any, tmp_path: Path) -> None:
    expected = tracin(box, *data, checkpoints=checkpoints).scores
    save_file(checkpoints[0], tmp_path / "0.safetensors")
    torch.save({"epoch": 3, "model_state_dict": checkpoints[1]}, tmp_path / "1.pt")
    torch.save(checkpoints[2], tmp_path / "2.pt")
    files = [tmp_path / "0.safetensors", str(tmp_path / "1.pt"), tmp_path / "2.pt"]
    assert torch.equal(tracin(box, *data, checkpoints=files).scores, expected)


def test_another_architecture_is_refused_by_name(box: ub.Box, data: Any, checkpoints: Any, tmp_path: Path) -> None:
    wider = {**checkpoints[0], "fc.weight": torch.zeros(4, 99)}
    torch.save(wider, tmp_path / "wider.pt")
    with pytest.raises(ModelError, match=r"checkpoint 1 \(.*wider.pt\).*fc.weight is \(4, 99\)"):
        tracin(box, *data, checkpoints=[checkpoints[0], tmp_path / "wider.pt"])
    renamed = {n.replace("conv1", "first"): h for n, h in checkpoints[0].items()}
    with pytest.raises(ModelError, match=r"checkpoint 0 .*it has no conv1.weight"):
        tracin(box, *data, checkpoints=[renamed])
    with pytest.raises(ModelError, match=r"the model has no more.weight"):
        tracin(box, *data, checkpoints=[{**checkpoints[0], "more.weight": torch.zeros(1)}])


def test_bad_input(box: ub.Box, data: Any, checkpoints: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        tracin(box, *data, checkpoints=[])
    with pytest.raises(InputError, match="for each of the 3 checkpoints; got 2"):
        tracin(box, *data, checkpoints=checkpoints, lr=[0.1, 0.2])
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"broken.pt is a file of text, not weights"):
        tracin(box, *data, checkpoints=[tmp_path / "broken.pt"])
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="no state dict"):
        tracin(box, *data, checkpoints=[tmp_path / "list.pt"])
    nan = {n: h * torch.nan for n, h in checkpoints[0].items()}
    with pytest.raises(NaNError, match="the loss is NaN or infinite for row"):
        tracin(box, *data, checkpoints=[nan])
