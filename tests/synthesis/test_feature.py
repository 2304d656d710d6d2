"""Feature visualization, channels and caricatures: what is particular to them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

import unboxed as ub
from unboxed.engine.optimize.constraints import L2, ball_constraint
from unboxed.engine.optimize.loop import OptimizationConfig, optimize
from unboxed.engine.optimize.parameterizations import RawCanvas
from unboxed.errors import InputError, UnboxedWarning
from unboxed.objectives import channel, diversity, gram_matrix, logit, logprob, neuron, total_variation
from unboxed.synthesis import caricature, channels, feature
from unboxed.synthesis.recipe import (
    MAX_NATURAL_TOTAL_VARIATION,
    MAX_TOTAL_VARIATION_RATIO,
    image_statistics,
    natural_magnitude_spectrum,
    noise_score_statistics,
)

GRAY = ub.Pixels((1, 12, 12), mean=0.3, std=0.3)


class Model(nn.Module):
    """A convolution, whose channel 2 is dead, and a second layer that must not run when it isn't asked for."""

    def __init__(self, scale: float = 1.0, channels: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.relu, self.fc = nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Linear(600, 3)
        with torch.no_grad():
            self.conv.bias[2] = -100
            self.conv.weight *= scale
            self.conv.bias *= scale
        self.rows: list[int] = []
        self.tick_labels = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        h = self.relu(self.conv(x))
        self.tick_labels += 1
        return self.fc(h.flatten(1))


@pytest.fixture
def box() -> ub.Box:
    return ub.Box(Model(), GRAY)


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(1))


# ---- the law of first-layer filters ----------------------------------------------------------------------------------


def linear_unit() -> tuple[ub.Box, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)).eval()
    return ub.Box(model, ub.Pixels((2, 4, 4))), model[0].weight.detach()


def test_no_input_on_the_unit_ball_excites_a_filter_more_than_the_filter_itself() -> None:
    _, weights = linear_unit()
    bias = torch.zeros(5)
    own = weights / weights.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    others = torch.randn(2000, 2, 4, 4)
    others /= others.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    best = F.conv2d(others, weights, bias).flatten(1).amax(0)
    assert (F.conv2d(own, weights, bias).flatten(1).diagonal() > best).all()


def test_the_ascent_on_the_unit_ball_ends_at_the_filter() -> None:
    box, weights = linear_unit()
    zero = torch.zeros(5, 2, 4, 4)
    start = 0.1 * torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    config = OptimizationConfig(60, partial(SGD, lr=0.2), ball_constraint(L2(1.0), zero, lambda x: x))
    climb = optimize(box, neuron("0", torch.arange(5)), RawCanvas(start), config)
    assert torch.allclose(F.cosine_similarity(climb.input.flatten(1), weights.flatten(1)), torch.ones(5), atol=1e-4)


# ---- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_one_weight_of_each_prior_serves_every_scale(scale: float) -> None:
    """A ReLU layer with weights and biases times k gives k times as much: the image is the same."""
    want = feature(ub.Box(Model(), GRAY), channel("relu", torch.tensor([0, 1])), steps=20)
    got = feature(ub.Box(Model(scale), GRAY), channel("relu", torch.tensor([0, 1])), steps=20)
    assert torch.allclose(got.images, want.images, atol=1e-3)
    assert torch.allclose(got.scores, scale * want.scores, rtol=1e-2)


def test_the_total_variation_is_that_of_natural_images_at_most() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    made = channels(box, "relu1", [0, 9], steps=60)
    assert (total_variation(kind="anisotropic")({"input": made.images}) < 1.15 * MAX_NATURAL_TOTAL_VARIATION).all()
    assert (made.scores > box.read(ub.data.digits().tensors()[0], "relu1")["relu1"].flatten(2).mean(2).amax(0)[
        made.targets
    ]).all()  # fmt: skip


def test_the_score_scale_is_that_of_each_row_alone(box: ub.Box) -> None:
    seen = image_statistics(box, None)
    goal = channel("relu", torch.tensor([0, 1, 3])) * torch.tensor([1.0, 2.0, 3.0])
    all_at_once = noise_score_statistics(box, goal, 3, seen, "auto")
    for i in range(3):
        alone = noise_score_statistics(box, channel("relu", [0, 1, 3][i]) * float(i + 1), 1, seen, 1)
        assert torch.allclose(all_at_once.scale[i], alone.scale[0])
        assert torch.allclose(all_at_once.mean[i], alone.mean[0])


def test_interpolated_neurons_end_at_each_of_them(box: ub.Box) -> None:
    w = torch.linspace(0, 1, 3)
    mixed = feature(box, channel("relu", 1) * w + channel("relu", 0) * (1 - w), steps=6)
    ends = feature(box, channel("relu", torch.tensor([0, 0, 1])), steps=6)
    assert torch.allclose(mixed.images[[0, 2]], ends.images[[0, 2]], atol=1e-5)
    assert not torch.allclose(mixed.images[1], ends.images[1], atol=1e-3)


def test_colors_and_total_variation_are_estimated_from_data() -> None:
    box = ub.Box(Model(channels=3), ub.Pixels((3, 12, 12)))
    data = 0.8 + 0.05 * torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(3)).clamp(-3, 3)
    made = feature(box, channel("relu", 0), data=data, steps=1)
    assert (made.images.mean() - 0.8).abs() < 0.05
    assert math.isclose(
        image_statistics(box, data).max_total_variation,
        MAX_TOTAL_VARIATION_RATIO * float(total_variation(kind="anisotropic")({"input": data}).mean()),
        rel_tol=1e-4,
    )


# ---- diversity -------------------------------------------------------------------------------------------------------


def alike(box: ub.Box, x: Tensor) -> float:
    flat = F.normalize(gram_matrix(box.read(x, "relu2")["relu2"]).flatten(1), dim=1)
    return float((flat @ flat.T)[~torch.eye(len(x), dtype=torch.bool)].mean())


def test_diverse_images_differ_more() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    plain = feature(box, channel("relu2", 2), n_images=3, steps=50)
    apart = feature(box, channel("relu2", 2), n_images=3, steps=50, diversity=1.0)
    assert 1 - alike(box, apart.images) > 2 * (1 - alike(box, plain.images))
    assert torch.allclose(apart.scores, box.read(apart.images, "relu2")["relu2"][:, 2].mean((1, 2)), rtol=1e-4)


def test_diversity_is_among_images_of_one_channel(box: ub.Box) -> None:
    """Two of channel 0 with two of channel 1: the same as two of channel 0 alone."""
    both, one = (
        channels(box, "relu", [0, 1], images_per_channel=2, steps=5),
        channels(box, "relu", 0, images_per_channel=2, steps=5),
    )
    assert both.targets.tolist() == [0, 0, 1, 1]
    assert torch.allclose(both.images[:2], one.images, atol=1e-5)


# ---- channels --------------------------------------------------------------------------------------------------------


def test_all_channels_in_one_run_that_stops_at_the_layer(box: ub.Box) -> None:
    model: Any = box.model
    model.rows.clear()
    before = model.tick_labels
    with pytest.warns(UnboxedWarning, match="1 of 6 units"):
        made = channels(box, "relu", steps=4)
    assert made.images.shape == (6, 1, 12, 12)
    assert model.rows == [1, 16, *[6] * 5]  # the number of channels, the random images, each evaluation
    assert model.tick_labels == before


def test_dead_units_are_warned_of(box: ub.Box) -> None:
    with pytest.warns(UnboxedWarning, match="1 of 2 units seem dead"):
        made = channels(box, "relu", [1, 2], steps=8)
    assert made.dead.tolist() == [False, True]


def test_units_of_a_layer_without_positions() -> None:
    made = channels(ub.Box(*ub.zoo.load("digits-cnn")), "fc2", [3], steps=3)
    assert made.scores.shape == (1,)


# ---- canvases --------------------------------------------------------------------------------------------------------


def test_maco_keeps_the_spectrum_and_gives_the_transparency(box: ub.Box) -> None:
    x = images(32)
    made = feature(box, channel("relu", torch.tensor([0, 1])), canvas="maco", data=x, steps=5, seed=1)
    palette = image_statistics(box, x).palette
    result = torch.fft.rfft2(palette.from_colors(made.images)).abs()  # (N, C, H, W // 2 + 1)
    want = torch.fft.rfft2(palette.from_colors(x)).abs().mean(0)
    inner = (slice(None), slice(None), slice(1, 6), slice(1, 6))  # apart from what is its own mirror image
    assert torch.allclose(result[inner], want[inner[1:]].expand(2, -1, -1, -1), rtol=1e-2)
    assert made.transparency is not None
    assert made.transparency.shape == made.images.shape
    assert (made.transparency.flatten(1).amax(1) > 0).all()


def test_maco_without_data_warns(box: ub.Box) -> None:
    with pytest.warns(UnboxedWarning, match="1/f"):
        feature(box, channel("relu", 0), canvas="maco", steps=1)


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (8, 7)])
def test_the_natural_spectrum_has_unit_standard_deviation(size: tuple[int, int]) -> None:
    """Mean over many draws of the phases, as `Phase` paints them."""
    like = torch.zeros(1, 1, *size, dtype=torch.float64)
    assert natural_magnitude_spectrum(like)[0, 0, 0] == 0  # the mean color is the palette's
    phase = 2 * math.pi * torch.rand(2000, 1, size[0], size[1] // 2 + 1, dtype=torch.float64)
    z = torch.fft.irfft2(torch.polar(natural_magnitude_spectrum(like).expand_as(phase), phase), s=size)
    assert 0.85 < float(z.pow(2).mean().sqrt()) < 1.05


@pytest.mark.parametrize("canvas", ["fourier", "pixels"])
def test_images_stay_in_range(box: ub.Box, canvas: str) -> None:
    made = feature(box, channel("relu", torch.tensor([0, 1])), canvas=canvas, steps=8, frame_every=4)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert made.frames is not None
    assert len(made.frames) == 3
    assert (made.scores > made.history[0]).all()


# ---- caricatures -----------------------------------------------------------------------------------------------------


def test_a_caricature_is_of_its_own_input() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x = ub.data.digits().tensors()[0][[0, 3, 5, 8]]
    made = caricature(box, x, "relu2", steps=40)
    result, own = (box.read(v, "relu2")["relu2"].flatten(1) for v in (made.images, x))
    a, b = F.normalize(result - own.mean(0), dim=1), F.normalize(own - own.mean(0), dim=1)
    assert (a @ b.T).argmax(1).tolist() == [0, 1, 2, 3]


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda b: feature(b, 3), "objective must be an objective"),
        (lambda b: feature(b, channel("relu", 0), canvas="oil"), 'canvas must be "fourier", "pixels" or "maco"'),
        (lambda b: feature(b, channel("relu", 0) + diversity("relu"), n_images=2), "give diversity="),
        (lambda b: feature(b, channel("relu", torch.tensor([0, 1])), diversity=1.0), "one objective of one layer"),
        (lambda b: feature(b, channel("relu", 0) + logit(1), n_images=2, diversity=1.0), "one objective of one layer"),
        (lambda b: feature(b, channel("relu", torch.tensor([0, 1])), n_images=3), "there are 3"),
        (lambda b: feature(b, channel("relu", 0), n_images=0), "n_images must be"),
        (lambda b: feature(b, channel("relu", 99)), "there is no channel 99"),
        (lambda b: feature(b, channel("relu", 0), diversity=-1.0), "diversity must be"),
        (lambda b: channels(b, "relu", []), "units has no channel"),
        (lambda b: channels(b, "relu", 0, images_per_channel=0), "images_per_channel must be"),
        (lambda b: caricature(b, images(), "relu", power=-1), "power must be"),
        (lambda b: channels(b, "relu", 0, data=torch.rand(2, 3, 12, 12)), "images in"),
    ],
)
def test_refused(box: ub.Box, work: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        work(box)


def test_tabular_models_are_refused() -> None:
    box = ub.Box(nn.Linear(3, 2), ub.Features(("a", "b", "c")))
    with pytest.raises(InputError, match="takes images alone"):
        feature(box, logit(0))


def test_diversity_works_below_zero_too(box: ub.Box) -> None:
    """A log-probability never rises above zero; the term weighs by how far it has risen."""
    alike, apart = (feature(box, logprob(1), n_images=2, steps=12, diversity=d).images for d in (0.0, 2.0))
    assert not torch.allclose(alike, apart, atol=1e-3)
    with pytest.raises(InputError, match="give their number"):
        feature(box, logprob(1), diversity=1.0)
