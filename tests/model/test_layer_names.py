"""Of a layer that a model does not have the error says which are meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.errors import LayerError


@pytest.fixture(scope="module")
def numbered() -> ub.Box:
    """A model whose layers have numbers for names."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 2)
    return ub.Box(nn.Sequential(*layers), ub.Pixels((1, 8, 8)), outputs="logits")


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        ("conv2", r"no layer 'conv2' in this model; did you mean '0' \(Conv2d\) or '2' \(Conv2d\)\?"),
        ("features.conv", r"did you mean '0' \(Conv2d\) or '2' \(Conv2d\)\?"),
        ("relu1", r"did you mean '1' \(ReLU\)\?"),
        ("Linear", r"did you mean '4' \(Linear\)\?"),
        ("layer4", r"there are '0', '1', '2', '3', '4'"),
        ("1:rel", r"did you mean '1:relu'\?"),
        (2, r"got 2; give the layer's path as text: '2'"),
    ],
)
def test_layers_that_are_numbered_are_found_by_their_type(numbered: ub.Box, layer: Any, text: str) -> None:
    with pytest.raises(LayerError, match=text):
        ub.attribution.grad_cam(numbered, torch.rand(2, 1, 8, 8), 0, layer=layer)


def test_layers_with_names_are_found_by_their_spelling() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    with pytest.raises(LayerError, match=r"no layer 'conv9' in this model; did you mean 'conv\d'"):
        box.layers.resolve("conv9")
