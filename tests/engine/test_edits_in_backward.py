"""Gradients through edits: checkpointed parts run again in the backward pass, with the edits of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unboxed as ub
from unboxed.engine.gradients.edited import call_with_edited_activations
from unboxed.errors import LayerError

SIZE, CHANNELS = 6, 4


class Checkpointed(nn.Module):
    """A model that runs again in the backward pass, or the same without that; its ReLU once or several times."""

    def __init__(self, checkpoints: bool, n_calls: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.checkpoints, self.n_calls = checkpoints, n_calls
        self.conv, self.relu = nn.Conv2d(1, CHANNELS, 3).double(), nn.Sequential(nn.ReLU())
        self.fc = nn.Linear(CHANNELS * (SIZE - 2) ** 2, 3).double()

    def body(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        for _ in range(self.n_calls):
            h = self.relu(h)
        h = torch.relu(h)
        logits: Tensor = self.fc(h.flatten(1))
        return logits

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.body, x, use_reentrant=False) if self.checkpoints else self.body(x)


def gradient(model: nn.Module, layer: str, edit: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    box = ub.Box(model, ub.Pixels((1, SIZE, SIZE)), outputs="logits")
    x = box.validate_inputs(torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    masks = torch.ones(3, CHANNELS, dtype=torch.float64, requires_grad=True)
    with box.isolated():
        return call_with_edited_activations(
            box, x, ["logits"], {layer: lambda h: edit(h, masks)},
            lambda acts: torch.autograd.grad(acts["logits"][:, 1].sum(), masks)[0],
        )  # fmt: skip


def squared(h: Tensor, masks: Tensor) -> Tensor:
    return h.square() * masks[:, :, None, None]


@pytest.mark.parametrize("layer", ["conv", "relu", "relu.0:input", "relu.0:relu#0", "fc:input"])
def test_the_gradient_is_that_without_checkpoints(layer: str) -> None:
    edit = (lambda h, masks: h.square() * masks.sum(1, keepdim=True)) if layer == "fc:input" else squared
    found, expected = (gradient(Checkpointed(checkpoints), layer, edit) for checkpoints in (True, False))
    assert bool((expected != 0).any())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_which_call_runs_again_is_not_guessed() -> None:
    gradient(Checkpointed(False, n_calls=2), "relu#1", squared)
    with pytest.raises(LayerError, match="runs 2 times in a model with checkpoints"):
        gradient(Checkpointed(True, n_calls=2), "relu#1", squared)


def test_an_op_that_is_in_no_module_is_refused_where_it_runs_again() -> None:
    gradient(Checkpointed(False), ":relu", squared)
    with pytest.raises(LayerError, match="':relu' changes in a part of the model that is checkpointed"):
        gradient(Checkpointed(True), ":relu", squared)


def test_a_layer_that_does_not_run_is_refused() -> None:
    model = Checkpointed(False)
    model.unused = nn.ReLU()
    with pytest.raises(LayerError, match="unused"):
        gradient(model, "unused", squared)


def test_no_hook_is_left() -> None:
    model = Checkpointed(True)
    with pytest.raises(RuntimeError, match="size of tensor"):
        gradient(model, "conv", lambda h, masks: h + torch.zeros(7, dtype=h.dtype))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
