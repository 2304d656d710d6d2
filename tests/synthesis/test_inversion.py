"""Inversion: what is particular to it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from models import interrupted
from unboxed.engine.optimize.colors import pixel_mean_and_std
from unboxed.errors import InputError, LayerError
from unboxed.synthesis import inversion, inversions


@pytest.fixture(scope="module")
def box() -> ub.Box:
    return ub.Box(*ub.zoo.load("digits-cnn"))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return ub.data.digits("test").first(3).x


def test_little_is_lost_early_and_much_late(box: ub.Box, x: Tensor) -> None:
    result = inversions(box, x, ["conv1", "fc1", "logits"], steps=80)
    assert result.layers == ("conv1", "fc1", "logits")
    assert result.images.shape == (3, *x.shape)
    far = (result.images - x).flatten(2).pow(2).mean(2).sqrt().mean(1)
    assert far[0] < far[1] < far[2]
    assert far[0] < 0.05
    assert (result.errors < 0.05).all()
    assert torch.equal(box.predict(result.images[2]), box.predict(x))


def test_the_numbers_are_of_the_images(box: ub.Box, x: Tensor) -> None:
    result = inversion(box, x, "conv2", steps=4, jitter=2)
    h, now = box.read(x, "conv2")["conv2"].flatten(1), box.read(result.images, "conv2")["conv2"].flatten(1)
    assert torch.allclose(result.errors, (now - h).pow(2).sum(1) / h.pow(2).sum(1), rtol=1e-5)
    assert torch.allclose(result.cosines, torch.cosine_similarity(now, h), rtol=1e-5)
    assert result.history.shape == (5, 3)


def test_starts_are_next_to_one_another_and_differ(box: ub.Box, x: Tensor) -> None:
    result = inversion(box, x, "fc1", steps=3, n_starts=2)
    assert result.source_rows.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(result.images) == 6
    assert (result.images[0] - result.images[1]).abs().max() > 1e-3
    alone = inversion(box, x[:1], "fc1", steps=3, n_starts=2)
    assert torch.allclose(alone.images, result.images[:2], atol=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("canvas", ["pixels", "fourier"])
def test_every_objective_rises(box: ub.Box, x: Tensor, metric: str, canvas: str) -> None:
    if (metric, canvas) == ("dot", "fourier"):
        with pytest.raises(InputError, match="no bound"):
            inversion(box, x, "conv2", metric=metric, canvas=canvas)
        return
    result = inversion(box, x, "conv2", metric=metric, canvas=canvas, steps=40)
    assert (result.scores > result.history[0]).all()
    assert (result.cosines > 0.85).all()


def test_the_dot_product_stays_in_its_ball(box: ub.Box, x: Tensor) -> None:
    result = inversion(box, x, "conv2", metric="dot", steps=20)
    color, std = pixel_mean_and_std(box.inputs)
    far = (result.images - color.view(-1, 1, 1)).flatten(1).norm(dim=1)
    assert (far <= std * 28 * (1 + 1e-5)).all()
    assert (far >= std * 28 * 0.9).all()


def test_jitter_is_what_the_layer_tolerates(x: Tensor) -> None:
    """A layer without positions is invariant to any shift; one with positions to none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pooled = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    wide = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    box = ub.Box(pooled, ub.Pixels((1, 32, 32)), outputs="logits")
    assert inversion(box, wide, "logits", steps=1).jitter == 4
    assert inversion(box, wide, "0", steps=1).jitter == 0
    assert inversion(box, wide, "0", steps=1, jitter=3).jitter == 3


def test_the_layers_are_spread_over_the_depth(box: ub.Box, x: Tensor) -> None:
    assert inversions(box, x, steps=1).layers == ("relu1", "pool1", "relu2", "pool2", "relu3", "logits")


def test_frames_and_figures(box: ub.Box, x: Tensor) -> None:
    result = inversion(box, x, "logits", steps=4, frame_every=2)
    assert result.frames is not None
    assert result.frames.shape == (3, *x.shape)
    assert ub.plots.image_sheet(result).size[0] > 100
    assert ub.plots.frame_strip(result).size[0] > 100


def test_bad_settings_are_refused(box: ub.Box, x: Tensor) -> None:
    bad = [{"metric": "l1"}, {"canvas": "oil"}, {"smooth": -1}, {"beta": 0}, {"final_prior_scale": 2}, {"alpha": -1}]
    for settings in [*bad, {"jitter": -1}, {"n_starts": 0}, {"frame_every": 0}]:
        with pytest.raises(InputError):
            inversion(box, x, "fc1", **settings)
    with pytest.raises(LayerError, match="conv1"):
        inversion(box, x, "conv")
    with pytest.raises(InputError, match="must name a layer"):
        inversions(box, x, [])


def test_tabular_models_are_refused() -> None:
    model = nn.Linear(3, 2)
    box = ub.Box(model, ub.Features(("a", "b", "c")), outputs="logits")
    with pytest.raises(InputError, match="images"):
        inversion(box, torch.zeros(1, 3), "logits")


@pytest.mark.parametrize("model", ["relu_called_twice", "double", "bfloat16"])
def test_a_call_of_a_layer(model: str) -> None:
    entry = awkward.get_model(model)
    box = ub.Box(entry.model, entry.inputs, **entry.box_settings)
    path = "relu1#1" if model == "relu_called_twice" else "conv1"
    result = inversion(box, entry.images(2).to(box.dtype), path, steps=2)
    assert result.layer == path
    assert result.images.dtype == box.dtype


def test_ctrl_c_between_layers_keeps_those_made(box: ub.Box, x: Tensor) -> None:
    whole = inversions(box, x, ["conv1", "fc1"], steps=3)
    with interrupted(box.model, 5, once=True):
        result = inversions(box, x, ["conv1", "fc1"], steps=3)
    assert result.interrupted
    assert torch.equal(result.images[0], whole.images[0])
    assert not torch.equal(result.images[1], whole.images[1])


def test_ctrl_c_ends_all_layers(box: ub.Box, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those after the one that was cut short hold their start."""
    steps: list[int] = []

    def cut(box: ub.Box, x: Tensor, layer: str, **settings: Any) -> Any:
        steps.append(settings["steps"])
        result = inversion(box, x, layer, **{**settings, "steps": 0})
        return replace(result, interrupted=len(steps) == 1)

    monkeypatch.setattr(sys.modules["unboxed.synthesis.inversions"], "inversion", cut)
    result = inversions(box, x, ["conv1", "conv2", "fc1"], steps=7)
    assert result.interrupted
    assert steps == [7, 0, 0]


class Listed(nn.Module):
    """Its layers are in a ModuleList, which does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.body = nn.ModuleList([nn.Conv2d(2 + i, 3 + i, 3) for i in range(2)])
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.body:
            x = layer(x).relu()
        return self.head(x.flatten(1))


def test_layers_in_a_module_list() -> None:
    result = inversions(ub.Box(Listed().eval(), awkward.GRAY_INPUTS), torch.rand(1, 1, 8, 8), steps=1)
    assert result.layers == ("stem", "body.0", "body.1", "logits")
