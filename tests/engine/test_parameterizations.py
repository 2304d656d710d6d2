"""Canvases: what each makes of its parameters, row by row; a generator is left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

import unboxed as ub
from contracts.trace import changes, snapshot
from real_data import ROOT, _needs
from unboxed.engine.optimize.colors import Palette, palette_from_images
from unboxed.engine.optimize.generators import CPPN, LatentCanvas, pixel_coordinates
from unboxed.engine.optimize.loop import OptimizationConfig, optimize
from unboxed.engine.optimize.parameterizations import (
    Canvas,
    FourierCanvas,
    PhaseCanvas,
    RawCanvas,
    mean_magnitude_spectrum,
    spectrum_frequencies,
)
from unboxed.engine.optimize.transforms import random_affine
from unboxed.objectives import logit
from unboxed.rng import uniform

LIKE = torch.zeros(3, 2, 5, 7, dtype=torch.float64)


def generator() -> nn.Module:
    """From codes (N, 4) to images (N, 2, 5, 7) in [-1, 1]; all that may leave a trace, in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(4, 70), nn.BatchNorm1d(70), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Tanh()]
        return nn.Sequential(*layers, nn.Unflatten(1, (2, 5, 7))).double().train()


def latent(like: Tensor = LIKE, seed: int = 0) -> LatentCanvas:
    return LatentCanvas.noise(generator(), like.new_empty(len(like), 4), seed, lambda made: (made + 1) / 2)


def phase(like: Tensor = LIKE, seed: int = 0) -> PhaseCanvas:
    x = torch.rand(8, *like.shape[1:], generator=torch.Generator().manual_seed(1), dtype=like.dtype)
    palette = palette_from_images(x)
    return PhaseCanvas.noise(like, seed, palette, mean_magnitude_spectrum(x, palette))


CANVASES: dict[str, Callable[..., Canvas]] = {
    "raw": lambda like=LIKE, seed=0: RawCanvas(uniform(like, seed)),
    "fourier": lambda like=LIKE, seed=0: FourierCanvas.noise(like, seed),
    "phase": phase,
    "latent": latent,
    "cppn": lambda like=LIKE, seed=0: CPPN.noise(like, seed),
}
each = pytest.mark.parametrize("name", CANVASES)


@each
def test_images_are_valid_and_rows_are_rows(name: str) -> None:
    canvas = CANVASES[name]()
    images = canvas()
    assert images.shape == LIKE.shape
    assert images.dtype == torch.float64
    assert 0 <= images.min() <= images.max() <= 1
    assert {len(p) for p in canvas.parameters()} == {3}
    for index in (slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])):
        some = canvas.rows(index)
        assert torch.allclose(some(), images[index], atol=1e-12)
        assert all(p.is_leaf and p.requires_grad for p in some.parameters())


@each
def test_each_row_is_moved_by_its_own_parameters(name: str) -> None:
    canvas = CANVASES[name]()
    found = torch.autograd.grad(canvas()[1].pow(2).sum(), list(canvas.parameters()), allow_unused=True)
    moved = torch.stack([g.flatten(1).abs().sum(1) for g in found if g is not None]).sum(0)
    assert moved[1] > 0
    assert moved[0] == moved[2] == 0


@each
def test_a_start_is_drawn_by_seed_and_row(name: str) -> None:
    if name == "cppn":  # whose first image is flat whatever is drawn
        first, other = (CANVASES[name](seed=s).weights[0] for s in (0, 1))  # type: ignore[attr-defined]
    else:
        first, other = CANVASES[name](seed=0)(), CANVASES[name](seed=1)()
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])
    if name != "raw":
        assert torch.allclose(CANVASES[name](LIKE[:2])(), CANVASES[name]()()[:2])


def test_fourier_is_its_sum_of_waves() -> None:
    canvas = FourierCanvas.noise(LIKE, 0, Palette(torch.tensor([0.3, 0.6])), sd=1.0, frequency_power=1.5)
    z = canvas.z.detach()
    n, c, h, w = LIKE.shape
    whole = torch.fft.irfft2(torch.view_as_complex(z), s=(h, w))  # only to have the redundant half of the spectrum
    full = torch.fft.fft2(whole)
    y, x = 3, 5
    total = torch.zeros(n, c, dtype=torch.complex128)
    for i in range(h):
        for j in range(w):
            f = math.hypot(min(i, h - i) / h, min(j, w - j) / w)
            scale = (h * w) ** 0.5 * max(h, w) * ((1 / max(h, w)) / max(f, 1 / max(h, w))) ** 1.5
            turn = 2 * math.pi * (i * y / h + j * x / w)
            total += scale * full[:, :, i, j] * complex(math.cos(turn), math.sin(turn)) / (h * w)
    want = (total.real + torch.tensor([0.3, 0.6], dtype=torch.float64).logit()).sigmoid()
    assert torch.allclose(canvas()[:, :, y, x], want, atol=1e-9)


def test_a_phase_canvas_keeps_its_magnitudes() -> None:
    canvas = phase()
    plain = canvas.palette.from_colors(canvas().detach())
    found = torch.fft.rfft2(plain).abs()
    inside = slice(1, 3)  # a column that is its own mirror image holds real waves alone
    assert torch.allclose(found[..., inside], canvas.magnitude[..., inside].expand(3, -1, -1, -1), rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_learned_palette_paints_what_it_read(channels: int) -> None:
    x = torch.rand(6, channels, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.9 + 0.05
    palette = palette_from_images(x)
    assert torch.allclose(palette.to_colors(palette.from_colors(x)), x, atol=1e-9)
    assert torch.allclose(palette.to_colors(torch.zeros_like(x)), x.mean((0, 2, 3), keepdim=True).expand_as(x))


def test_frequencies() -> None:
    f = spectrum_frequencies(LIKE)
    assert f.shape == (5, 4)
    assert f[0, 0] == pytest.approx(1 / 7)
    assert f[1, 2] == pytest.approx(math.hypot(1 / 5, 2 / 7))
    assert f[4, 0] == pytest.approx(1 / 5)


# ---- a generator's codes ---------------------------------------------------------------------------------------------


def test_a_generator_is_left_as_it_was_and_is_no_part_of_the_canvas() -> None:
    model = generator()
    before = snapshot(model)
    canvas = LatentCanvas.noise(model, torch.empty(3, 4, dtype=torch.float64), 0, lambda made: (made + 1) / 2)
    assert [name for name, _ in canvas.named_parameters()] == ["z"]
    images = canvas()
    assert torch.equal(images, canvas())  # in eval: no dropout, no batch statistics
    torch.autograd.grad(images.sum(), canvas.z)
    assert changes(before, snapshot(model)) == []
    optimize(box_of_latents(), logit(1), canvas, OptimizationConfig(3, partial(Adam, lr=0.1)))
    assert changes(before, snapshot(model)) == []


def box_of_latents() -> ub.Box:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(70, 3)).double(), ub.Pixels((2, 5, 7)))


def test_an_optimization_in_codes_against_literal_lines() -> None:
    model, box = generator().eval(), box_of_latents()
    canvas = LatentCanvas.noise(model, torch.empty(3, 4, dtype=torch.float64), 0, lambda made: (made + 1) / 2)
    z = canvas.z.detach().clone().requires_grad_()
    adam = Adam([z], lr=0.1)
    for _ in range(5):
        adam.zero_grad()
        (-box.model((model(z) + 1) / 2)[:, 1].sum()).backward()
        adam.step()
    climb = optimize(box, logit(1), canvas, OptimizationConfig(5, partial(Adam, lr=0.1)), batch_size=2)
    assert torch.allclose(climb.input, (model(z) + 1) / 2, atol=1e-12)


class DCGAN(nn.Module):
    """The generator of the real data: codes (N, 64, 1, 1) to images (N, 1, 28, 28) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()

        def block(before: int, width: int, kernel: int, stride: int) -> nn.Module:
            conv = nn.ConvTranspose2d(before, width, kernel, stride)
            return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))

        last = nn.Sequential(nn.ConvTranspose2d(64, 1, 4, 2), nn.Tanh())
        self.gen = nn.Sequential(block(64, 256, 3, 2), block(256, 128, 4, 1), block(128, 64, 3, 2), last)

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = self.gen(z)
        return made


@_needs(ROOT / "gan")
def test_digits_of_a_class_from_a_generators_codes() -> None:
    """The judge, which took no part, names most of them."""
    model = DCGAN()
    model.load_state_dict(torch.load(ROOT / "gan" / "dcgan_mnist_generator.pth", weights_only=True))
    box, judge = (ub.Box(*ub.zoo.load(name)) for name in ("mnist-cnn", "mnist-judge"))
    goal = torch.arange(10)
    canvas = LatentCanvas.noise(model, torch.empty(10, 64, 1, 1), 0, lambda made: (made + 1) / 2)
    climb = optimize(
        box,
        logit(goal),
        canvas,
        OptimizationConfig(24, partial(Adam, lr=0.1), transform=random_affine()),
    )
    assert (box.predict(climb.input) == goal).sum() >= 9
    assert (judge.predict(climb.input) == goal).sum() >= 8


# ---- functions of coordinates ----------------------------------------------------------------------------------------


def test_a_cppn_is_its_formula() -> None:
    canvas = CPPN.noise(LIKE, 0, width=3, depth=2)
    with torch.no_grad():
        for p, seed in zip(canvas.parameters(), range(9), strict=False):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype))
    n, i, j = 1, 4, 2
    h = [(2 * j + 1 - 7) / 7 * 3**0.5, (2 * i + 1 - 5) / 7 * 3**0.5]
    for k in range(3):
        w, b = canvas.weights[k][n].tolist(), canvas.biases[k][n, 0].tolist()
        h = [sum(v * row[o] for v, row in zip(h, w, strict=True)) + b[o] for o in range(len(b))]
        if k < 2:
            h = [math.atan(v) / 0.67 for v in h] + [math.atan(v) ** 2 / 0.6 for v in h]
    assert canvas()[n, :, i, j].tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in h])


def test_a_cppn_has_any_size() -> None:
    canvas = CPPN.noise(LIKE, 0)
    with torch.no_grad():
        canvas.weights[-1].normal_(generator=torch.Generator().manual_seed(0))
    large = canvas.resized(15, 21)()
    assert large.shape == (3, 2, 15, 21)
    assert torch.allclose(large[..., 1::3, 1::3], canvas(), atol=1e-12)  # the middle one of each nine
    assert pixel_coordinates((1, 1), LIKE).tolist() == [[0, 0]]


@pytest.mark.parametrize("name", ["fourier", "latent", "cppn"])
def test_climbing_and_splitting(name: str) -> None:
    box = box_of_latents()
    plan = OptimizationConfig(8, partial(Adam, lr=0.02))
    whole = optimize(box, logit(torch.tensor([0, 1, 2])), CANVASES[name](), plan)
    parts = optimize(box, logit(torch.tensor([0, 1, 2])), CANVASES[name](), plan, batch_size=1)
    assert (whole.history[-1] > whole.history[0]).all()
    assert torch.allclose(whole.input, parts.input, atol=1e-9)
