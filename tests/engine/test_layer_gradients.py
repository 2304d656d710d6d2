"""The gradients of several layers by one pass equal those of each alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.gradients.layers import layer_gradients
from unboxed.engine.gradients.score import gradients
from unboxed.errors import OutputError


def small() -> tuple[ub.Box, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    return ub.Box(model.double(), ub.Pixels((1, 6, 6))), torch.rand(5, 1, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("batch_size", ["auto", 2])
def test_one_pass_equals_one_per_layer(batch_size: int | str) -> None:
    box, x = small()
    layers = ["input", "0", "3:input", "3", "logits"]
    found = layer_gradients(box, ub.logit(2), x, layers, batch_size=batch_size)  # type: ignore[arg-type]
    for layer in layers[:-1]:
        expected = gradients(box, ub.logit(2), x, wrt=layer, relu_bypass="no").map
        torch.testing.assert_close(found[layer], expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(found["logits"], torch.eye(3, dtype=torch.float64)[2].expand(5, 3))


def test_a_layer_without_a_gradient_has_zeros() -> None:
    box, x = small()
    found = layer_gradients(box, ub.channel("0", 1), x, ["0", "3"])
    assert found["0"].any()
    assert not found["3"].any()


def test_no_gradient_at_all_is_refused() -> None:
    box, x = small()
    with pytest.raises(OutputError):
        layer_gradients(box, ub.channel("0", 1), x, ["3", "5"])
